"""Decides whether all that is recorded about an order may be deleted. Pure: no I/O, no clock.

Only cancelled orders are. What went through is the shop's book: its goods are out, its server belongs to somebody.
A FAILED order is a decision of an operator, before it is made and after it. Of a cancelled order every record has to
agree that nothing is held, so that nobody misses what it said.
"""

from collections.abc import Iterator
from datetime import datetime
from typing import Any, NamedTuple

from operations.reading.charges import holds_money, intent_as_charge

Document = dict[str, Any]

STOCK_GONE = ("FAILED", "RELEASED")
MONEY_GONE = ("FAILED", "VOIDED", "REFUNDED")


class Records(NamedTuple):
    """All that is recorded under one order's id: `charge` by the simulated gateway, `intent` for Stripe.

    `marked` says that a product or a slot still carries a mark of the order, `assigned` that another system has a slot
    for it, `owns` that an address is recorded as the order's, `locks` that a package's lock names it.
    """

    order: Document
    reservation: Document | None = None
    payment: Document | None = None
    charge: Document | None = None
    job: Document | None = None
    intent: Document | None = None
    marked: bool = False
    assigned: bool = False
    owns: bool = False
    locks: bool = False


def is_over(order: Document, before: datetime) -> bool:
    """Whether the order is cancelled and settled, and took its last step before that time."""
    updated = order.get("updatedAt")
    settled = order.get("status") == "CANCELLED" and order.get("settled") is True
    return settled and isinstance(updated, datetime) and updated < before


def why_kept(records: Records) -> str | None:
    """Say why the records of an order that is over must stay; None if they may go."""
    return next(_reasons(records), None)


def _reasons(records: Records) -> Iterator[str]:
    order, payment, job = records.order, records.payment or {}, records.job or {}
    if order.get("unpublished") or payment.get("unpublished") or job.get("outboxSince") or job.get("outbox"):
        yield "a message is not published"
    if records.reservation is None or records.reservation.get("status") not in STOCK_GONE:
        yield "the stock is not known to be back"
    if payment.get("status") not in MONEY_GONE or payment.get("nextLookupAt"):
        yield "the money is not known to be back"
    if holds_money(records.charge) or holds_money(intent_as_charge(records.intent)):
        yield "the gateway holds money"
    if records.marked:
        yield "a product or a slot carries a mark of the order"
    if records.assigned:
        yield "a slot is assigned to the order"
    if records.job is not None and job.get("state") != "FAILED":
        yield "the job has not failed"
    unclear = not (job.get("purchase") or {"settled": True}).get("settled")
    if records.owns or job.get("ip") or job.get("wrongIps") or unclear:
        yield "a server was bought, or may have been"
    if records.locks:
        yield "the lock of a package names the order"
