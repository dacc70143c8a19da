"""Releases what orders hold, or makes sure that they never hold anything. stock.py explains the order of the steps."""

from collections.abc import Iterable, Mapping, Sequence

from inventory_service.pending_moves import PendingMoves
from inventory_service.reservations import Reservations
from inventory_service.stock import Decision, HoldOutcome, Reservation, Status, StockItem, clear_moves, return_units
from inventory_service.stock_items import StockItems
from shared.clock import Clock
from shared.contracts import ReleaseStock
from shared.failpoints import RESERVATION_RECORDED, STOCK_MOVED, Failpoint


class Releaser:
    """Releases the reservations of batches of orders; safe with any number of concurrent workers."""

    def __init__(
        self,
        stock_items: StockItems,
        reservations: Reservations,
        pending_moves: PendingMoves,
        clock: Clock,
        failpoint: Failpoint,
    ) -> None:
        self._stock_items = stock_items
        self._reservations = reservations
        self._pending_moves = pending_moves
        self._clock = clock
        self._failpoint = failpoint

    async def release(self, commands: Sequence[ReleaseStock]) -> None:
        """Release every order; an unknown order gets a tombstone, which refuses it if it arrives later.

        A slot that another system has assigned to an order is released as well.
        """
        involved = {command.order_id: {item.product_id for item in command.items} for command in commands}
        await self._release_all(dict(involved))
        await self.release_assignments(list(involved))

    async def release_assignments(self, order_ids: Sequence[str]) -> dict[str, Reservation]:
        """Release the slots assigned to these orders; return their latest assignments as read before, by order."""
        if not order_ids:
            return {}
        assignments = await self._reservations.assignments(order_ids)
        held = [each for each in assignments.values() if each.status is Status.RESERVED]
        if held:
            await self._release_all({each.order_id: set(each.holds) for each in held})
        return assignments

    async def release_ended_holds(self, reservation_ids: Iterable[str], *outcomes: HoldOutcome) -> None:
        """Return the units of those of these holds that have ended in one of these ways.

        What an order has taken over of them stays with the order.
        """
        found = await self._reservations.read(reservation_ids)
        ended = {key: each for key, each in found.items() if each.hold is not None and each.hold.outcome in outcomes}
        # What ended holds hold never changes, so each attempt reads no more than their decisions: with a thousand of
        # them, the orders for the same items would otherwise win nearly every race.
        while ended:
            for key in await self._attempt_ended(ended):
                del ended[key]

    async def _attempt_ended(self, ended: Mapping[str, Reservation]) -> set[str]:
        """Go through all steps once for these holds; return those that are done."""
        # Items first, reservations second: the guards of stock.py depend on this order.
        before = await self._stock_items.read({item_id for each in ended.values() for item_id in each.holds})
        decided = await self._reservations.decisions(ended)
        done = {key: decision for key, decision in decided.items() if decision.status is not Status.RESERVED}
        returning = self._pending_moves.remember_decisions(before.values(), done)
        done |= await self._return_units({key: each for key, each in ended.items() if key not in done}, before)
        if returning:
            await self._pending_moves.clear(returning)
        return set(done)

    async def _release_all(self, involved: dict[str, set[str]]) -> None:
        """Release reservations until all are done; `involved` holds the items known of each."""
        while involved:
            for order_id in await self._attempt(involved):
                del involved[order_id]

    async def _attempt(self, involved: dict[str, set[str]]) -> set[str]:
        """Go through all steps once; add the reservations' items to `involved`, return the orders that are done."""
        # Items first, reservations second: the guards of stock.py depend on this order.
        item_ids = {item_id for ids in involved.values() for item_id in ids}
        before = await self._stock_items.read(item_ids)
        recorded = await self._reservations.read(involved)
        holding = {}
        for order_id, reservation in recorded.items():
            if reservation.status is Status.RESERVED:
                involved[order_id] |= reservation.holds.keys()
                # If the reservation names further items, the next attempt reads them.
                if involved[order_id] <= item_ids:
                    holding[order_id] = reservation
        done: dict[str, Decision] = {
            order_id: reservation.decision
            for order_id, reservation in recorded.items()
            if reservation.status is not Status.RESERVED
        }
        tombstones = await self._insert_tombstones(involved.keys() - recorded.keys())
        done |= tombstones
        returning = self._pending_moves.remember_decisions(before.values(), done)
        if tombstones:
            # A killed worker may have taken room for an order that was never recorded, in any slot.
            returning |= self._pending_moves.remember_decisions(
                await self._stock_items.slots_with_pending_moves(), tombstones
            )
        done |= await self._return_units(holding, before)
        if returning:
            await self._pending_moves.clear(returning)
        return set(done)

    async def _insert_tombstones(self, order_ids: set[str]) -> dict[str, Decision]:
        now = self._clock()
        existing = await self._reservations.insert(
            [Reservation(order_id, Status.RELEASED, now, now) for order_id in sorted(order_ids)]
        )
        return dict.fromkeys(order_ids - existing, Decision(Status.RELEASED))

    async def _return_units(
        self, holding: Mapping[str, Reservation], before: Mapping[str, StockItem]
    ) -> dict[str, Decision]:
        """Return the units of these reservations and mark them released; return the orders that are done."""
        held = {order_id: _units_to_return(reservation, before) for order_id, reservation in holding.items()}
        returns: dict[str, dict[str, int]] = {}
        for order_id, counts in held.items():
            for item_id, count in counts.items():
                returns.setdefault(item_id, {})[order_id] = count
        after = {
            item_id: return_units(clear_moves(before[item_id], self._pending_moves.known_statuses(item_id)), by_order)
            for item_id, by_order in returns.items()
        }
        stored = await self._stock_items.write(list(after.values()))
        for item_id in stored:
            self._pending_moves.forget_cleared(before[item_id], after[item_id])
        if stored:
            self._failpoint(STOCK_MOVED)
        released = [order_id for order_id, counts in held.items() if counts.keys() <= stored]
        await self._reservations.mark(released, Status.RELEASED)
        if released:
            self._failpoint(RESERVATION_RECORDED)
        for order_id in released:
            for item_id in holding[order_id].holds:
                self._pending_moves.remember(item_id, order_id, Status.RELEASED)
        return dict.fromkeys(released, Decision(Status.RELEASED))


def _units_to_return(reservation: Reservation, items: Mapping[str, StockItem]) -> dict[str, int]:
    """Return the units that are still out, by item; a positive pending move means that they are back already."""
    return {
        item_id: count
        for item_id in reservation.holds
        if item_id in items
        and items[item_id].is_counted
        and items[item_id].pending_moves.get(reservation.order_id, 0) <= 0
        and (count := reservation.still_held(items[item_id]))
    }
