"""Judges one order by everything that the services have recorded under its id. Pure: no I/O, no clock.

Each rule is a function from an order's records to its violations; RULES at the end lists them. An order in progress is
judged with tolerance: what a service does in two steps is not judged between them.
"""

from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import NamedTuple

from operations.audit import refunds, servers, slots
from operations.audit.order_records import (
    Document,
    OrderRecords,
    is_delivered,
    is_given_up,
    is_held,
    time_of,
    time_text,
)
from operations.audit.report import Violation
from operations.audit.stock import keeps_units
from operations.reading.charges import (
    AUTHORIZED,
    CHARGED,
    NOT_CHARGED,
    charge_text,
    has_expired,
    holds_money,
    holds_nothing,
    intent_as_charge,
)
from operations.reading.participant_records import PARTICIPANT_RECORDS, ParticipantRecord, order_states
from order_service.participants import FAILED, PAYMENT

LATE = timedelta(seconds=30)
"""The tolerance for an expired deadline: the order service checks deadlines about once per second."""

COMPENSATION = timedelta(seconds=180)
"""The longest time without a step during compensation: all retry levels (156 s) and a margin."""

UNPUBLISHED = timedelta(seconds=60)
"""The longest delay of messages that a crash left unpublished: a sweep runs every few seconds."""

STALLED = timedelta(seconds=60)
"""The time without a step after which an order that waits must have a message somewhere, or has lost it."""

PROVISIONING = timedelta(hours=1)
"""The longest time in PROVISIONING without an active job: enough to replay a dead letter."""

NO_CHARGE = "no-charge"
"""The transaction id of an order with nothing to pay."""

STRIPE_CHARGE = "pi_"
"""The prefix of transaction ids at Stripe."""

FULFILLED = ("CONFIRMED", "COMPLETED")
SUCCEEDING = ("CONFIRMED", "PROVISIONING", "COMPLETED")


class OrderActivity(NamedTuple):
    """The activity of an order: in flight or not, stalled or not."""

    in_flight: bool
    stalled: bool


def judge(records: OrderRecords, now: datetime) -> list[Violation]:
    """Return every violation of the order."""
    if records.order is None:
        return list(_without_order(records))
    return [violation for rule in RULES for violation in rule(records, records.order, now)]


def activity(records: OrderRecords, now: datetime) -> OrderActivity:
    """Return whether the order is in flight, and whether it has waited for an answer without a step for too long."""
    order = records.order
    needs_message = servers.needs_message_about_job(records)
    if order is None or order.get("settled") or (is_held(order) and not needs_message):
        return OrderActivity(in_flight=False, stalled=False)
    looked_up = records.payment is not None and "nextLookupAt" in records.payment
    job_active = order.get("status") == "PROVISIONING" and not needs_message
    waits = not job_active and not order.get("unpublished") and not looked_up
    known = [order, *records.by_participant.values(), records.job or {}]
    last = max((at for record in known if (at := time_of(record, "updatedAt"))), default=None)
    return OrderActivity(in_flight=True, stalled=waits and last is not None and now - last > STALLED)


def is_returned(records: OrderRecords) -> bool:
    """Return whether the order service does not know the order, and everything held for it was returned.

    A forged `order.created` leaves a reservation and a payment without an order. Once both are returned, nothing is
    wrong, although the records stay. A reservation that was refused stays FAILED: then only the log of actions tells
    the release of a forged order from the loss of a real one.
    """
    if records.order is not None or records.job is not None:
        return False
    released = all(row.is_released(records.by_participant) for row in PARTICIPANT_RECORDS)
    refused = (records.reservation or {}).get("status") == FAILED
    held = any(holds_money(charge) for charge in _charges(records).values())
    return released and not held and (records.release is not None or not refused)


def lost(records: OrderRecords) -> Violation:
    """Return the violation of a stalled order for which no message exists that could continue it."""
    order, job = records.order or {}, records.job or {}
    return records.violation(
        7,
        "message lost",
        f"{order.get('status')} with {order_states(order)}, while "
        f"{', '.join(_has(row, records) for row in PARTICIPANT_RECORDS)} and "
        f"provisioning has {job.get('state', 'nothing')}; "
        "no step for a minute, no message on the broker and no dead letter",
        "a message that is being handled, waits for a retry, or is a dead letter",
    )


