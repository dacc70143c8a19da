"""Judges the refunds in part of an order: what was paid, bought and put back, by the records of all services.

The order says what was asked for, the payment and its gateway what was returned, the reservation which units came back.
A refund in progress is judged with tolerance: the other services are one step ahead of the order. Pure.
"""

from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timedelta

from operations.audit.order_records import Document, OrderRecords, time_of, time_text
from operations.audit.report import Violation
from operations.reading.charges import intent_as_charge

LATE = timedelta(seconds=180)
"""The longest time without an answer for a refund in part: all retry levels (156 s) and a margin."""

COUNTED = ("PENDING", "REFUNDED")


def is_waiting(order: Document) -> bool:
    """Return whether a refund of the order waits for an answer, so that the order is not settled."""
    return any(_waits(refund) for refund in _refunds(order))


def _within_what_was_paid(records: OrderRecords, order: Document, _now: datetime) -> Iterator[Violation]:
    refunds, total = _refunds(order), order.get("totalAmount")
    counted = _sum(refund for refund in refunds if refund.get("status") in COUNTED)
    if isinstance(total, int) and counted > total:
        yield records.violation(2, "refunded too much", f"refunds of {counted}", f"at most {total}, what was paid")
    if any(not isinstance(refund.get("amount"), int) or refund["amount"] <= 0 for refund in refunds):
        amounts = [refund.get("amount") for refund in refunds]
        yield records.violation(2, "refund amounts", f"refunds of {amounts}", "whole amounts above 0")
    refunded = _sum(refund for refund in refunds if refund.get("status") == "REFUNDED")
    if (stated := order.get("refundedAmount", 0)) != refunded:
        yield records.violation(2, "refunded amount", f"refundedAmount {stated}", f"{refunded}, the sum of its refunds")
    if len({refund.get("refundId") for refund in refunds}) < len(refunds):
        yield records.violation(2, "refund twice", "two refunds with the same id", "one refund for each id")
    if refunds and order.get("status") not in ("CONFIRMED", "COMPLETED"):
        found = f"{order.get('status')} with refunds in part"
        yield records.violation(2, "refund of the wrong order", found, "CONFIRMED or COMPLETED")


def _within_what_was_bought(records: OrderRecords, order: Document, _now: datetime) -> Iterator[Violation]:
    bought = _units([order])
    refunded = _units(refund for refund in _refunds(order) if refund.get("status") in COUNTED)
    for product, count in refunded.items():
        if count > bought.get(product, 0):
            found = f"{count} units of {product} refunded"
            yield records.violation(2, "refunded units", found, f"at most {bought.get(product, 0)}, as bought")


def _agrees_with_payment(records: OrderRecords, order: Document, _now: datetime) -> Iterator[Violation]:
    parts = {str(part.get("refundId")): part for part in _parts(records.payment)}
    asked = {str(refund.get("refundId")): refund for refund in _refunds(order)}
    for refund_id, part in parts.items():
        refund = asked.get(refund_id)
        if refund is None:
            found = f"a part of {part.get('amount')} ({part.get('status')}) under refund {refund_id}"
            yield records.violation(2, "refund without request", found, "a refund of the order with this id")
        elif part.get("amount") != refund.get("amount"):
            found = f"refund {refund_id} of {refund.get('amount')}, in the payment of {part.get('amount')}"
            yield records.violation(2, "refund amount", found, "the same amount")
    for refund_id, refund in asked.items():
        recorded, status = parts.get(refund_id, {}).get("status"), refund.get("status")
        if status != "PENDING" and recorded != status:
            found = f"refund {refund_id} {status}, in the payment {recorded or 'unknown'}"
            yield records.violation(2, "refund status", found, "the same status")


def _payment_is_not_overdrawn(records: OrderRecords, _order: Document, _now: datetime) -> Iterator[Violation]:
    payment = records.payment or {}
    counted = _sum(part for part in _parts(payment) if part.get("status") in COUNTED)
    if isinstance(paid := payment.get("amount"), int) and counted > paid:
        yield records.violation(2, "payment overdrawn", f"parts of {counted} returned", f"at most {paid}, as charged")


