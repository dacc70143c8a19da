"""Decides whether everything recorded about an order may be deleted. Pure: no I/O, no clock.

Only cancelled orders are deleted. A successful order is part of the shop's books: its goods are delivered, its server
has an owner. A FAILED order documents an operator's decision, pending or made. And every record of a cancelled order
has to agree that nothing is held.
"""

from collections.abc import Iterator
from datetime import datetime
from typing import Any, NamedTuple

from operations.reading.charges import holds_money, intent_as_charge
from operations.reading.participant_records import NO_RECORDS, PARTICIPANT_RECORDS, ByParticipant
from order_service.participants import PAYMENT

Document = dict[str, Any]


class CleanupCandidate(NamedTuple):
    """A cancelled order and everything recorded under its id: `charge` by the simulated gateway, `intent` for Stripe.

    `moving` says whether a product or a slot has a pending move of the order, `assigned` whether another system has a
    slot for it, `owns` whether an address is recorded as the order's, `locks` whether a package's lock names it.
    """

    order: Document
    by_participant: ByParticipant = NO_RECORDS
    charge: Document | None = None
    job: Document | None = None
    intent: Document | None = None
    moving: bool = False
    assigned: bool = False
    owns: bool = False
    locks: bool = False


def is_over(order: Document, before: datetime) -> bool:
    """Return whether the order is cancelled and settled, and took its last step before that time."""
    updated = order.get("updatedAt")
    settled = order.get("status") == "CANCELLED" and order.get("settled") is True
    return settled and isinstance(updated, datetime) and updated < before


def why_kept(candidate: CleanupCandidate) -> str | None:
    """Return why the records of a cancelled order must be kept, None if they may be deleted."""
    return next(_reasons(candidate), None)


def _reasons(candidate: CleanupCandidate) -> Iterator[str]:
    if _is_unpublished(candidate):
        yield "a message is unpublished"
    for row in PARTICIPANT_RECORDS:
        if not row.is_released(candidate.by_participant):
            yield f"the release of the {row.participant.name} is not confirmed"
    if candidate.by_participant.get(PAYMENT.name, {}).get("nextLookupAt"):
        yield "the outcome of the charge is not confirmed"
    if holds_money(candidate.charge) or holds_money(intent_as_charge(candidate.intent)):
        yield "the gateway holds money"
    if candidate.moving:
        yield "a product or a slot has a pending move of the order"
    if candidate.assigned:
        yield "a slot is assigned to the order"
    yield from _server_reasons(candidate)


def _server_reasons(candidate: CleanupCandidate) -> Iterator[str]:
    job = candidate.job or {}
    if candidate.job is not None and job.get("state") != "FAILED":
        yield "the job has not failed"
    unclear = not (job.get("purchase") or {"settled": True}).get("settled")
    if candidate.owns or job.get("ip") or job.get("wrongIps") or unclear:
        yield "a server was bought, or may have been"
    if candidate.locks:
        yield "the lock of a package names the order"


def _is_unpublished(candidate: CleanupCandidate) -> bool:
    records = (candidate.order, *candidate.by_participant.values())
    job = candidate.job or {}
    return any(record.get("unpublished") for record in records) or bool(job.get("outboxSince") or job.get("outbox"))