TOOK_MONEY = ("AUTHORIZED", "PROCESSED", "REFUNDED")
"""The states of a payment for which money was reserved on the card, or taken."""


def paid_through(records: OrderRecords) -> str | None:
    """Return the source of the money: simulated (the gateway), stripe or retainer; None if none was taken."""
    payment = records.payment or {}
    if payment.get("status") not in TOOK_MONEY or payment.get("transactionId") == NO_CHARGE:
        return None
    if from_retainer(payment):
        return "retainer"
    at_stripe = str(payment.get("transactionId")).startswith(STRIPE_CHARGE)
    return "stripe" if at_stripe else "simulated"


def from_retainer(payment: Document) -> bool:
    """Return whether the payment is from a retainer, or was meant to be."""
    return payment.get("retainerId") is not None


# --- The rules. ---


def _without_order(records: OrderRecords) -> Iterator[Violation]:
    if is_returned(records):
        return
    expected = "an order with this id, or everything returned: `ordersaga order release`"
    for row in PARTICIPANT_RECORDS:
        if (state := row.state(records.by_participant)) is not None:
            invariant = 7 if row.is_released(records.by_participant) else 2
            found = f"a {row.noun} ({state}) and no order"
            yield records.violation(invariant, f"{row.noun} without order", found, expected)
    if records.charge is not None:
        found = f"a charge ({charge_text(records.charge)}) and no order"
        yield records.violation(2, "charge without order", found, expected)
    # Older releases deleted cancelled orders without their intents: one that holds no money is harmless.
    if holds_money(intent := intent_as_charge(records.intent)):
        found = f"a charge ({charge_text(intent)}) and no order"
        yield records.violation(2, "charge without order", found, expected)
    yield from servers.without_order(records)


def _adds_up(records: OrderRecords, order: Document, _now: datetime) -> Iterator[Violation]:
    """Check that items, total, payment and charge agree on the amount."""
    total = order.get("totalAmount")
    particulars = order.get("particulars", {})
    items = sum(item.get("quantity", 0) * item.get("price", 0) for item in order.get("items", ()))
    discounts = sum(discount.get("amount", 0) for discount in particulars.get("discounts", ()))
    added_up = items - discounts + particulars.get("shippingAmount", 0)
    if added_up != total:
        expected = f"{added_up}, the sum of its items, less discounts, plus shipping"
        yield records.violation(2, "total", f"totalAmount {total}", expected)
    # The tombstone of a refund that overtook its order has no amount; nor has a key that was closed uncharged.
    for name, record in (("payment", records.payment), ("charge", records.charge), ("charge", records.intent)):
        if record is None or "amount" not in record:
            continue
        if (record["amount"], record.get("currency")) != (total, order.get("currency")):
            found = f"{name} of {record['amount']} {record.get('currency')}"
            yield records.violation(2, f"{name} amount", found, f"{total} {order.get('currency')}, the order's total")


def _charge_matches_payment(records: OrderRecords, _order: Document, _now: datetime) -> Iterator[Violation]:
    """Check that a payment that took money has exactly one charge, at its gateway.

    For Stripe, our own records are compared; Stripe itself is not asked. Payments from retainers are judged by the
    journal (invariant 5).
    """
    payment = records.payment
    if payment is None or payment.get("status") not in TOOK_MONEY:
        return
    charges, through, transaction = _charges(records), paid_through(records), payment.get("transactionId")
    for gateway, charge in charges.items():
        if gateway != through and holds_money(charge):
            found = f"paid through {through or 'nothing'} as {transaction}, at the gateway {charge_text(charge)}"
            yield records.violation(2, "charged twice", found, "no charge at another gateway")
    if through in charges:
        yield from _paid_by(charges[through], payment, records)
    elif through is None and payment.get("amount"):
        yield records.violation(2, "charge", f"{payment['amount']} was not charged", "a charge of that amount")


