"""Judges holds: units and room that are kept for a user before an order. Pure: no I/O, no clock.

A hold is a reservation without an order (`hold:<id>`), so what it holds is counted with all others (stock.py,
slots.py). It ends once: by an order, by its expiry or by its deletion. The services return it within seconds.
"""

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import NamedTuple

from operations.audit.order_records import Document, time_of, time_text
from operations.audit.report import Violation
from operations.audit.stock import is_decided_long_ago

OVERDUE = timedelta(seconds=60)
"""The time after its expiry at which an open hold is wrong: the sweep ends it within 2 s."""

OUTCOMES = ("TAKEN", "EXPIRED", "DELETED")


class HoldRecords(NamedTuple):
    """A hold, and the order that has taken it over with its reservation, if they exist."""

    record: Document
    order: Document | None = None
    reservation: Document | None = None

    def violation(self, kind: str, found: str, expected: str) -> Violation:
        """Return a violation of this hold."""
        return Violation(2, kind, "hold", str(self.record["_id"]).partition(":")[2], found, expected)


def judge(hold: HoldRecords, now: datetime) -> Iterator[Violation]:
    """Yield the violations of a hold."""
    status, terms = hold.record.get("status"), hold.record.get("hold") or {}
    outcome, expires_at = terms.get("outcome"), time_of(terms, "expiresAt")
    if status == "RESERVED" and (expires_at is None or time_of(terms, "dueAt") is None):
        yield hold.violation("hold without expiry", "RESERVED without a time at which it ends", "a time of expiry")
    if outcome is not None and outcome not in OUTCOMES:
        yield hold.violation("outcome of the hold", f"{outcome!r}", " or ".join(OUTCOMES))
    if (outcome == "TAKEN") != (terms.get("orderId") is not None):
        found = f"{outcome or 'open'}, with order {terms.get('orderId') or 'none'}"
        yield hold.violation("order of the hold", found, "an order if it was taken over, otherwise none")
    if status == "RESERVED":
        yield from _held_too_long(hold, outcome, expires_at, now)
    elif status == "RELEASED" and terms and outcome is None:
        yield hold.violation("hold without end", "RELEASED, although nothing has ended it", " or ".join(OUTCOMES))
    if status == "RELEASED" and outcome == "TAKEN" and hold.order is not None and hold.reservation is None:
        found = f"taken over by order {terms.get('orderId')}, which has no reservation"
        yield hold.violation("hold taken for nothing", found, "the reservation of the order")


def _held_too_long(
    hold: HoldRecords, outcome: str | None, expires_at: datetime | None, now: datetime
) -> Iterator[Violation]:
    if outcome is None:
        if expires_at is not None and now - expires_at > OVERDUE:
            yield hold.violation("hold overdue", f"held, although it expired at {time_text(expires_at)}", "returned")
    elif is_decided_long_ago(hold.record, now) and (outcome != "TAKEN" or is_decided_long_ago(hold.reservation, now)):
        yield hold.violation("hold not returned", f"{outcome}, and RESERVED", "RELEASED once it has ended")
