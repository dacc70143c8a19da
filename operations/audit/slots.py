"""Judges delivery slots, what orders have of them, and what other systems have booked. Pure: no I/O, no clock.

A slot is counted like a product, in money: its capacity is what was supplied, its load what has left the quantity, and
between two writes a mark says how much it is (stock.py). An order holds its price in the slot that its reservation
names, and in no other. A capacity may be lowered beneath the load: `ceiling` is the load that was left then.
"""

from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from operations.audit.order_records import Document, OrderRecords, in_words, is_given_up, is_held, moment
from operations.audit.report import Violation
from operations.audit.stock import Shelf, held_by, is_assignment, is_decided_long_ago, is_settled_long_ago, out
from shared.money import to_json_number

AUTO = "auto"
"""What an order asks for that takes the earliest slot with room."""

GOES_THROUGH = ("CONFIRMED", "PROVISIONING", "COMPLETED")


class Assigned(NamedTuple):
    """An assignment by another system, and the order of ours that has the same id, with its reservation, if any."""

    record: Document
    order: Document | None
    reservation: Document | None = None

    def violation(self, kind: str, found: str, expected: str) -> Violation:
        """A violation of this assignment."""
        return Violation(2, kind, "assignment", str(self.record["_id"]), found, expected)


def judge(shelf: Shelf, now: datetime) -> list[Violation]:
    """Everything that is wrong with the slot."""
    slot = shelf.product
    if slot is None:
        found = f"{money(shelf.reserved)} booked in a slot that does not exist"
        return [shelf.violation(1, "unknown slot", found, "a slot of this id")]
    return [*_marks(shelf, slot, now), *_load(shelf, slot), *_times(shelf, slot)]


def load(slot: Document) -> int | None:
    """What is booked by the slot's own figures, in minor units; None where they are no numbers."""
    capacity, free = slot.get("supplied"), slot.get("quantity")
    return capacity - free if isinstance(capacity, int) and isinstance(free, int) else None


def money(amount: int) -> str:
    """Write an amount for people, in major units; a slot has no currency."""
    return f"{to_json_number(amount):,}"


def _load(shelf: Shelf, slot: Document) -> Iterator[Violation]:
    capacity, booked, ceiling = slot.get("supplied"), load(slot), slot.get("ceiling")
    if booked is None or not isinstance(capacity, int) or not isinstance(ceiling, int | None):
        found = f"capacity {capacity!r}, room {slot.get('quantity')!r}, ceiling {ceiling!r}"
        yield shelf.violation(1, "counts", found, "whole numbers")
        return
    if booked != (held := out(shelf)):
        found = f"a load of {money(booked)}, while its orders come to {money(held)}"
        yield shelf.violation(1, "conservation", found, "a load that is the sum of its orders' prices")
    if booked > max(capacity, ceiling or 0):
        lowered = "" if ceiling is None else f", or {money(ceiling)}, which was booked when that was lowered"
        expected = f"at most {money(capacity)}, its capacity{lowered}"
        yield shelf.violation(1, "overbooked", f"a load of {money(booked)}", expected)


def _times(shelf: Shelf, slot: Document) -> Iterator[Violation]:
    start, end = moment(slot, "start"), moment(slot, "end")
    if start is None or end is None or end <= start or shelf.product_id != f"slot:{int(start.timestamp())}":
        found = f"from {in_words(start)} to {in_words(end)}"
        yield shelf.violation(1, "times", found, "a start as its id has it, and a later end")