def _paid_by(charge: Document | None, payment: Document, records: OrderRecords) -> Iterator[Violation]:
    transaction = payment.get("transactionId")
    if payment["status"] == AUTHORIZED and has_expired(charge) and (charge or {}).get("chargeId") == transaction:
        return  # the order is not captured, and an operator decides
    if charge is None or charge.get("outcome") in NOT_CHARGED or charge.get("chargeId") != transaction:
        found = f"payment {payment['status']} as {transaction}, at the gateway {charge_text(charge)}"
        yield records.violation(2, "charge", found, f"the gateway's charge {transaction}")
    elif payment["status"] == "PROCESSED" and charge.get("outcome") == AUTHORIZED:
        found = f"payment PROCESSED, at the gateway {charge_text(charge)}"
        yield records.violation(2, "capture", found, "the charge captured")
    elif payment["status"] == "REFUNDED" and holds_money(charge):
        found = f"payment REFUNDED, at the gateway {charge_text(charge)}"
        yield records.violation(2, "refund", found, "the charge refunded")


def _is_paid_as_ordered(records: OrderRecords, order: Document, _now: datetime) -> Iterator[Violation]:
    """Check that the money came from the card or retainer that the customer chose."""
    asked, payment = order.get("payment"), records.payment or {}
    if asked is None or payment.get("status") not in TOOK_MONEY:
        return
    ordered = asked.get("retainerId") or "" if asked.get("method") == "retainer" else None
    if (paid := payment.get("retainerId")) != ordered:
        yield records.violation(2, "payment method", f"paid {_method(paid)}", f"paid {_method(ordered)}, as ordered")


def _holds_what_it_needs(records: OrderRecords, order: Document, _now: datetime) -> Iterator[Violation]:
    """Check that an order that succeeds, or whose money is held for a decision, has what every participant did."""
    if not _needs_everything(order):
        return
    status = order.get("status")
    needed = {row: _needed_states(row, order) for row in PARTICIPANT_RECORDS}
    if any(row.state_in(order) not in states for row, states in needed.items()):
        expected = " and ".join(f"{row.participant.name} {' or '.join(states)}" for row, states in needed.items())
        yield records.violation(_invariant_of(order), "join", f"{status} with {order_states(order)}", expected)
    for row in needed:
        allowed = _allowed_states(row, order)
        if row.state(records.by_participant) not in allowed:
            expected = f"a {' or '.join(allowed)} {row.noun}"
            found = f"{status}, and {_has(row, records)}"
            yield records.violation(_invariant_of(order), row.participant.name, found, expected)


def _holds_ordered_units(records: OrderRecords, order: Document, _now: datetime) -> Iterator[Violation]:
    """Check that the reservation of such an order is of what was ordered."""
    reservation = records.reservation or {}
    if not _needs_everything(order) or not keeps_units(reservation):
        return
    if (held := _units(reservation)) != (ordered := _units(order)):
        yield records.violation(_invariant_of(order), "reserved units", f"{held} reserved", f"{ordered}, as ordered")


def _holds_its_money(records: OrderRecords, order: Document, _now: datetime) -> Iterator[Violation]:
    """Check that the money of such an order was taken and not returned."""
    if not _needs_everything(order) or (records.payment or {}).get("status") not in PAYMENT.done_states:
        return
    if order.get("totalAmount") and paid_through(records) != "retainer":
        charge = _charges(records)[paid_through(records) or "simulated"]
        if holds_nothing(charge) and not (is_committed(order) and has_expired(charge)):
            found = f"{order.get('status')}, and at the gateway {charge_text(charge)}"
            yield records.violation(_invariant_of(order), "money", found, "a charge without a refund")


def _is_not_captured_early(records: OrderRecords, order: Document, _now: datetime) -> Iterator[Violation]:
    """Check that a card that is to be captured on fulfilment was not charged before."""
    if _may_be_captured(order) or not (records.payment or {}).get("captureOnConfirm"):
        return
    for charge in _charges(records).values():
        if charge is not None and charge.get("outcome") == CHARGED and holds_money(charge):
            found = f"{order.get('status')}, and at the gateway {charge_text(charge)}"
            yield records.violation(2, "captured early", found, "only authorised until the order is fulfilled")


