"""Reserves stock for batches of orders: everything that an order asks for, or nothing.

stock.py explains the order of the steps.
"""

import asyncio
import time
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as Ids
from dataclasses import dataclass, field, replace

from inventory_service import metrics
from inventory_service.allocation import (
    HoldOrder,
    Order,
    Outcome,
    Refuse,
    Reserve,
    SlotOnlyOrder,
    Wait,
    allocate,
    server_specification,
)
from inventory_service.availability import SlotAvailability, build_availability
from inventory_service.pending_moves import PendingMoves
from inventory_service.reservations import Reservations
from inventory_service.slots import SlotRules
from inventory_service.stock import (
    Booking,
    Decision,
    HoldOutcome,
    HoldUse,
    Reservation,
    ReservationLine,
    Slot,
    Status,
    StockItem,
    clear_moves,
    may_return,
    take,
)
from inventory_service.stock_items import StockItems
from inventory_service.timetable import is_slot_id, on_offer
from shared.clock import Clock
from shared.failpoints import HOLD_CLAIMED, RESERVATION_RECORDED, STOCK_MOVED, Failpoint
from shared.repeats import note_repeats

MAX_WAIT_SECONDS = 0.5
"""The longest wait for units that others may return; after it, an order is decided with what is free."""
PAUSE_SECONDS = 0.005


@dataclass(frozen=True, slots=True)
class _Snapshot:
    """The input of one attempt: all items that the orders could take, slots included if any order wants one."""

    items: Mapping[str, StockItem]
    availability: SlotAvailability | None

    def with_moves_cleared(self, pending_moves: PendingMoves, asked: Ids[str], read: Ids[str]) -> "_Snapshot":
        """Apply what is known about orders with pending moves.

        The reservations that were asked for count as they were `read`. One that another task has inserted since then
        is known as well, but its order is about to be decided: without its move it would take its units again.
        """
        unread = asked - read
        items = {}
        for each in self.items.values():
            known = pending_moves.known_statuses(each.id)
            items[each.id] = clear_moves(each, {key: status for key, status in known.items() if key not in unread})
        if self.availability is None:
            return _Snapshot(items, None)
        slots = {each.id: each for each in items.values() if isinstance(each, Slot)}
        return _Snapshot(items, replace(self.availability, slots=slots))


@dataclass(slots=True)
class Claims:
    """The holds that orders have claimed, by order: the ids of their reservations.

    `uses` is what became of the hold that an order named, or was served from.
    """

    by_order: dict[str, set[str]] = field(default_factory=dict)
    uses: dict[str, HoldUse] = field(default_factory=dict)
    searched: set[str] = field(default_factory=set)
    """The orders whose user's other holds were looked for already."""

    def add(self, order_id: str, reservation_ids: Iterable[str], use: HoldUse) -> None:
        """Note the holds that an order has claimed."""
        self.by_order.setdefault(order_id, set()).update(reservation_ids)
        self.uses.setdefault(order_id, use)

    def ids(self) -> set[str]:
        """Return the ids of all claimed holds' reservations."""
        return {each for ids in self.by_order.values() for each in ids}


