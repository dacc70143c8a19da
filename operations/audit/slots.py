"""Judges delivery slots, the bookings of orders, and those of other systems. Pure: no I/O, no clock.

A slot is counted like a product, in money: its capacity is what was supplied, its load is what was taken, and between
two writes a pending move has the amount (stock.py). An order holds its price in the slot that its reservation names,
and in no other. A capacity may be reduced below the load: `ceiling` is the load at that time.
"""

from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from operations.audit.order_records import Document, OrderRecords, is_given_up, is_held, time_of, time_text
from operations.audit.report import Violation
from operations.audit.stock import (
    StockRecords,
    held_by,
    is_assignment,
    is_decided_long_ago,
    is_hold,
    is_settled_long_ago,
    keeps_units,
    out,
)
from shared.money import to_json_number

AUTO = "auto"
"""The wish of an order that takes the earliest slot with room."""

SUCCEEDING = ("CONFIRMED", "PROVISIONING", "COMPLETED")


class AssignmentRecords(NamedTuple):
    """An assignment by another system, and our order with the same id and its reservation, if they exist."""

    record: Document
    order: Document | None
    reservation: Document | None = None

    def violation(self, kind: str, found: str, expected: str) -> Violation:
        """Return a violation of this assignment."""
        return Violation(2, kind, "assignment", str(self.record["_id"]), found, expected)


def judge(stock: StockRecords, now: datetime) -> list[Violation]:
    """Return every violation of the slot."""
    slot = stock.product
    if slot is None:
        found = f"{money(stock.out)} booked in a slot that does not exist"
        return [stock.violation(1, "unknown slot", found, "a slot with this id")]
    return [*_pending_moves(stock, slot, now), *_load(stock, slot), *_times(stock, slot)]


def load(slot: Document) -> int | None:
    """Return the load by the slot's own figures, in minor units; None if they are not numbers."""
    capacity, free = slot.get("supplied"), slot.get("quantity")
    return capacity - free if isinstance(capacity, int) and isinstance(free, int) else None


def money(amount: int) -> str:
    """Write an amount for people, in major units; a slot has no currency."""
    return f"{to_json_number(amount):,}"


def _load(stock: StockRecords, slot: Document) -> Iterator[Violation]:
    capacity, booked, ceiling = slot.get("supplied"), load(slot), slot.get("ceiling")
    if booked is None or not isinstance(capacity, int) or not isinstance(ceiling, int | None):
        found = f"capacity {capacity!r}, room {slot.get('quantity')!r}, ceiling {ceiling!r}"
        yield stock.violation(1, "counts", found, "whole numbers")
        return
    if booked != (held := out(stock)):
        found = f"a load of {money(booked)}, while its orders add up to {money(held)}"
        yield stock.violation(1, "conservation", found, "a load equal to the sum of its orders' prices")
    if booked > max(capacity, ceiling or 0):
        lowered = "" if ceiling is None else f", or {money(ceiling)}, the load when the capacity was reduced"
        expected = f"at most {money(capacity)}, its capacity{lowered}"
        yield stock.violation(1, "overbooked", f"a load of {money(booked)}", expected)


def _times(stock: StockRecords, slot: Document) -> Iterator[Violation]:
    start, end = time_of(slot, "start"), time_of(slot, "end")
    if start is None or end is None or end <= start or stock.product_id != f"slot:{int(start.timestamp())}":
        found = f"from {time_text(start)} to {time_text(end)}"
        yield stock.violation(1, "times", found, "the start that its id names, and a later end")