def _is_compensated(records: OrderRecords, order: Document, _now: datetime) -> Iterator[Violation]:
    """Check that a settled order that did not succeed holds nothing."""
    status = order.get("status")
    if status not in ("CANCELLED", "FAILED") or not order.get("settled"):
        return
    over = f"{status} and settled"
    if any(row.state_in(order) not in row.participant.holds_nothing for row in PARTICIPANT_RECORDS):
        found = f"{over} with {order_states(order)}"
        yield records.violation(4, "settled", found, "settled only once every compensation is answered")
    for row in PARTICIPANT_RECORDS:
        if not row.is_released(records.by_participant):
            expected = f"a {' or '.join(sorted(row.participant.holds_nothing))} {row.noun}"
            yield records.violation(2, f"{row.participant.name} held", f"{over}, and {_has(row, records)}", expected)
    for charge in filter(holds_money, _charges(records).values()):
        found = f"{over}, and at the gateway {charge_text(charge)}"
        yield records.violation(2, "money held", found, "no charge, or a refunded one")


def _ends_once(records: OrderRecords, order: Document, _now: datetime) -> Iterator[Violation]:
    """Check that the order ends once, and is settled when nothing more can happen."""
    status, settled = order.get("status"), order.get("settled")
    ends = {entry.get("status") for entry in order.get("history", ())} & {"CONFIRMED", "COMPLETED", "CANCELLED"}
    if is_delivered(order):
        ends.discard("CONFIRMED")
    if len(ends) > 1:
        yield records.violation(4, "two ends", f"a history with {' and '.join(sorted(ends))}", "one end")
    waits = is_delivered(order) or is_committed(order) or refunds.is_waiting(order)
    if status in ("CONFIRMED", "COMPLETED") and not settled and not waits:
        yield records.violation(4, "not settled", f"{status} and not settled", "settled")
    if status in ("PENDING", "PROVISIONING") and settled:
        yield records.violation(4, "settled", f"{status} and settled", "not settled before it ends")
    if status not in (*SUCCEEDING, "PENDING", "CANCELLED", "FAILED"):
        yield records.violation(4, "status", f"status {status!r}", "one of the statuses of an order")


def _answers_are_joined(records: OrderRecords, order: Document, _now: datetime) -> Iterator[Violation]:
    """Check that the last answer moved the order in the same write."""
    if order.get("status") == "PENDING" and _all_succeeded(order):
        expected = "CONFIRMED or PROVISIONING once all answers have come"
        yield records.violation(4, "join", f"PENDING with {order_states(order)}", expected)


def _in_time(records: OrderRecords, order: Document, now: datetime) -> Iterator[Violation]:
    """Check that no order is without a step for too long."""
    status, deadline, updated = order.get("status"), time_of(order, "deadline"), time_of(order, "updatedAt")
    if deadline is None or updated is None:
        yield records.violation(4, "times", "no deadline or no updatedAt", "both")
    elif status == "PENDING" and now > deadline + LATE:
        found = f"PENDING at {time_text(now)}"
        yield records.violation(4, "deadline", found, f"cancelled at its deadline, {time_text(deadline)}")
    elif (
        servers.needs_message_about_job(records)
        and now > (last := servers.last_step(records) or updated) + PROVISIONING
    ):
        found = f"{status}, and provisioning has {(records.job or {}).get('state', 'no job')}, since {time_text(last)}"
        yield records.violation(4, "provisioning", found, "an active job, or the outcome of its job")
    elif not order.get("settled") and now > updated + COMPENSATION and (kind := _unfinished(order)):
        found = f"{status} and not settled, with {order_states(order)}, since {time_text(updated)}"
        yield records.violation(4, kind, found, f"settled within {COMPENSATION.seconds} s")


def _hold_ends(records: OrderRecords, order: Document, now: datetime) -> Iterator[Violation]:
    """Check that the money of a FAILED order is held until a known time, and no longer."""
    if not is_held(order):
        return
    ends = time_of(order, "dueAt")
    if ends is None:
        yield records.violation(2, "hold", "FAILED, its money held indefinitely", "a time at which the hold ends")
    elif now > ends + LATE:
        yield records.violation(
            2, "hold", f"FAILED, its money still held at {time_text(now)}", f"compensated at {time_text(ends)}"
        )


