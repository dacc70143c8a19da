"""Decides whether everything recorded about an order may be removed. Pure: no I/O, no clock.

A cancelled order may go if every record of it agrees that nothing is held. An order that succeeded keeps its goods, its
money and its server, so it may go only where they stay counted without it: into an archive (operations/archive), and
only if the audit finds nothing wrong with it. A FAILED order never goes: it documents an operator's decision, pending
or made. And no order goes while anything about it is open.
"""

from collections.abc import Collection, Iterator, Sequence
from datetime import datetime
from itertools import chain
from typing import Any, NamedTuple

from operations.audit import orders, refunds, servers
from operations.audit.order_records import OrderRecords
from operations.reading.charges import holds_money, intent_as_charge
from operations.reading.participant_records import NO_RECORDS, PARTICIPANT_RECORDS, ByParticipant
from order_service.participants import PAYMENT

Document = dict[str, Any]

CANCELLED = "CANCELLED"

AUTHORIZED = "AUTHORIZED"
"""The status of a payment whose amount is only reserved on the card."""


class Candidate(NamedTuple):
    """An order and everything recorded under its id: `charge` by the simulated gateway, `intent` for Stripe.

    `holds` are those that the order has taken over, `addresses` those that are recorded as its own. `moving` says
    whether a product or a slot has a pending move of the order or of its holds, `assigned` whether another system has a
    slot for it, `locks` whether a package's lock names it, `letters` whether an open dead letter is about it.
    """

    order: Document
    by_participant: ByParticipant = NO_RECORDS
    charge: Document | None = None
    job: Document | None = None
    intent: Document | None = None
    holds: Sequence[Document] = ()
    addresses: Sequence[Document] = ()
    moving: bool = False
    assigned: bool = False
    locks: bool = False
    letters: bool = False

    @property
    def order_id(self) -> str:
        """The order's id."""
        return str(self.order["_id"])

    def by_kind(self) -> dict[str, list[Document]]:
        """Return the records that go with the order, by kind; see order_collections.py."""
        single = {
            "orders": self.order,
            **{row.collection: self.by_participant.get(row.participant.name) for row in PARTICIPANT_RECORDS},
            "charges": self.charge,
            "jobs": self.job,
            "intents": self.intent,
        }
        found = {kind: [document] for kind, document in single.items() if document is not None}
        return found | ({"holds": list(self.holds)} if self.holds else {})


def is_over(order: Document, statuses: Collection[str], before: datetime) -> bool:
    """Return whether the order is settled in one of these statuses, and took its last step before that time."""
    updated = order.get("updatedAt")
    settled = order.get("status") in statuses and order.get("settled") is True
    return settled and isinstance(updated, datetime) and updated < before


def why_kept(candidate: Candidate, now: datetime) -> str | None:
    """Return why the records of a settled order must be kept, None if they may go."""
    is_cancelled = candidate.order.get("status") == CANCELLED
    held = _what_is_held(candidate) if is_cancelled else _what_is_wrong(candidate, now)
    return next(chain(_what_is_open(candidate), held), None)


# --- Any order: what is open. ---


def _what_is_open(candidate: Candidate) -> Iterator[str]:
    if _is_unpublished(candidate):
        yield "a message is unpublished"
    if candidate.letters:
        yield "a dead letter about the order is open"
    yield from _open_payments(candidate)
    if candidate.moving:
        yield "a product or a slot has a pending move of the order"
    if any(hold.get("status") == "RESERVED" for hold in candidate.holds):
        yield "the hold that the order took over is not returned"
    if candidate.assigned:
        yield "a slot is assigned to the order"
    if candidate.locks:
        yield "the lock of a package names the order"


def _open_payments(candidate: Candidate) -> Iterator[str]:
    for row in PARTICIPANT_RECORDS:
        if AUTHORIZED in (row.state_in(candidate.order), row.state(candidate.by_participant)):
            yield f"the {row.participant.name} is authorised, and not captured or voided"
    if candidate.by_participant.get(PAYMENT.name, {}).get("nextLookupAt"):
        yield "the outcome of a charge of the payment is not confirmed"
    if refunds.is_waiting(candidate.order) or _has_pending_part(candidate):
        yield "a refund waits for its answer"


def _is_unpublished(candidate: Candidate) -> bool:
    records = (candidate.order, *candidate.by_participant.values())
    job = candidate.job or {}
    return any(record.get("unpublished") for record in records) or bool(job.get("outboxSince") or job.get("outbox"))


def _has_pending_part(candidate: Candidate) -> bool:
    parts = candidate.by_participant.get(PAYMENT.name, {}).get("parts") or ()
    return any(part.get("status") == "PENDING" for part in parts)


# --- A cancelled order: what may still be held. ---


def _what_is_held(candidate: Candidate) -> Iterator[str]:
    for row in PARTICIPANT_RECORDS:
        if not row.is_released(candidate.by_participant):
            yield f"the release of the {row.participant.name} is not confirmed"
    if holds_money(candidate.charge) or holds_money(intent_as_charge(candidate.intent)):
        yield "the gateway holds money"
    job = candidate.job or {}
    if candidate.job is not None and job.get("state") != "FAILED":
        yield "the job has not failed"
    if candidate.addresses or job.get("ip") or job.get("wrongIps") or _purchase_is_unclear(candidate):
        yield "a server was bought, or may have been"


def _purchase_is_unclear(candidate: Candidate) -> bool:
    return not ((candidate.job or {}).get("purchase") or {"settled": True}).get("settled")


# --- An order that succeeded: what the audit would say. ---


def _what_is_wrong(candidate: Candidate, now: datetime) -> Iterator[str]:
    job = candidate.job
    if job is not None and job.get("state") != "COMPLETED":
        yield "the job has not ended"
    if _purchase_is_unclear(candidate):
        yield "a server was bought, or may have been"
    if len([address for address in candidate.addresses if not address.get("wrong")]) > 1:
        yield "the order has two servers"
    by_ip = {address["_id"]: address for address in candidate.addresses}
    records = OrderRecords(
        candidate.order_id,
        candidate.order,
        candidate.by_participant,
        charge=candidate.charge,
        job=job,
        intent=candidate.intent,
        address=by_ip.get(servers.server_ip(candidate.order)),
    )
    for violation in orders.judge(records, now):
        yield f"the audit finds something wrong with it (invariant {violation.invariant}, {violation.kind})"
