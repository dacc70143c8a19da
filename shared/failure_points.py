"""Named points between two steps at which a test may crash the code; in production every one does nothing.

The points are injected where the code is put together, never global. A test in the same process passes a hook that
raises `SimulatedCrashError`; a test of a real process sets ORDERSAGA_CRASH_AT=[stop:]<point>[#n]: the process then ends
itself with SIGKILL, or stops with SIGSTOP until somebody sends SIGCONT, the n-th time it gets there (the first time
unless told otherwise).
"""

import os
import signal
from collections.abc import Callable

FailurePoint = Callable[[str], None]
"""Called with a point's name whenever the code reaches it."""

HANDLED = "consumer.handled"
"""The outcome is recorded, what follows from it is not published yet."""
PUBLISHED = "consumer.published"
"""What follows is published and confirmed, the deliveries are not acknowledged yet."""
ACKNOWLEDGED = "consumer.acknowledged"
"""The deliveries are acknowledged."""
ORDER_INSERTED = "order.inserted"
"""The order is stored and answered, `order.created` is not published yet."""
ORDER_CREATED_PUBLISHED = "order.created-published"
"""`order.created` is confirmed, the order still says that it is to be published."""
STOCK_MOVED = "inventory.stock-moved"
"""Quantities have changed, the reservation does not say so yet."""
RESERVATION_RECORDED = "inventory.reservation-recorded"
"""The reservation is written, the product still carries the order's mark."""
PAYMENT_PENDING = "payment.pending"
"""The payment is recorded as PENDING, the gateway was not asked yet."""
PAYMENT_CHARGED = "payment.charged"
"""The gateway has answered, the payment does not say so yet."""
REFUND_SENT = "payment.refund-sent"
"""The gateway has refunded, the payment does not say so yet."""
JOB_LOCKED = "provisioning.locked"
"""The job holds its package's lock, the provider was not asked yet."""
BEFORE_BUY = "provisioning.before-buy"
"""The attempt to buy is recorded, the request is about to leave."""
BOUGHT = "provisioning.bought"
"""The provider has answered which address it sold, the job does not say so yet."""
ADDRESS_CLAIMED = "provisioning.address-claimed"
"""The address is recorded as the order's, the job does not say so yet."""
BEFORE_STATUS = "provisioning.before-status"
"""The job has its address, the provider was not asked for the credentials yet."""
JOB_RECORDED = "provisioning.recorded"
"""A step of the job is recorded, what it says is not published yet."""
JOB_WAITING = "provisioning.waiting"
"""The job waits for its next attempt, and its package is free."""
LETTERS_TAKEN = "operations.letters-taken"
"""Dead letters are taken from the broker, none of the batch is recorded yet."""
LETTERS_RECORDED = "operations.letters-recorded"
"""The batch of dead letters is recorded, the broker still has it."""
LETTERS_ACKNOWLEDGED = "operations.letters-acknowledged"
"""The batch of dead letters is acknowledged."""
REPLAY_CLAIMED = "operations.replay-claimed"
"""Some letters are claimed for a replay, none of them is published yet."""
REPLAY_PUBLISHED = "operations.replay-published"
"""These are published and confirmed, their records do not say so yet."""
REPLAY_RECORDED = "operations.replay-recorded"
"""Their records say so, the replay does not say how far it has come yet."""

ALL_POINTS = (
    HANDLED,
    PUBLISHED,
    ACKNOWLEDGED,
    ORDER_INSERTED,
    ORDER_CREATED_PUBLISHED,
    STOCK_MOVED,
    RESERVATION_RECORDED,
    PAYMENT_PENDING,
    PAYMENT_CHARGED,
    REFUND_SENT,
    JOB_LOCKED,
    BEFORE_BUY,
    BOUGHT,
    ADDRESS_CLAIMED,
    BEFORE_STATUS,
    JOB_RECORDED,
    JOB_WAITING,
    LETTERS_TAKEN,
    LETTERS_RECORDED,
    LETTERS_ACKNOWLEDGED,
    REPLAY_CLAIMED,
    REPLAY_PUBLISHED,
    REPLAY_RECORDED,
)


class SimulatedCrashError(BaseException):
    """A crash of the process, played within a test: not an Exception, so that no handler of faults catches it."""


def nothing_fails(_point: str) -> None:
    """Reach every point unharmed."""


def kill_at(setting: str | None) -> FailurePoint:
    """Return the failure point that the setting `[stop:]<point>[#n]` asks for; without one, nothing fails.

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
