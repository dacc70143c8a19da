"""Reserves for a batch of orders: for each all it asks for, or nothing. Why this order of steps: stock.py."""

import asyncio
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from inventory_service import metrics
from inventory_service.allocation import Outcome, Refuse, Request, Reserve, SlotRequest, Wait, allocate, server_of
from inventory_service.availability import SlotAvailability, lay_out
from inventory_service.pending_moves import PendingMoves
from inventory_service.reservations import Reservations
from inventory_service.slots import SlotRules
from inventory_service.stock import (
    Booking,
    Decision,
    Line,
    Reservation,
    Slot,
    Status,
    StockItem,
    may_return,
    settled,
    taken,
)
from inventory_service.stock_items import StockItems
from inventory_service.timetable import is_slot_id, on_offer
from shared.clock import Clock
from shared.failure_points import RESERVATION_RECORDED, STOCK_MOVED, FailurePoint

PATIENCE_SECONDS = 0.5
"""How long an order waits for what others may give back before it is decided over what is free."""
PAUSE_SECONDS = 0.005


@dataclass(frozen=True, slots=True)
class _Snapshot:
    """What a pass decides over: all that is counted and could be taken, and the board if an order wants a slot."""

    counted: Mapping[str, StockItem]
    board: SlotAvailability | None

    def settled(self, marks: PendingMoves) -> "_Snapshot":
        """As it is once what is known about orders has been written into it."""
        counted = {each.id: settled(each, marks.known(each.id)) for each in self.counted.values()}
        if self.board is None:
            return _Snapshot(counted, None)
        slots = {each.id: each for each in counted.values() if isinstance(each, Slot)}
        return _Snapshot(counted, replace(self.board, slots=slots))


