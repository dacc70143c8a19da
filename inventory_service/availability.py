"""The delivery slots that can be booked at a moment, given the rules and the recorded slots. Pure."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import lru_cache
from typing import NamedTuple

from inventory_service.stock import Booking, Slot
from inventory_service.timetable import Opening, Rules, opening_at, slot_id, start_of, too_near, visible_at
from shared.clock import to_rfc3339
from shared.money import to_json_number

AUTO = "auto"
"""Asks for the earliest slot that has room."""


class SlotRequest(NamedTuple):
    """The slot that an order asks for, an id or AUTO, and the price of the whole order."""

    slot: str
    price: int


@dataclass(frozen=True, slots=True)
class SlotAvailability:
    """All known slots at one moment, by id; `offered` are those that can be booked, by start."""

    rules: Rules
    now: datetime
    slots: Mapping[str, Slot] = field(default_factory=dict)
    offered: Sequence[str] = ()
    until: datetime | None = None
    """The end of the last slot within the horizon."""

    def held(self) -> dict[str, Slot]:
        """Return the slots with room taken by a pending move, by order: the reservation may not exist yet."""
        return {
            order_id: slot
            for slot in self.slots.values()
            for order_id, change in slot.pending_moves.items()
            if change <= 0
        }

    def booking(self, slot: Slot, price: int) -> Booking:
        """Build the booking of an order that gets room in the slot."""
        return Booking(slot.id, slot.start, visible_at(self.rules, slot.start, self.now), price)

    def choose(self, request: SlotRequest, room: Callable[[Slot], int], max_room: Callable[[Slot], int]) -> Slot | str:
        """Return the slot to take or to wait for, or the reason why there is none.

        `room` is the room of a slot at the order's turn, `max_room` the room if everything comes back that may.
        """
        slots: Iterable[Slot]
        if request.slot == AUTO:
            slots = [self.slots[identifier] for identifier in self.offered]
        elif request.slot in self.offered:
            slots = [self.slots[request.slot]]
        else:
            return self._not_offered(request.slot)
        # A later slot that has room now is better than an earlier one that may get some.
        for how_much in (room, max_room):
            for slot in slots:
                if request.price <= how_much(slot):
                    return slot
        return self._no_room(request, room)

    def _no_room(self, request: SlotRequest, room: Callable[[Slot], int]) -> str:
        price = to_json_number(request.price)
        if request.slot != AUTO:
            slot = self.slots[request.slot]
            free, capacity = to_json_number(max(0, room(slot))), to_json_number(slot.capacity)
            return f"Delivery {request.slot} has no room for {price}: {free} of {capacity} is free"
        until = to_rfc3339(self.until) if self.until is not None else to_rfc3339(self.now)
        reason = f"No delivery slot with room for {price} until {until}"
        if not self.offered:
            return f"{reason}: none is on offer"
        largest = max(self.slots[identifier].capacity for identifier in self.offered)
        return f"{reason}: none takes more than {to_json_number(largest)}" if request.price > largest else reason

    def _not_offered(self, identifier: str) -> str:
        start = start_of(identifier)
        known = self.slots.get(identifier)
        if known is not None and known.disabled:
            return f"Delivery {identifier} is disabled"
        opening = opening_at(self.rules, start) if start is not None else None
        if start is None or opening is None:
            return f"There is no delivery {identifier}: by the opening hours none starts then"
        if start <= self.now:
            return f"Delivery {identifier} began at {to_rfc3339(start)}"
        if self.until is not None and start >= self.until:
            return f"Delivery {identifier} is too far ahead: slots until {to_rfc3339(self.until)} can be booked"
        if too_near(self.rules, opening, self.now):
            return f"Delivery {identifier} is too near: it ends in less than {self.rules.cutoff} minutes"
        return f"Delivery {identifier} is not on offer: another slot that is booked takes some of its time"


def build_availability(
    rules: Rules, now: datetime, times: Sequence[Opening], recorded: Sequence[Slot]
) -> SlotAvailability:
    """Combine the recorded slots with those of the horizon (`times`) that have not been booked yet.

    A booked slot keeps its times when the rules change. A slot of the new timetable that overlaps it is not offered,
    because nobody can deliver in both at once.
    """
    empty = _empty_slots(rules, tuple(times))
    slots = {**empty, **{slot.id: apply_rules(slot, rules) for slot in recorded}}
    offered = [identifier for identifier in empty if not slots[identifier].disabled]
    in_the_way = [slot for slot in slots.values() if slot.reserved and not _follows_timetable(slot, empty)]
    if in_the_way:
        offered = [identifier for identifier in offered if not _is_overlapped(slots[identifier], in_the_way)]
    return SlotAvailability(rules, now, slots, tuple(offered), times[-1].end if times else None)


@lru_cache(maxsize=4)
def _empty_slots(rules: Rules, times: tuple[Opening, ...]) -> dict[str, Slot]:
    # Cached: the same for every batch of orders until the next slot begins.
    return {opening.slot_id: new_slot(rules, opening) for opening in times}


def _follows_timetable(slot: Slot, empty: Mapping[str, Slot]) -> bool:
    return slot.id in empty and empty[slot.id].end == slot.end


def new_slot(rules: Rules, opening: Opening) -> Slot:
    """Build a slot that has not been recorded yet."""
    capacity = rules.capacity
    return Slot(
        id=slot_id(opening.start),
        version=0,
        created_at=opening.start,
        updated_at=opening.start,
        quantity=capacity,
        supplied=capacity,
        start=opening.start,
        end=opening.end,
    )


def apply_rules(slot: Slot, rules: Rules) -> Slot:
    """Apply the current rules: the capacity unless an operator has set one, the times while the slot is empty."""
    if not slot.adjusted and slot.capacity != rules.capacity:
        slot = slot.with_capacity(rules.capacity)
    if not slot.reserved and not slot.pending_moves:
        opening = opening_at(rules, slot.start)
        slot = replace(slot, end=opening.end) if opening is not None else slot
    return slot


def list_slots(
    rules: Rules, recorded: Sequence[Slot], times: Iterable[Opening], under_way: Sequence[Slot] = ()
) -> Iterator[Slot]:
    """Merge the recorded slots with the empty ones of these times, by start.

    An empty slot is left out if a booked one overlaps it, be it one of these or one that was `under_way` before them.
    """
    waiting = deque(apply_rules(slot, rules) for slot in recorded)
    booked = [slot for slot in (*under_way, *waiting) if slot.reserved]
    for opening in times:
        while waiting and waiting[0].start < opening.start:
            yield waiting.popleft()
        if waiting and waiting[0].start == opening.start:
            yield waiting.popleft()
        elif not _is_overlapped(empty := new_slot(rules, opening), booked):
            yield empty
    yield from waiting


def _is_overlapped(slot: Slot, others: Iterable[Slot]) -> bool:
    return any(other.id != slot.id and other.start < slot.end and slot.start < other.end for other in others)
