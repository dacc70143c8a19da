"""Everything recorded under one order's id, from one snapshot: the unit of judgement. Pure."""

from datetime import datetime
from typing import Any, NamedTuple

from operations.audit.report import Violation

Document = dict[str, Any]


class OrderRecords(NamedTuple):
    """Everything recorded under one order id.

    `charge` is the record of the simulated gateway, `intent` our record of the charge at Stripe. `job`, `address` and
    `package` exist for orders of servers only: the job, the address of the order's server, and the state of the job's
    package, {expiresAt: the end of the lease on its lock, movedAt: the last step of any of its jobs}. `release` is
    the log's entry of `ordersaga order release`.
    """

    order_id: str
    order: Document | None
    reservation: Document | None = None
    payment: Document | None = None
    charge: Document | None = None
    job: Document | None = None
    intent: Document | None = None
    address: Document | None = None
    package: Document | None = None
    release: Document | None = None

    def violation(self, invariant: int, kind: str, found: str, expected: str) -> Violation:
        """Return a violation of this order."""
        return Violation(invariant, kind, "order", self.order_id, found, expected)


def is_held(order: Document) -> bool:
    """Return whether a failed order waits for a decision about its money, until the hold ends."""
    return order.get("status") == "FAILED" and not order.get("compensating") and not order.get("settled")


def is_given_up(order: Document) -> bool:
    """Return whether the order did not succeed, so that everything it held is or will be returned."""
    return order.get("status") in ("CANCELLED", "FAILED") and not is_held(order)


def time_of(record: Document, name: str) -> datetime | None:
    """Return the time in a field, None if it has none."""
    value = record.get(name)
    return value if isinstance(value, datetime) else None


def time_text(at: datetime | None) -> str:
    """Write a time for operators."""
    return at.isoformat(timespec="seconds") if at else "an unknown time"


def status_text(record: Document | None) -> str:
    """Return the status of a record, "nothing" if there is no record."""
    return "nothing" if record is None else str(record.get("status"))