def _pending_moves(stock: StockRecords, slot: Document, now: datetime) -> Iterator[Violation]:
    """Yield the pending moves that hold room although their order is settled, has another slot, or does not exist."""
    for holder, change in (slot.get("moving") or {}).items():
        reservation = stock.reservations.get(holder)
        if is_assignment(holder) or is_hold(holder):
            name, decided = holder, is_decided_long_ago(reservation, now)
        elif holder in stock.orders:
            name, decided = f"order {holder}", is_settled_long_ago(stock.orders[holder], now)
        else:
            found = f"a pending move of {money(-change)} for order {holder}, which does not exist"
            yield stock.violation(2, "pending move", found, "pending moves of orders only")
            continue
        if change < 0 and decided and not held_by(reservation, stock.product_id):
            found = f"a pending move of {money(-change)} for {name}, which {_has_instead(reservation)}"
            yield stock.violation(2, "pending move", found, "room held only for the orders in this slot")


def _has_instead(reservation: Document | None) -> str:
    slot = (reservation or {}).get("slot") or {}
    if keeps_units(reservation) and slot.get("slotId"):
        return f"has {slot['slotId']}"
    return "is settled and has no slot"


# --- The rule for an order. ---


def _has_its_slot(records: OrderRecords, order: Document, _now: datetime) -> Iterator[Violation]:
    """Check that an order that succeeds, or whose money is held, has the slot that it asked for, at its price."""
    status, reservation = order.get("status"), records.reservation or {}
    if (status not in SUCCEEDING and not is_held(order)) or not keeps_units(reservation):
        return
    invariant = 2 if status == "FAILED" else 3
    wish, booking = (order.get("delivery") or {}).get("slot"), reservation.get("slot") or {}
    has = booking.get("slotId")
    if (wish is None) != (has is None) or (wish not in (None, AUTO) and wish != has):
        expected = {None: "no slot, as ordered", AUTO: "a slot, as ordered"}.get(wish, f"{wish}, as ordered")
        yield records.violation(invariant, "slot", f"{status} with {has or 'no slot'}", expected)
    if order.get("slot") != has:
        found = f"an order with {order.get('slot') or 'no slot'}"
        yield records.violation(invariant, "slot of the order", found, f"{has or 'none'}, as in its reservation")
    if has is not None and booking.get("price") != (total := order.get("totalAmount")):
        yield records.violation(
            invariant, "slot price", f"{booking.get('price')} booked in {has}", f"{total}, the order's total"
        )


Rule = Callable[[OrderRecords, Document, datetime], Iterator[Violation]]

RULES: tuple[Rule, ...] = (_has_its_slot,)


# --- Assignments by other systems. ---


def judge_assignment(assignment: AssignmentRecords, now: datetime) -> Iterator[Violation]:
    """Yield the violations of an assignment; only the state of our own orders is known."""
    record, order = assignment.record, assignment.order
    if record.get("status") != "RESERVED":
        return
    slot_id = (record.get("slot") or {}).get("slotId")
    if slot_id is None:
        yield assignment.violation("assignment without slot", "RESERVED without a slot", "a slot, or RELEASED")
    if order is not None and is_given_up(order) and is_settled_long_ago(order, now):
        found = f"RESERVED in {slot_id}, although its order {order['_id']} is {order.get('status')} and settled"
        yield assignment.violation("assignment held", found, "released with its order")
    if slot_id is not None:
        yield from _two_slots(assignment, slot_id, now)


def _two_slots(assignment: AssignmentRecords, slot_id: str, now: datetime) -> Iterator[Violation]:
    """Yield an order with both a reservation and an assignment; whichever came second is released at once."""
    record, own = assignment.record, assignment.reservation or {}
    has = (own.get("slot") or {}).get("slotId")
    if not keeps_units(own) or has is None:
        return
    if is_decided_long_ago(own, now) and is_decided_long_ago(record, now):
        found = f"{has} by its reservation and {slot_id} by {record['_id']}"
        yield Violation(2, "two slots", "order", str(own["_id"]), found, "one slot")


def two_assignments(order_id: str, number: int, assignments: Sequence[Any]) -> Violation:
    """Return the violation of an order that has several assignments, these among them."""
    found = f"{number} assignments, including {' and '.join(map(str, assignments))}"
    return Violation(2, "two assignments", "order", order_id, found, "one slot")
