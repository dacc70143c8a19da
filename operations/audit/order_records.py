"""Everything recorded under one order's id, from one snapshot: the unit of judgement. Pure."""

from datetime import datetime
from typing import Any, NamedTuple

from operations.audit.report import Violation
from operations.reading.participant_records import NO_RECORDS, PARTICIPANT_RECORDS, ByParticipant
from order_service.participants import PAYMENT, STOCK

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
    by_participant: ByParticipant = NO_RECORDS
    charge: Document | None = None
    job: Document | None = None
    intent: Document | None = None
    address: Document | None = None
    package: Document | None = None
    release: Document | None = None

    @property
    def reservation(self) -> Document | None:
        """The reservation of stock."""
        return self.by_participant.get(STOCK.name)

    @property
    def payment(self) -> Document | None:
        """The payment."""
        return self.by_participant.get(PAYMENT.name)

    @property
    def kinds(self) -> list[str]:
        """The kinds of records that exist under the id, see order_collections.py."""
        others = {"orders": self.order, "charges": self.charge, "jobs": self.job, "intents": self.intent}
        found = [kind for kind, record in others.items() if record is not None]
        return [*found, *(row.collection for row in PARTICIPANT_RECORDS if row.participant.name in self.by_participant)]

    def violation(self, invariant: int, kind: str, found: str, expected: str) -> Violation:
        """Return a violation of this order."""
        return Violation(invariant, kind, "order", self.order_id, found, expected)


def is_held(order: Document) -> bool:
    """Return whether a failed order waits for a decision about its money, until the hold ends."""
    return order.get("status") == "FAILED" and not order.get("compensating") and not order.get("settled")


def is_delivered(order: Document) -> bool:
    """Return whether the order is of goods that have left."""
    return order.get("status") == "COMPLETED" and order.get("fulfilment") == "goods"


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
