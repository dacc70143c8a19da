"""Gives back what orders hold, or makes sure that they never will hold anything. Why this order of steps: stock.py."""

from collections.abc import Mapping, Sequence

from inventory_service.pending_moves import PendingMoves
from inventory_service.reservations import Reservations
from inventory_service.stock import Decision, Reservation, Status, StockItem, given_back, settled
from inventory_service.stock_items import StockItems
from shared.clock import Clock
from shared.contracts import ReleaseStock
from shared.failure_points import RESERVATION_RECORDED, STOCK_MOVED, FailurePoint


class Releaser:
    """Carries batches of orders to a reservation that holds nothing; any number of workers may do so at once."""

    def __init__(
        self, resources: StockItems, reservations: Reservations, marks: PendingMoves, clock: Clock, reach: FailurePoint
    ) -> None:
        self._resources = resources
        self._reservations = reservations
        self._marks = marks
        self._clock = clock
        self._reach = reach

    async def release(self, commands: Sequence[ReleaseStock]) -> None:
        """Release every order; one that is not known yet gets a tombstone that it runs into when it comes.

        A slot that another system has assigned to an order is released with it.
        """
        involved = {command.order_id: {item.product_id for item in command.items} for command in commands}
        await self._carry_out(dict(involved))
        await self.release_assignments(list(involved))

    async def release_assignments(self, order_ids: Sequence[str]) -> dict[str, Reservation]:
        """Release the slots that these orders have by an assignment; returns their last assignments, by order."""
        if not order_ids:
            return {}
        assignments = await self._reservations.assignments(order_ids)
        held = [each for each in assignments.values() if each.status is Status.RESERVED]
        if held:
            await self._carry_out({each.order_id: set(each.holds) for each in held})
        return assignments

    async def _carry_out(self, involved: dict[str, set[str]]) -> None:
        """Release reservations, each with the ids of what it is known to concern, until all are."""
        while involved:
            for order_id in await self._attempt(involved):
                del involved[order_id]

    async def _attempt(self, involved: dict[str, set[str]]) -> set[str]:
        """Go once through all steps; adds to `involved` what the reservations say, returns the orders that are done."""
        asked = {counted_id for ids in involved.values() for counted_id in ids}
        before = await self._resources.read(asked)
        recorded = await self._reservations.read(involved)
        holding = {}
        for order_id, reservation in recorded.items():
            if reservation.status is Status.RESERVED:
                involved[order_id] |= reservation.holds.keys()
                if involved[order_id] <= asked:
                    holding[order_id] = reservation
        done: dict[str, Decision] = {
            order_id: reservation.decision
            for order_id, reservation in recorded.items()
            if reservation.status is not Status.RESERVED
        }
        buried = await self._bury(involved.keys() - recorded.keys())
        done |= buried
        owed = self._marks.note_all(before.values(), done)
        if buried:
            # Nobody says which slot a killed worker has taken for an order that was never recorded.
            owed |= self._marks.note_all(await self._resources.marked_slots(), buried)
        done |= await self._give_back(holding, before)
        if owed:
            await self._marks.settle(owed)
        return set(done)

    async def _bury(self, order_ids: set[str]) -> dict[str, Decision]:
        now = self._clock()
        existing = await self._reservations.insert(
            [Reservation(order_id, Status.RELEASED, now, now) for order_id in order_ids]
        )
        return dict.fromkeys(order_ids - existing, Decision(Status.RELEASED))

    async def _give_back(
        self, holding: Mapping[str, Reservation], before: Mapping[str, StockItem]
    ) -> dict[str, Decision]:
        """Give back what these reservations hold; returns the orders of which everything is back."""
        due = {order_id: _due(reservation, before) for order_id, reservation in holding.items()}
        returns: dict[str, dict[str, int]] = {}
        for order_id, counts in due.items():
            for counted_id, count in counts.items():
                returns.setdefault(counted_id, {})[order_id] = count
        after = {
            counted_id: given_back(settled(before[counted_id], self._marks.known(counted_id)), by_order)
            for counted_id, by_order in returns.items()
        }
        stored = await self._resources.write(list(after.values()))
        for counted_id in stored:
            self._marks.removed(before[counted_id], after[counted_id])
        if stored:
            self._reach(STOCK_MOVED)
        released = [order_id for order_id, counts in due.items() if counts.keys() <= stored]
        await self._reservations.mark_released(released)
        if released:
            self._reach(RESERVATION_RECORDED)
        for order_id in released:
            for counted_id in holding[order_id].holds:
                self._marks.note(counted_id, order_id, Status.RELEASED)
        return dict.fromkeys(released, Decision(Status.RELEASED))


def _due(reservation: Reservation, counted: Mapping[str, StockItem]) -> dict[str, int]:
    """Units by id that are still out; a positive mark says that they are back already."""
    return {
        counted_id: count
        for counted_id, count in reservation.holds.items()
        if count
        and counted_id in counted
        and counted[counted_id].is_counted
        and counted[counted_id].moving.get(reservation.order_id, 0) <= 0
    }
