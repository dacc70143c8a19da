"""Named points between two steps at which tests crash the code; in production they do nothing.

Failpoints are injected at the composition root, never global. A test in the same process passes a hook that raises
`SimulatedCrashError`. A test of a real process sets ORDERSAGA_CRASH_AT=[stop:]<point>[#n]: the n-th time (by default
the first) that it reaches the point, the process kills itself with SIGKILL, or pauses itself with SIGSTOP until
SIGCONT.
"""

import os
import signal
from collections.abc import Callable

Failpoint = Callable[[str], None]
"""Called with the name of each point that the code reaches."""

HANDLED = "consumer.handled"
"""The outcome is recorded; its messages are not published yet."""
PUBLISHED = "consumer.published"
"""The messages are published and confirmed; the deliveries are not acknowledged yet."""
ACKNOWLEDGED = "consumer.acknowledged"
"""The deliveries are acknowledged."""
ORDER_INSERTED = "order.inserted"
"""The order is stored and answered; `order.created` is not published yet."""
ORDER_CREATED_PUBLISHED = "order.created-published"
"""`order.created` is confirmed; the order is still marked as unpublished."""
STOCK_MOVED = "inventory.stock-moved"
"""The quantities have changed; the reservation is not recorded yet."""
RESERVATION_RECORDED = "inventory.reservation-recorded"
"""The reservation is recorded; the product still has the order's pending move."""
REFUND_REQUESTED = "order.refund-requested"
"""A refund in part is stored and answered; `payment.refund_part` is not published yet."""
HOLD_CLAIMED = "inventory.hold-claimed"
"""A hold is recorded as the order's; no unit of it has moved yet."""
HOLD_ENDED = "inventory.hold-ended"
"""A hold is recorded as expired or deleted; its units are still out."""
PAYMENT_PENDING = "payment.pending"
"""The payment is recorded as PENDING; the gateway has not been called yet."""
PAYMENT_CHARGED = "payment.charged"
"""The gateway has charged; the payment is still PENDING."""
CAPTURE_SENT = "payment.capture-sent"
"""The gateway has captured; the payment is still AUTHORIZED."""
REFUND_SENT = "payment.refund-sent"
"""The gateway has refunded; this is not recorded yet."""
PART_RECORDED = "payment.part-recorded"
"""A refund in part is recorded as PENDING; the gateway has not been called yet."""
PART_SENT = "payment.part-sent"
"""The gateway has refunded the part; this is not recorded yet."""
JOB_LOCKED = "provisioning.locked"
"""The job holds its package's lock; the provider has not been called yet."""
BEFORE_BUY = "provisioning.before-buy"
"""The attempt to buy is recorded; the request is about to be sent."""
BOUGHT = "provisioning.bought"
"""The provider has answered with the address that it sold; the job does not have it yet."""
ADDRESS_CLAIMED = "provisioning.address-claimed"
"""The address is recorded as the order's; the job does not have it yet."""
BEFORE_STATUS = "provisioning.before-status"
"""The job has its address; the provider has not been asked for the credentials yet."""
JOB_RECORDED = "provisioning.recorded"
"""A step of the job is recorded; its messages are not published yet."""
JOB_WAITING = "provisioning.waiting"
"""The job waits for its next attempt; its package is free."""
WEBHOOK_CLAIMED = "notification.claimed"
"""Deliveries of a webhook are claimed; none of them is attempted yet."""
WEBHOOK_SENT = "notification.sent"
"""A receiver has answered; the outcome is not recorded yet."""
WEBHOOK_DELETED = "notification.deleted"
"""A webhook is marked as deleted; its deliveries are all there, and the request is not answered yet."""
WEBHOOK_DELETING = "notification.deleting"
"""A portion of the deliveries of a deleted webhook is deleted; the others are not yet."""
ARCHIVE_WRITTEN = "operations.archive-written"
"""A file of archived orders is complete; it is not verified yet."""
ARCHIVE_VERIFIED = "operations.archive-verified"
"""A file is verified; its orders are not deleted yet."""
ARCHIVE_DELETING = "operations.archive-deleting"
"""A group of the orders of a file is deleted in a transaction that is not committed yet."""
ARCHIVE_DELETED = "operations.archive-deleted"
"""A group of the orders of a file is deleted; the others are not yet."""
LETTERS_TAKEN = "operations.letters-taken"
"""A batch of dead letters is taken from the broker; none of them is recorded yet."""
LETTERS_RECORDED = "operations.letters-recorded"
"""The batch is recorded; the broker still has it."""
LETTERS_ACKNOWLEDGED = "operations.letters-acknowledged"
"""The batch is acknowledged."""
LETTERS_CHOSEN = "operations.letters-chosen"
"""It is logged that letters are to be discarded or restored; none of them is changed yet."""
GROUPS_REOPENED = "operations.groups-reopened"
"""The groups of letters that are to be restored are open again; no letter is changed yet."""
LETTERS_DECIDED = "operations.letters-decided"
"""The letters are discarded or restored; the log does not say so yet."""
REPLAY_CLAIMED = "operations.replay-claimed"
"""Some letters are claimed for a replay; none of them is published yet."""
REPLAY_PUBLISHED = "operations.replay-published"
"""They are published and confirmed; their records do not say so yet."""
REPLAY_RECORDED = "operations.replay-recorded"
"""Their records say so; the replay's progress is not recorded yet."""
BULK_CLAIMED = "operations.bulk-claimed"
"""An order of an action on many is claimed; nothing is noted about it yet."""
BULK_NOTED = "operations.bulk-noted"
"""How often the order's history has the action is noted; the action is not taken yet."""
BULK_ACTED = "operations.bulk-acted"
"""The action is taken on the order; its result is not recorded yet."""
BULK_RECORDED = "operations.bulk-recorded"
"""The result of the order is recorded; the next order is not claimed yet."""
INCIDENT_DECIDED = "operations.incident-decided"
"""The new state of a subject is recorded with its incidents; these are not copied to their collection yet."""
SAMPLES_STORED = "operations.samples-stored"
"""The samples of a minute are stored with where they end; they are not copied to their collection yet."""
MIGRATION_EMPTIED = "operations.migration-emptied"
"""The messages of a queue that is replaced are in its migration queue; the queue still exists, without bindings."""
MIGRATION_DELETED = "operations.migration-deleted"
"""The queues are deleted, and not declared again yet."""
MIGRATION_DECLARED = "operations.migration-declared"
"""The queues are declared again; their messages are still in the migration queues."""