def _is_published(records: OrderRecords, order: Document, now: datetime) -> Iterator[Violation]:
    """Check that a sweep has published the messages that a crash left unpublished."""
    expected = f"published by the sweep within {UNPUBLISHED.seconds} s"
    due = time_of(order, "dueAt")
    if order.get("unpublished") and (due is None or now > due + UNPUBLISHED):
        found = f"{order.get('status')}, its messages unpublished although due at {time_text(due)}"
        yield records.violation(7, "order unpublished", found, expected)
    if records.payment is not None and records.payment.get("unpublished"):
        updated = time_of(records.payment, "updatedAt")
        if updated is None or now > updated + UNPUBLISHED:
            found = f"payment {records.payment.get('status')}, its answer unpublished since {time_text(updated)}"
            yield records.violation(7, "payment unpublished", found, expected)


Rule = Callable[[OrderRecords, Document, datetime], Iterator[Violation]]

RULES: tuple[Rule, ...] = (
    _adds_up,
    _charge_matches_payment,
    _is_paid_as_ordered,
    _holds_what_it_needs,
    _holds_ordered_units,
    _holds_its_money,
    _is_not_captured_early,
    _is_compensated,
    _ends_once,
    _answers_are_joined,
    _in_time,
    _hold_ends,
    _is_published,
    *refunds.RULES,
    *slots.RULES,
    *servers.RULES,
)


# --- Helpers of the rules. ---


def _needs_everything(order: Document) -> bool:
    """Return whether the order succeeds, or waits for a decision with everything held."""
    return order.get("status") in SUCCEEDING or is_held(order)


def _may_be_captured(order: Document) -> bool:
    """Return whether the order has all that its card is captured for, or may have had it."""
    if order.get("status") == "FAILED":
        return order.get("fulfilment") == "goods" or order.get("provisioningStatus") == "COMPLETED"
    return order.get("status") in (*FULFILLED, "CANCELLED")


def _invariant_of(order: Document) -> int:
    """Return the invariant by which such an order holds everything."""
    return 2 if order.get("status") == "FAILED" else 3


def _needed_states(row: ParticipantRecord, order: Document) -> tuple[str, ...]:
    """Return the states in which such an order may have a participant."""
    participant = row.participant
    if order.get("status") in FULFILLED and order.get("settled"):
        return (participant.state_after_delivery() if is_delivered(order) else participant.succeeded,)
    return participant.done_states


def _allowed_states(row: ParticipantRecord, order: Document) -> tuple[str, ...]:
    """Return the states that the record of such a participant may have: it acts before the order hears of it."""
    needed, participant = _needed_states(row, order), row.participant
    return tuple(dict.fromkeys((*needed, participant.state_after_delivery()))) if is_delivered(order) else needed


def _unfinished(order: Document) -> str | None:
    """Return what an order that has ended still waits for; None if it may wait."""
    if is_given_up(order):
        return "compensation"
    if is_delivered(order):
        return "shipping"
    return "capture" if order.get("status") in FULFILLED and is_committed(order) else None


def is_committed(order: Document) -> bool:
    """Return whether a participant has only committed itself to the order."""
    parts = ((row, row.participant.on_fulfilment) for row in PARTICIPANT_RECORDS)
    return any(part and row.state_in(order) == part.committed for row, part in parts)


def _all_succeeded(order: Document) -> bool:
    return all(row.state_in(order) in row.participant.done_states for row in PARTICIPANT_RECORDS)


def _has(row: ParticipantRecord, records: OrderRecords) -> str:
    """Describe what the participant's service has recorded."""
    return f"{row.service.name} has {row.state(records.by_participant) or 'nothing'}"


def _charges(records: OrderRecords) -> dict[str, Document | None]:
    """Return each card gateway's charge for the order."""
    return {"simulated": records.charge, "stripe": intent_as_charge(records.intent)}


def _units(record: Document) -> dict[str, int]:
    units: dict[str, int] = {}
    for item in record.get("items", ()):
        units[item["productId"]] = units.get(item["productId"], 0) + item["quantity"]
    return units


def _method(retainer_id: str | None) -> str:
    return "by card" if retainer_id is None else f"from retainer {retainer_id or 'without id'}"
