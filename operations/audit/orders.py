"""Judges one order by everything that the services have recorded under its id. Pure: no I/O, no clock.

Each rule is a function from the case to what is wrong with it; RULES at the end is the list. An order on its way is
wrong only if it is not where it could be by now: what the services do in two steps is not judged between them.
"""

from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import NamedTuple

from operations.audit import servers, slots
from operations.audit.order_records import Document, OrderRecords, in_words, is_given_up, is_held, moment, status_text
from operations.audit.report import Violation
from operations.reading.charges import NOT_CHARGED, charge_text, holds_money, holds_nothing, intent_as_charge

LATE = timedelta(seconds=30)
"""How long after the end of its time an order may still stand there: alarms ring every second or so."""

COMPENSATION = timedelta(seconds=180)
"""How long an order may stand still while it is compensated: all rungs of the retry ladder (156 s) and a little."""

UNPUBLISHED = timedelta(seconds=60)
"""How long what a crash left unpublished may be overdue: sweeps come every few seconds."""

STILL = timedelta(seconds=60)
"""After so long without any step, an order that waits for an answer has a message somewhere, or has lost it."""

PROVISIONING = timedelta(hours=1)
"""How long an order may stand in PROVISIONING while nobody works for it: time to replay what became a dead letter."""

NO_CHARGE = "no-charge"
"""The transaction id that stands for nothing to pay."""

STRIPE_CHARGE = "pi_"
"""How the transaction ids of charges at Stripe begin."""

GOES_THROUGH = ("CONFIRMED", "PROVISIONING", "COMPLETED")
STOCK_GONE = ("FAILED", "RELEASED")
MONEY_GONE = ("FAILED", "VOIDED", "REFUNDED")


class Standing(NamedTuple):
    """What a judged order counts as."""

    in_flight: bool
    stalled: bool


def judge(case: OrderRecords, now: datetime) -> list[Violation]:
    """Everything that is wrong with the order."""
    if case.order is None:
        return list(_without_order(case))
    return [violation for rule in RULES for violation in rule(case, case.order, now)]


def standing(case: OrderRecords, now: datetime) -> Standing:
    """Whether the order is on its way, and if so whether it waits for an answer and nothing has happened for long."""
    order = case.order
    unheard = servers.waits_for_its_job(case)
    if order is None or order.get("settled") or (is_held(order) and not unheard):
        return Standing(in_flight=False, stalled=False)
    looked_up = case.payment is not None and "nextLookupAt" in case.payment
    worked_for = order.get("status") == "PROVISIONING" and not unheard
    waits = not worked_for and not order.get("unpublished") and not looked_up
    records = [record for record in (order, case.reservation, case.payment, case.job) if record is not None]
    last = max((at for record in records if (at := moment(record, "updatedAt"))), default=None)
    return Standing(in_flight=True, stalled=waits and last is not None and now - last > STILL)


def is_returned(case: OrderRecords) -> bool:
    """Whether the order service does not know the order, and an operator has had all that was held for it returned.

    A made-up `order.created` leaves a reservation and a payment without an order. Once both are given back, nothing is
    wrong any more, but the records stay.
    """
    reservation, payment = case.reservation or {}, case.payment or {}
    given_back = reservation.get("status") == "RELEASED" and payment.get("status") in MONEY_GONE
    held = any(holds_money(charge) for charge in _charges(case).values())
    return case.order is None and case.job is None and given_back and not held


def lost(case: OrderRecords) -> Violation:
    """What a stalled order is when there is no message anywhere that could carry it on."""
    order, stock, money, job = (record or {} for record in (case.order, case.reservation, case.payment, case.job))
    return case.violation(
        7,
        "message lost",
        f"{order.get('status')} with stock {order.get('stockStatus')} and payment {order.get('paymentStatus')}, while "
        f"inventory has {stock.get('status', 'nothing')}, payment has {money.get('status', 'nothing')} and "
        f"provisioning has {job.get('state', 'nothing')}; "
        "no step for a minute, no message on the broker and no dead letter",
        "a message that is handled, waits for its retry, or is a dead letter",
    )