def _agrees_with_gateway(records: OrderRecords, _order: Document, _now: datetime) -> Iterator[Violation]:
    """Check that a card's gateway has returned these parts and no others; retainers are judged by the journal."""
    payment = records.payment or {}
    if payment.get("retainerId") is not None:
        return
    returned: dict[str, object] = {}
    for charge in (records.charge, intent_as_charge(records.intent)):
        returned |= {str(part.get("refundId")): part.get("amount") for part in _parts(charge)}
        given, taken = _sum(_parts(charge)), (charge or {}).get("amount")
        if isinstance(taken, int) and given > taken:
            yield records.violation(2, "charge overdrawn", f"{given} returned of a charge", f"at most {taken}")
    for part in _parts(payment):
        refund_id, amount, status = str(part.get("refundId")), part.get("amount"), part.get("status")
        at_gateway = returned.pop(refund_id, None)
        if status == "REFUNDED" and at_gateway != amount:
            found = f"part {refund_id} of {amount} REFUNDED, at the gateway {at_gateway or 'nothing'}"
            yield records.violation(2, "part not returned", found, "the same amount returned")
        if status == "FAILED" and at_gateway is not None:
            found = f"part {refund_id} FAILED, at the gateway {at_gateway} returned"
            yield records.violation(2, "part returned", found, "nothing returned")
    for refund_id, at_gateway in returned.items():
        found = f"{at_gateway} returned under {refund_id}, which the payment does not know"
        yield records.violation(2, "part without payment", found, "the parts of the payment")


def _agrees_with_stock(records: OrderRecords, order: Document, _now: datetime) -> Iterator[Violation]:
    reservation = records.reservation or {}
    returns = {str(each.get("refundId")): _units([each]) for each in reservation.get("returns") or ()}
    bought, back = _units([order]), _units(reservation.get("returns") or ())
    for product, count in back.items():
        if count > bought.get(product, 0):
            found = f"{count} units of {product} put back"
            yield records.violation(1, "returned units", found, f"at most {bought.get(product, 0)}, as bought")
    for refund in _refunds(order):
        units = returns.pop(str(refund.get("refundId")), None)
        allowed = refund.get("restock") and refund.get("status") == "REFUNDED"
        if units is not None and (not allowed or units != _units([refund])):
            found = f"{units} put back for refund {refund.get('refundId')}"
            expected = str(_units([refund])) if allowed else "nothing, as requested"
            yield records.violation(1, "return", found, expected)
        if units is None and refund.get("returned"):
            found = f"refund {refund.get('refundId')} returned, and nothing put back"
            yield records.violation(1, "return", found, f"{_units([refund])} in the reservation")
    for refund_id in returns:
        found = f"units put back for refund {refund_id}, which the order does not have"
        yield records.violation(1, "return without refund", found, "a refund of the order with this id")


def _is_answered_in_time(records: OrderRecords, order: Document, now: datetime) -> Iterator[Violation]:
    if is_waiting(order) and order.get("settled"):
        yield records.violation(4, "refund settled", "settled while a refund waits", "settled once it is answered")
    # While the payment asks the gateway, the refund waits for that.
    if records.payment is not None and "nextLookupAt" in records.payment:
        return
    for refund in filter(_waits, _refunds(order)):
        updated = time_of(refund, "updatedAt")
        if updated is None or now > updated + LATE:
            found = f"refund {refund.get('refundId')} {refund.get('status')} since {time_text(updated)}"
            yield records.violation(4, "refund late", found, f"answered within {LATE.seconds} s")


Rule = Callable[[OrderRecords, Document, datetime], Iterator[Violation]]

RULES: tuple[Rule, ...] = (
    _within_what_was_paid,
    _within_what_was_bought,
    _agrees_with_payment,
    _payment_is_not_overdrawn,
    _agrees_with_gateway,
    _agrees_with_stock,
    _is_answered_in_time,
)


def _refunds(order: Document) -> list[Document]:
    return list(order.get("refunds") or ())


def _parts(record: Document | None) -> list[Document]:
    return list((record or {}).get("parts") or ())


def _waits(refund: Document) -> bool:
    awaits_stock = refund.get("status") == "REFUNDED" and refund.get("restock") and not refund.get("returned")
    return refund.get("status") == "PENDING" or bool(awaits_stock)


def _sum(records: Iterable[Document]) -> int:
    return sum(record["amount"] for record in records if isinstance(record.get("amount"), int))


def _units(records: Iterable[Document]) -> dict[str, int]:
    units: dict[str, int] = {}
    for record in records:
        for item in record.get("items") or ():
            units[item["productId"]] = units.get(item["productId"], 0) + item["quantity"]
    return units