class ReservationProcessor:
    """Turns batches of orders into reservations; safe with any number of concurrent workers."""

    def __init__(
        self,
        stock_items: StockItems,
        reservations: Reservations,
        rules: SlotRules,
        pending_moves: PendingMoves,
        clock: Clock,
        failpoint: Failpoint,
        max_wait: float = MAX_WAIT_SECONDS,
    ) -> None:
        self._stock_items = stock_items
        self._reservations = reservations
        self._rules = rules
        self._pending_moves = pending_moves
        self._clock = clock
        self._failpoint = failpoint
        self._max_wait = max_wait

    async def reserve(self, orders: Sequence[Order], claims: Claims | None = None) -> dict[str, Reservation]:
        """Decide every order, or find its earlier decision; return the reservations by order.

        `claims` are the holds that orders take over. Before an order is refused for want of stock, it claims the holds
        of its own user, which are added.
        On return the reservations are stored, and refused orders hold nothing. The refusal of a SlotOnlyOrder or a
        HoldOrder that held nothing is not stored: it may be requested again.
        """
        claims = claims if claims is not None else Claims()
        open_orders: dict[str, Order] = {}
        for order in orders:
            open_orders.setdefault(order.order_id, order)
        decided: dict[str, Reservation] = {}
        started = time.monotonic()
        attempts = 0
        # Every lost race means that another worker has made progress, so this ends.
        while open_orders:
            attempts += 1
            may_wait = time.monotonic() < started + self._max_wait
            now_decided = await self._attempt(list(open_orders.values()), claims, may_wait=may_wait)
            decided |= now_decided
            for order_id in now_decided:
                del open_orders[order_id]
        metrics.passes.observe(attempts)
        metrics.reserving_seconds.observe(time.monotonic() - started)
        return decided

    async def _attempt(self, orders: list[Order], claims: Claims, *, may_wait: bool) -> dict[str, Reservation]:
        """Go through all steps once; return the decided orders, which are all unless another worker interfered."""
        # Items first, reservations second: the guards of stock.py depend on this order.
        before = await self._read(orders)
        asked = claims.ids().union(order.order_id for order in orders)
        read = await self._reservations.read(asked)
        recorded = {order.order_id: read[order.order_id] for order in orders if order.order_id in read}
        returning = self._pending_moves.remember_decisions(before.items.values(), _decisions(read))
        note_repeats("stock.reserve", recorded)
        undecided = [order for order in orders if order.order_id not in recorded]
        snapshot = before.with_moves_cleared(self._pending_moves, asked, read.keys())
        outcomes = self._allocate(undecided, snapshot, _claimed(claims, read), may_wait=may_wait)
        outcomes |= await self._claim_own_holds(undecided, outcomes, claims)
        written = await self._take(outcomes, before.items, snapshot.items)
        new = await self._record(undecided, outcomes, snapshot, written, claims)
        returning |= self._pending_moves.remember_decisions(({**snapshot.items, **written}).values(), _decisions(new))
        # Units of refused orders go back before the orders are answered.
        if returning:
            await self._pending_moves.clear(returning)
        if not new and any(isinstance(outcomes[order.order_id], Wait) for order in undecided):
            await self._wait(snapshot.items)
        return recorded | new

    async def _read(self, orders: Sequence[Order]) -> _Snapshot:
        """Read the items that these orders could take. A slot's id among the items is no product, so it is skipped."""
        product_ids = {item.product_id for order in orders for item in order.items if not is_slot_id(item.product_id)}
        if all(order.delivery.slot is None for order in orders):
            return _Snapshot(await self._stock_items.read(product_ids), None)
        products, rules = await asyncio.gather(self._stock_items.read(product_ids), self._rules.read())
        now = self._clock()
        offered = on_offer(rules, now)
        recorded = await self._stock_items.read_slots(now, offered[-1].end if offered else now)
        availability = build_availability(rules, now, offered, recorded)
        return _Snapshot({**products, **availability.slots}, availability)

    async def _claim_own_holds(
        self, orders: Sequence[Order], outcomes: Mapping[str, Outcome], claims: Claims
    ) -> dict[str, Outcome]:
        """Let orders wait that are short of stock, and whose own user holds some: the next attempt gives it to them."""
        waiting: dict[str, Outcome] = {}
        for order in orders:
            outcome = outcomes[order.order_id]
            if not isinstance(outcome, Refuse) or not outcome.is_shortage or order.order_id in claims.searched:
                continue
            if order.user_id is None or isinstance(order, HoldOrder):
                continue
            claims.searched.add(order.order_id)
            product_ids = {item.product_id for item in order.items}
            found = await self._reservations.holds.claim_own(
                order.order_id, order.owner_id, order.user_id, product_ids, any_slot=order.delivery.slot is not None
            )
            if found - claims.by_order.get(order.order_id, set()):
                self._failpoint(HOLD_CLAIMED)
                use = HoldUse(min(found).partition(":")[2], HoldOutcome.TAKEN)
                claims.add(order.order_id, found, use)
                waiting[order.order_id] = Wait()
        return waiting

    def _allocate(
        self,
        orders: Sequence[Order],
        snapshot: _Snapshot,
        claimed: Mapping[str, Sequence[Reservation]],
        *,
        may_wait: bool,
    ) -> dict[str, Outcome]:
        returning = {}
        if may_wait:
            returning = {
                each.id: may_return(each, self._pending_moves.known_statuses(each.id))
                for each in snapshot.items.values()
            }
        with metrics.allocation_seconds.time():
            return allocate(orders, snapshot.items, returning, snapshot.availability, claimed)

    async def _take(
        self, outcomes: Mapping[str, Outcome], before: Mapping[str, StockItem], items: Mapping[str, StockItem]
    ) -> dict[str, StockItem]:
        """Move the units; return the items that were written, with their new values."""
        takes: dict[str, dict[str, int]] = {}
        from_holds: dict[str, dict[str, Mapping[str, int]]] = {}
        for order_id, outcome in outcomes.items():
            if isinstance(outcome, Reserve):
                for item_id, count in outcome.take.items():
                    takes.setdefault(item_id, {})[order_id] = count
                for item_id, by_hold in outcome.from_holds.items():
                    from_holds.setdefault(item_id, {})[order_id] = by_hold
        after = {
            item_id: take(items[item_id], by_order, from_holds.get(item_id, {})) for item_id, by_order in takes.items()
        }
        stored = await self._stock_items.write(list(after.values()))
        for item_id in stored:
            self._pending_moves.forget_cleared(before[item_id], after[item_id])
        if stored:
            self._failpoint(STOCK_MOVED)
        return {item_id: after[item_id] for item_id in stored}

    async def _record(
        self,
        orders: Sequence[Order],
        outcomes: Mapping[str, Outcome],
        snapshot: _Snapshot,
        written: Mapping[str, StockItem],
        claims: Claims,
    ) -> dict[str, Reservation]:
        """Insert the reservations of orders that hold everything or are refused; return the new ones."""
        decisions = []
        not_stored = {}
        contested = _contested_ids(orders, outcomes, written)
        for order in orders:
            outcome = outcomes[order.order_id]
            if isinstance(outcome, Refuse):
                if _wants_any(order, contested):
                    continue
                refused = self._reservation(order, Status.FAILED, failure_reason=outcome.reason)
                if isinstance(order, SlotOnlyOrder | HoldOrder) and not _holds_something(order, snapshot):
                    not_stored[order.order_id] = refused
                else:
                    decisions.append(refused)
            elif isinstance(outcome, Reserve) and outcome.take.keys() <= written.keys():
                decisions.append(self._reserved(order, snapshot.items, outcome.booking))
        if claims.uses:
            decisions = [replace(each, used_hold=claims.uses.get(each.order_id)) for each in decisions]
        existing = await self._reservations.insert(decisions)
        new = {reservation.order_id: reservation for reservation in decisions if reservation.order_id not in existing}
        metrics.count_decisions(each for each in (new | not_stored).values() if each.hold is None)
        if new:
            self._failpoint(RESERVATION_RECORDED)
        return new | not_stored

    async def _wait(self, contested: Mapping[str, StockItem]) -> None:
        """Look up the orders that others wait for; pause if none of them is decided yet."""
        holders = {
            order_id
            for item in contested.values()
            for order_id in item.pending_moves.keys() - self._pending_moves.known_statuses(item.id).keys()
        }
        decisions = await self._reservations.decisions(holders)
        returning = self._pending_moves.remember_decisions(contested.values(), decisions)
        if returning:
            await self._pending_moves.clear(returning)
        if not decisions:
            await asyncio.sleep(PAUSE_SECONDS)

    def _reserved(self, order: Order, items: Mapping[str, StockItem], booking: Booking | None) -> Reservation:
        reservation = self._reservation(order, Status.RESERVED)
        return replace(reservation, server=server_specification(order, items), booking=booking)

    def _reservation(self, order: Order, status: Status, failure_reason: str | None = None) -> Reservation:
        now = self._clock()
        lines = tuple(ReservationLine(item.product_id, item.quantity, item.price or 0) for item in order.items)
        assignment = order.assignment if isinstance(order, SlotOnlyOrder) else None
        return Reservation(
            order.order_id,
            status,
            now,
            now,
            lines,
            failure_reason,
            assignment=assignment,
            owner_id=order.owner_id,
            user_id=order.user_id if order.owner_id is not None else None,
            hold=order.terms if isinstance(order, HoldOrder) else None,
        )