def _marks(shelf: Shelf, slot: Document, now: datetime) -> Iterator[Violation]:
    """Whose room is held in this slot although the order is over, has another one, or does not exist."""
    for holder, change in (slot.get("moving") or {}).items():
        reservation = shelf.reservations.get(holder)
        if is_assignment(holder):
            name, decided = holder, is_decided_long_ago(reservation, now)
        elif holder in shelf.orders:
            name, decided = f"order {holder}", is_settled_long_ago(shelf.orders[holder], now)
        else:
            found = f"room for {money(-change)} marked for order {holder}, which does not exist"
            yield shelf.violation(2, "mark", found, "marks of orders only")
            continue
        if change < 0 and decided and not held_by(reservation, shelf.product_id):
            found = f"room for {money(-change)} held for {name}, which {_has_instead(reservation)}"
            yield shelf.violation(2, "mark", found, "room only for whose slot this is")


def _has_instead(reservation: Document | None) -> str:
    slot = (reservation or {}).get("slot") or {}
    if (reservation or {}).get("status") == "RESERVED" and slot.get("slotId"):
        return f"has {slot['slotId']}"
    return "is over and has no slot"


# --- The rule for an order. ---


def _has_its_slot(case: OrderRecords, order: Document, _now: datetime) -> Iterator[Violation]:
    """An order that goes through, or whose money is held for a decision, has the slot it asked for, for its price."""
    status, reservation = order.get("status"), case.reservation or {}
    if (status not in GOES_THROUGH and not is_held(order)) or reservation.get("status") != "RESERVED":
        return
    invariant = 2 if status == "FAILED" else 3
    wish, booking = (order.get("delivery") or {}).get("slot"), reservation.get("slot") or {}
    has = booking.get("slotId")
    if (wish is None) != (has is None) or (wish not in (None, AUTO) and wish != has):
        expected = {None: "no slot, as none was asked for", AUTO: "a slot, as ordered"}.get(wish, f"{wish}, as ordered")
        yield case.violation(invariant, "slot", f"{status} with {has or 'no slot'}", expected)
    if order.get("slot") != has:
        found = f"an order with {order.get('slot') or 'no slot'}"
        yield case.violation(invariant, "slot told", found, f"{has or 'none'}, which its reservation has")
    if has is not None and booking.get("price") != (total := order.get("totalAmount")):
        yield case.violation(invariant, "slot price", f"{booking.get('price')} booked in {has}", f"{total}, its total")


Rule = Callable[[OrderRecords, Document, datetime], Iterator[Violation]]

RULES: tuple[Rule, ...] = (_has_its_slot,)


# --- Assignments by other systems. ---


def judge_assignment(assigned: Assigned, now: datetime) -> Iterator[Violation]:
    """Judge an assignment; its order is another system's, and so is whether it is over, unless it is one of ours."""
    record, order = assigned.record, assigned.order
    if record.get("status") != "RESERVED":
        return
    slot_id = (record.get("slot") or {}).get("slotId")
    if slot_id is None:
        yield assigned.violation("assignment of nothing", "RESERVED, and names no slot", "a slot, or RELEASED")
    if order is not None and is_given_up(order) and is_settled_long_ago(order, now):
        found = f"RESERVED in {slot_id}, and its order {order['_id']} is {order.get('status')} and settled"
        yield assigned.violation("assignment held", found, "released with its order")
    if slot_id is not None:
        yield from _two_slots(assigned, slot_id, now)


def _two_slots(assigned: Assigned, slot_id: str, now: datetime) -> Iterator[Violation]:
    """Who records second gives the assignment back, at once; so both are old before two slots are wrong."""
    record, own = assigned.record, assigned.reservation or {}
    has = (own.get("slot") or {}).get("slotId")
    if own.get("status") != "RESERVED" or has is None:
        return
    if is_decided_long_ago(own, now) and is_decided_long_ago(record, now):
        found = f"{has} by its reservation and {slot_id} by {record['_id']}"
        yield Violation(2, "two slots", "order", str(own["_id"]), found, "one slot")


def two_assignments(order_id: str, number: int, assignments: Sequence[Any]) -> Violation:
    """An order that has so many assignments at once, these among them."""
    found = f"{number} assignments, {' and '.join(map(str, assignments))} among them"
    return Violation(2, "two assignments", "order", order_id, found, "one slot")