ALL_POINTS = (
    HANDLED,
    PUBLISHED,
    ACKNOWLEDGED,
    ORDER_INSERTED,
    ORDER_CREATED_PUBLISHED,
    STOCK_MOVED,
    RESERVATION_RECORDED,
    HOLD_CLAIMED,
    HOLD_ENDED,
    REFUND_REQUESTED,
    PAYMENT_PENDING,
    PAYMENT_CHARGED,
    CAPTURE_SENT,
    REFUND_SENT,
    PART_RECORDED,
    PART_SENT,
    JOB_LOCKED,
    BEFORE_BUY,
    BOUGHT,
    ADDRESS_CLAIMED,
    BEFORE_STATUS,
    JOB_RECORDED,
    JOB_WAITING,
    WEBHOOK_CLAIMED,
    WEBHOOK_SENT,
    WEBHOOK_DELETED,
    WEBHOOK_DELETING,
    ARCHIVE_WRITTEN,
    ARCHIVE_VERIFIED,
    ARCHIVE_DELETING,
    ARCHIVE_DELETED,
    LETTERS_TAKEN,
    LETTERS_RECORDED,
    LETTERS_ACKNOWLEDGED,
    LETTERS_CHOSEN,
    GROUPS_REOPENED,
    LETTERS_DECIDED,
    REPLAY_CLAIMED,
    REPLAY_PUBLISHED,
    REPLAY_RECORDED,
    BULK_CLAIMED,
    BULK_NOTED,
    BULK_ACTED,
    BULK_RECORDED,
    INCIDENT_DECIDED,
    SAMPLES_STORED,
    MIGRATION_EMPTIED,
    MIGRATION_DELETED,
    MIGRATION_DECLARED,
)


class SimulatedCrashError(BaseException):
    """A simulated crash of the process: not an Exception, so no error handler catches it."""


def nothing_fails(_point: str) -> None:
    """Do nothing at any point."""


def kill_at(setting: str | None) -> Failpoint:
    """Return the failpoint that the setting `[stop:]<point>[#n]` asks for; without one, nothing fails.

    Raises ValueError for a point that does not exist.
    """
    if not setting:
        return nothing_fails
    number = signal.SIGSTOP if setting.startswith("stop:") else signal.SIGKILL
    wanted, _, nth = setting.removeprefix("stop:").partition("#")
    if wanted not in ALL_POINTS:
        raise ValueError(f"unknown point {wanted!r}, allowed: {', '.join(ALL_POINTS)}")
    if nth and not (nth.isdecimal() and int(nth) > 0):
        raise ValueError(f"after the point's name, #{nth} is not # and a number from 1 on")
    remaining = int(nth or 1)

    def failpoint(point: str) -> None:
        nonlocal remaining
        if point == wanted:
            remaining -= 1
            if remaining == 0:
                os.kill(os.getpid(), number)

    return failpoint