def _claimed(claims: Claims, read: Mapping[str, Reservation]) -> dict[str, list[Reservation]]:
    """Return the claimed holds that still hold something, by order."""
    return {
        order_id: [read[each] for each in sorted(ids) if each in read and read[each].status is Status.RESERVED]
        for order_id, ids in claims.by_order.items()
    }


def _holds_something(order: Order, snapshot: _Snapshot) -> bool:
    return any(order.order_id in item.pending_moves for item in snapshot.items.values())


def _contested_ids(
    orders: Iterable[Order], outcomes: Mapping[str, Outcome], written: Mapping[str, StockItem]
) -> frozenset[str]:
    """Return the items of orders whose writes lost a race: these orders may get something else, or nothing.

    Orders that were refused because of them are decided again, since they may fit into what is left.
    """
    found: set[str] = set()
    for order in orders:
        outcome = outcomes[order.order_id]
        if isinstance(outcome, Reserve) and not outcome.take.keys() <= written.keys():
            found.update(item.product_id for item in order.items)
            if outcome.booking is not None:
                found.add(outcome.booking.slot_id)
    return frozenset(found)


def _wants_any(order: Order, ids: frozenset[str]) -> bool:
    """Return whether the order asks for any of these; an order that asks for a slot may get any slot."""
    wants_slot = order.delivery.slot is not None and any(map(is_slot_id, ids))
    return wants_slot or any(item.product_id in ids for item in order.items)


def _decisions(reservations: Mapping[str, Reservation]) -> dict[str, Decision]:
    return {order_id: reservation.decision for order_id, reservation in reservations.items()}