def paid_through(case: OrderRecords) -> str | None:
    """Return where the payment that took money took it: simulated (the gateway), stripe or retainer; None for none."""
    payment = case.payment or {}
    if payment.get("status") not in ("PROCESSED", "REFUNDED") or payment.get("transactionId") == NO_CHARGE:
        return None
    if from_retainer(payment):
        return "retainer"
    at_stripe = str(payment.get("transactionId")).startswith(STRIPE_CHARGE)
    return "stripe" if at_stripe else "simulated"


def from_retainer(payment: Document) -> bool:
    """Whether the payment is, or was to be, from a retainer."""
    return payment.get("retainerId") is not None


# --- The rules. ---


def _without_order(case: OrderRecords) -> Iterator[Violation]:
    if is_returned(case):
        return
    expected = "an order of this id, or all of it returned: `ordersaga order release`"
    if case.reservation is not None:
        invariant = 2 if case.reservation.get("status") == "RESERVED" else 7
        found = f"a reservation ({case.reservation.get('status')}) and no order"
        yield case.violation(invariant, "reservation without order", found, expected)
    if case.payment is not None:
        found = f"a payment ({case.payment.get('status')}) and no order"
        yield case.violation(2, "payment without order", found, expected)
    if case.charge is not None:
        found = f"a charge ({charge_text(case.charge)}) under a key that is no order's"
        yield case.violation(2, "charge without order", found, expected)
    # One that holds nothing may be left by a cleanup from before intents were deleted with their orders.
    if holds_money(intent := intent_as_charge(case.intent)):
        found = f"a charge ({charge_text(intent)}) under a key that is no order's"
        yield case.violation(2, "charge without order", found, expected)
    yield from servers.without_order(case)


def _adds_up(case: OrderRecords, order: Document, _now: datetime) -> Iterator[Violation]:
    """Items, total, payment and charge are about the same money."""
    total = order.get("totalAmount")
    items = sum(item.get("quantity", 0) * item.get("price", 0) for item in order.get("items", ()))
    if items != total:
        yield case.violation(2, "total", f"totalAmount {total}", f"{items}, the sum of its items")
    # A tombstone, of a refund that overtook its order, knows no amount; nor does a key that was closed uncharged.
    for name, record in (("payment", case.payment), ("charge", case.charge), ("charge", case.intent)):
        if record is None or "amount" not in record:
            continue
        if (record["amount"], record.get("currency")) != (total, order.get("currency")):
            found = f"{name} of {record['amount']} {record.get('currency')}"
            yield case.violation(2, f"{name} amount", found, f"{total} {order.get('currency')}, the order's total")


def _charge_is_the_payments(case: OrderRecords, _order: Document, _now: datetime) -> Iterator[Violation]:
    """A payment that took money is about the one charge that its gateway has for it, and no gateway has another.

    For Stripe our own records are compared; Stripe itself is not asked. A payment from a retainer is judged by the
    journal (invariant 5).
    """
    payment = case.payment
    if payment is None or payment.get("status") not in ("PROCESSED", "REFUNDED"):
        return
    charges, through, transaction = _charges(case), paid_through(case), payment.get("transactionId")
    for gateway, charge in charges.items():
        if gateway != through and holds_money(charge):
            found = f"paid through {through or 'nothing'} as {transaction}, at the gateway {charge_text(charge)}"
            yield case.violation(2, "charged twice", found, "no charge at the gateway besides")
    if through in charges:
        yield from _paid_by(charges[through], payment, case)
    elif through is None and payment.get("amount"):
        yield case.violation(2, "charge", f"{payment['amount']} was not charged", "a charge of that amount")


def _paid_by(charge: Document | None, payment: Document, case: OrderRecords) -> Iterator[Violation]:
    transaction = payment.get("transactionId")
    if charge is None or charge.get("outcome") in NOT_CHARGED or charge.get("chargeId") != transaction:
        found = f"payment {payment['status']} as {transaction}, at the gateway {charge_text(charge)}"
        yield case.violation(2, "charge", found, f"the gateway's charge {transaction}")
    elif payment["status"] == "REFUNDED" and holds_money(charge):
        found = f"payment REFUNDED, at the gateway {charge_text(charge)}"
        yield case.violation(2, "refund", found, "the charge refunded")


