"""What is judged together: all that is recorded under one order's id, as it was at one moment. Pure."""

from datetime import datetime
from typing import Any, NamedTuple

from operations.audit.report import Violation

Document = dict[str, Any]


class OrderRecords(NamedTuple):
    """All that is recorded under one order id.

    `charge` is the simulated gateway's, `intent` our record of the one at Stripe. `job`, `address` and `line` are there
    for orders of servers only: the job, the record of the address that the order has, and the
    line of the job's package: {expiresAt: the end of the lease of who holds it, movedAt: the last step of a job of it}.
    """

    order_id: str
    order: Document | None
    reservation: Document | None = None
    payment: Document | None = None
    charge: Document | None = None
    job: Document | None = None
    intent: Document | None = None
    address: Document | None = None
    line: Document | None = None

    def violation(self, invariant: int, kind: str, found: str, expected: str) -> Violation:
        """A violation of this order."""
        return Violation(invariant, kind, "order", self.order_id, found, expected)


def is_held(order: Document) -> bool:
    """Whether a failed order waits for a decision about its money: nothing moves by itself until the hold ends."""
    return order.get("status") == "FAILED" and not order.get("compensating") and not order.get("settled")


def is_given_up(order: Document) -> bool:
    """Whether the order did not go through: what it held is on its way back, or back."""
    return order.get("status") in ("CANCELLED", "FAILED") and not is_held(order)


def moment(record: Document, name: str) -> datetime | None:
    """Return the time in that field, None if there is none."""
    value = record.get(name)
    return value if isinstance(value, datetime) else None


def in_words(at: datetime | None) -> str:
    """Write a time for operators."""
    return at.isoformat(timespec="seconds") if at else "no known time"


def status_text(record: Document | None) -> str:
    """Say in which status a record is, or that there is none."""
    return "nothing" if record is None else str(record.get("status"))