class ReservationProcessor:
    """Carries batches of orders to a reservation each; any number of workers may do so at once."""

    def __init__(
        self,
        resources: StockItems,
        reservations: Reservations,
        rules: SlotRules,
        marks: PendingMoves,
        clock: Clock,
        reach: FailurePoint,
        patience: float = PATIENCE_SECONDS,
    ) -> None:
        self._resources = resources
        self._reservations = reservations
        self._rules = rules
        self._marks = marks
        self._clock = clock
        self._reach = reach
        self._patience = patience

    async def reserve(self, orders: Sequence[Request]) -> dict[str, Reservation]:
        """Decide every order, or find out what was decided before; returns the reservations by order.

        When it returns, the reservations are stored, and orders that were refused hold nothing. What is refused to a
        SlotRequest that held nothing is not stored: it may ask again.
        """
        open_orders: dict[str, Request] = {}
        for order in orders:
            open_orders.setdefault(order.order_id, order)
        decided: dict[str, Reservation] = {}
        started = time.monotonic()
        passes = 0
        while open_orders:
            passes += 1
            patient = time.monotonic() < started + self._patience
            now_decided = await self._attempt(list(open_orders.values()), patient=patient)
            decided |= now_decided
            for order_id in now_decided:
                del open_orders[order_id]
        metrics.passes.observe(passes)
        metrics.reserving_seconds.observe(time.monotonic() - started)
        return decided

    async def _attempt(self, orders: list[Request], *, patient: bool) -> dict[str, Reservation]:
        """Go once through all steps; returns what is decided now, which is all unless another worker was in the way."""
        before = await self._read(orders)
        recorded = await self._reservations.read(order.order_id for order in orders)
        owed = self._marks.note_all(before.counted.values(), _decisions(recorded))
        undecided = [order for order in orders if order.order_id not in recorded]
        scene = before.settled(self._marks)
        outcomes = self._allocate(undecided, scene, patient=patient)
        written = await self._take(outcomes, before.counted, scene.counted)
        new = await self._record(undecided, outcomes, scene, written)
        owed |= self._marks.note_all(({**scene.counted, **written}).values(), _decisions(new))
        if owed:
            await self._marks.settle(owed)
        if not new and any(isinstance(outcomes[order.order_id], Wait) for order in undecided):
            await self._wait(scene.counted)
        return recorded | new

    async def _read(self, orders: Sequence[Request]) -> _Snapshot:
        """Read what these orders could take. Ids of slots are left out of the products: nobody orders one by its id."""
        product_ids = {item.product_id for order in orders for item in order.items if not is_slot_id(item.product_id)}
        if all(order.delivery.slot is None for order in orders):
            return _Snapshot(await self._resources.read(product_ids), None)
        products, rules = await asyncio.gather(self._resources.read(product_ids), self._rules.read())
        now = self._clock()
        offered = on_offer(rules, now)
        recorded = await self._resources.read_slots(now, offered[-1].end if offered else now)
        board = lay_out(rules, now, offered, recorded)
        return _Snapshot({**products, **board.slots}, board)

    def _allocate(self, orders: Sequence[Request], scene: _Snapshot, *, patient: bool) -> dict[str, Outcome]:
        returning = {}
        if patient:
            returning = {each.id: may_return(each, self._marks.known(each.id)) for each in scene.counted.values()}
        with metrics.allocation_seconds.time():
            return allocate(orders, scene.counted, returning, scene.board)

    async def _take(
        self, outcomes: Mapping[str, Outcome], before: Mapping[str, StockItem], counted: Mapping[str, StockItem]
    ) -> dict[str, StockItem]:
        """Move the quantities; returns what was written, as it is now."""
        takes: dict[str, dict[str, int]] = {}
        for order_id, outcome in outcomes.items():
            if isinstance(outcome, Reserve):
                for counted_id, count in outcome.take.items():
                    takes.setdefault(counted_id, {})[order_id] = count
        after = {counted_id: taken(counted[counted_id], by_order) for counted_id, by_order in takes.items()}
        stored = await self._resources.write(list(after.values()))
        for counted_id in stored:
            self._marks.removed(before[counted_id], after[counted_id])
        if stored:
            self._reach(STOCK_MOVED)
        return {counted_id: after[counted_id] for counted_id in stored}

    async def _record(
        self,
        orders: Sequence[Request],
        outcomes: Mapping[str, Outcome],
        scene: _Snapshot,
        written: Mapping[str, StockItem],
    ) -> dict[str, Reservation]:
        """Insert the reservations of orders that hold everything or are refused; returns those that are new."""
        decisions = []
        not_stored = {}
        in_doubt = _in_doubt(orders, outcomes, written)
        for order in orders:
            outcome = outcomes[order.order_id]
            if isinstance(outcome, Refuse):
                if _wants_any(order, in_doubt):
                    continue
                refused = self._reservation(order, Status.FAILED, failure_reason=outcome.reason)
                if isinstance(order, SlotRequest) and not _marked(order, scene):
                    not_stored[order.order_id] = refused
                else:
                    decisions.append(refused)
            elif isinstance(outcome, Reserve) and outcome.take.keys() <= written.keys():
                decisions.append(self._reserved(order, scene.counted, outcome.booking))
        existing = await self._reservations.insert(decisions)
        new = {reservation.order_id: reservation for reservation in decisions if reservation.order_id not in existing}
        metrics.count_decisions((new | not_stored).values())
        if new:
            self._reach(RESERVATION_RECORDED)
        return new | not_stored

    async def _wait(self, contested: Mapping[str, StockItem]) -> None:
        """Find out what has become of the orders that others wait for; if nothing yet, pause."""
        holders = {
            order_id
            for counted in contested.values()
            for order_id in counted.moving.keys() - self._marks.known(counted.id).keys()
        }
        decisions = await self._reservations.decisions(holders)
        owed = self._marks.note_all(contested.values(), decisions)
        if owed:
            await self._marks.settle(owed)
        if not decisions:
            await asyncio.sleep(PAUSE_SECONDS)

    def _reserved(self, order: Request, counted: Mapping[str, StockItem], booking: Booking | None) -> Reservation:
        reservation = self._reservation(order, Status.RESERVED)
        return replace(reservation, server=server_of(order, counted), booking=booking)

    def _reservation(self, order: Request, status: Status, failure_reason: str | None = None) -> Reservation:
        now = self._clock()
        lines = tuple(Line(item.product_id, item.quantity, item.price) for item in order.items)
        assignment = order.assignment if isinstance(order, SlotRequest) else None
        return Reservation(order.order_id, status, now, now, lines, failure_reason, assignment=assignment)


def _marked(order: Request, scene: _Snapshot) -> bool:
    return any(order.order_id in counted.moving for counted in scene.counted.values())


def _in_doubt(
    orders: Iterable[Request], outcomes: Mapping[str, Outcome], written: Mapping[str, StockItem]
) -> frozenset[str]:
    """What orders were to get whose writes another worker was faster than: they may get something else, or nothing.

    Whoever was refused because of them is not refused yet, as it may fit into what they leave.
    """
    found: set[str] = set()
    for order in orders:
        outcome = outcomes[order.order_id]
        if isinstance(outcome, Reserve) and not outcome.take.keys() <= written.keys():
            found.update(item.product_id for item in order.items)
            if outcome.booking is not None:
                found.add(outcome.booking.slot_id)
    return frozenset(found)


def _wants_any(order: Request, ids: frozenset[str]) -> bool:
    """Whether the order asks for any of these; one that wants a slot may get any slot."""
    wants_slot = order.delivery.slot is not None and any(map(is_slot_id, ids))
    return wants_slot or any(item.product_id in ids for item in order.items)


def _decisions(reservations: Mapping[str, Reservation]) -> dict[str, Decision]:
    return {order_id: reservation.decision for order_id, reservation in reservations.items()}