def _is_paid_as_asked(case: OrderRecords, order: Document, _now: datetime) -> Iterator[Violation]:
    """The money is from where the customer said, be it a card or a retainer."""
    asked, payment = order.get("payment"), case.payment or {}
    if asked is None or payment.get("status") not in ("PROCESSED", "REFUNDED"):
        return
    ordered = asked.get("retainerId") or "" if asked.get("method") == "retainer" else None
    if (paid := payment.get("retainerId")) != ordered:
        yield case.violation(2, "payment method", f"paid {_method(paid)}", f"paid {_method(ordered)}, as ordered")


def _goes_through(case: OrderRecords, order: Document, _now: datetime) -> Iterator[Violation]:
    """An order that goes through, or whose money is held for a decision, has its stock and its payment."""
    status = order.get("status")
    if status not in GOES_THROUGH and not is_held(order):
        return
    invariant = 2 if status == "FAILED" else 3
    if order.get("stockStatus") != "RESERVED" or order.get("paymentStatus") != "PROCESSED":
        found = f"{status} with stock {order.get('stockStatus')} and payment {order.get('paymentStatus')}"
        yield case.violation(invariant, "join", found, "stock RESERVED and payment PROCESSED")
    reservation = case.reservation or {}
    if reservation.get("status") != "RESERVED":
        found = f"{status}, and inventory has {status_text(case.reservation)}"
        yield case.violation(invariant, "stock", found, "a reservation that is RESERVED")
    elif (held := _units(reservation)) != (ordered := _units(order)):
        yield case.violation(invariant, "reserved units", f"{held} reserved", f"{ordered}, as ordered")
    if (case.payment or {}).get("status") != "PROCESSED":
        found = f"{status}, and payment has {status_text(case.payment)}"
        yield case.violation(invariant, "payment", found, "a payment that is PROCESSED")
    elif order.get("totalAmount") and paid_through(case) != "retainer":
        charge = _charges(case)[paid_through(case) or "simulated"]
        if holds_nothing(charge):
            found = f"{status}, and at the gateway {charge_text(charge)}"
            yield case.violation(invariant, "money", found, "a charge that is not refunded")


def _is_compensated(case: OrderRecords, order: Document, _now: datetime) -> Iterator[Violation]:
    """An order that is over and did not go through holds nothing, and never will."""
    status = order.get("status")
    if status not in ("CANCELLED", "FAILED") or not order.get("settled"):
        return
    over = f"{status} and settled"
    if order.get("stockStatus") not in STOCK_GONE or order.get("paymentStatus") not in MONEY_GONE:
        found = f"{over} with stock {order.get('stockStatus')} and payment {order.get('paymentStatus')}"
        yield case.violation(4, "settled", found, "settled only when every compensation is answered")
    if (case.reservation or {}).get("status") not in STOCK_GONE:
        found = f"{over}, and inventory has {status_text(case.reservation)}"
        yield case.violation(2, "stock held", found, "a reservation that is FAILED or RELEASED")
    if (case.payment or {}).get("status") not in MONEY_GONE:
        found = f"{over}, and payment has {status_text(case.payment)}"
        yield case.violation(2, "payment held", found, "a payment that is FAILED, VOIDED or REFUNDED")
    for charge in filter(holds_money, _charges(case).values()):
        found = f"{over}, and at the gateway {charge_text(charge)}"
        yield case.violation(2, "money held", found, "no charge, or a refunded one")


def _ends_once(case: OrderRecords, order: Document, _now: datetime) -> Iterator[Violation]:
    """Exactly one end, and settled when nothing more can happen."""
    status, settled = order.get("status"), order.get("settled")
    ends = {entry.get("status") for entry in order.get("history", ())} & {"CONFIRMED", "COMPLETED", "CANCELLED"}
    if len(ends) > 1:
        yield case.violation(4, "two ends", f"a history with {' and '.join(sorted(ends))}", "one end")
    if status in ("CONFIRMED", "COMPLETED") and not settled:
        yield case.violation(4, "not settled", f"{status} and not settled", "settled")
    if status in ("PENDING", "PROVISIONING") and settled:
        yield case.violation(4, "settled", f"{status} and settled", "not settled before it has ended")
    if status not in (*GOES_THROUGH, "PENDING", "CANCELLED", "FAILED"):
        yield case.violation(4, "status", f"status {status!r}", "one of the statuses of an order")


def _answers_are_joined(case: OrderRecords, order: Document, _now: datetime) -> Iterator[Violation]:
    """The second answer carries the order on in the same write."""
    answers = (order.get("status"), order.get("stockStatus"), order.get("paymentStatus"))
    if answers == ("PENDING", "RESERVED", "PROCESSED"):
        found = "PENDING with stock RESERVED and payment PROCESSED"
        yield case.violation(4, "join", found, "CONFIRMED or PROVISIONING once both answers are there")


def _in_time(case: OrderRecords, order: Document, now: datetime) -> Iterator[Violation]:
    """No order stands still for longer than it may."""
    status, deadline, updated = order.get("status"), moment(order, "deadline"), moment(order, "updatedAt")
    if deadline is None or updated is None:
        yield case.violation(4, "times", "no deadline or no updatedAt", "both")
    elif status == "PENDING" and now > deadline + LATE:
        found = f"PENDING at {in_words(now)}"
        yield case.violation(4, "deadline", found, f"cancelled at its deadline, {in_words(deadline)}")
    elif servers.waits_for_its_job(case) and now > (last := servers.last_step(case) or updated) + PROVISIONING:
        found = f"{status}, and provisioning has {(case.job or {}).get('state', 'no job')}, since {in_words(last)}"
        yield case.violation(4, "provisioning", found, "a job at work, or its end")
    elif is_given_up(order) and not order.get("settled") and now > updated + COMPENSATION:
        held = f"stock {order.get('stockStatus')} and payment {order.get('paymentStatus')}"
        found = f"{status} and not settled, with {held}, since {in_words(updated)}"
        yield case.violation(4, "compensation", found, f"settled within {COMPENSATION.seconds} s")


def _hold_ends(case: OrderRecords, order: Document, now: datetime) -> Iterator[Violation]:
    """The money of a FAILED order is held until a known moment, and not longer."""
    if not is_held(order):
        return
    ends = moment(order, "dueAt")
    if ends is None:
        yield case.violation(2, "hold", "FAILED, its money held without an end", "an end of the hold")
    elif now > ends + LATE:
        yield case.violation(
            2, "hold", f"FAILED, its money held at {in_words(now)}", f"compensated at {in_words(ends)}"
        )


def _is_published(case: OrderRecords, order: Document, now: datetime) -> Iterator[Violation]:
    """What a crash left unpublished is published by a sweep."""
    expected = f"published by the sweep within {UNPUBLISHED.seconds} s"
    due = moment(order, "dueAt")
    if order.get("unpublished") and (due is None or now > due + UNPUBLISHED):
        found = f"{order.get('status')}, its messages unpublished though due at {in_words(due)}"
        yield case.violation(7, "order unpublished", found, expected)
    if case.payment is not None and case.payment.get("unpublished"):
        updated = moment(case.payment, "updatedAt")
        if updated is None or now > updated + UNPUBLISHED:
            found = f"payment {case.payment.get('status')}, its answer unpublished since {in_words(updated)}"
            yield case.violation(7, "payment unpublished", found, expected)


Rule = Callable[[OrderRecords, Document, datetime], Iterator[Violation]]

RULES: tuple[Rule, ...] = (
    _adds_up,
    _charge_is_the_payments,
    _is_paid_as_asked,
    _goes_through,
    _is_compensated,
    _ends_once,
    _answers_are_joined,
    _in_time,
    _hold_ends,
    _is_published,
    *slots.RULES,
    *servers.RULES,
)


# --- What the rules are made of. ---


def _charges(case: OrderRecords) -> dict[str, Document | None]:
    """Return what each card gateway has charged for the order."""
    return {"simulated": case.charge, "stripe": intent_as_charge(case.intent)}


def _units(record: Document) -> dict[str, int]:
    units: dict[str, int] = {}
    for item in record.get("items", ()):
        units[item["productId"]] = units.get(item["productId"], 0) + item["quantity"]
    return units


def _method(retainer_id: str | None) -> str:
    return "by card" if retainer_id is None else f"from retainer {retainer_id or 'of no name'}"
