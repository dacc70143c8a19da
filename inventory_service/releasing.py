"""Gives back what orders hold, or makes sure that they never will hold anything. Why this order of steps: stock.py."""

from collections.abc import Mapping, Sequence

from inventory_service.marks import Marks
from inventory_service.products import Products
from inventory_service.reservations import Reservations
from inventory_service.stock import Kind, Product, Reservation, Status, given_back, settled, units
from shared.clock import Clock
from shared.contracts import ReleaseStock
from shared.failure_points import RESERVATION_RECORDED, STOCK_MOVED, FailurePoint


class Releasing:
    """Carries batches of orders to a reservation that holds nothing; any number of workers may do so at once."""

    def __init__(
        self, products: Products, reservations: Reservations, marks: Marks, clock: Clock, reach: FailurePoint
    ) -> None:
        self._products = products
        self._reservations = reservations
        self._marks = marks
        self._clock = clock
        self._reach = reach

    async def release(self, commands: Sequence[ReleaseStock]) -> None:
        """Release every order; one that is not known yet gets a tombstone that it runs into when it comes."""
        involved = {command.order_id: {item.product_id for item in command.items} for command in commands}
        while involved:
            for order_id in await self._pass(involved):
                del involved[order_id]

    async def _pass(self, involved: dict[str, set[str]]) -> set[str]:
        """Go once through all steps; adds to `involved` what the reservations say, returns the orders that are done."""
        asked = {product_id for product_ids in involved.values() for product_id in product_ids}
        before = await self._products.read(asked)
        recorded = await self._reservations.read(involved)
        holding = {}
        for order_id, reservation in recorded.items():
            if reservation.status is Status.RESERVED:
                involved[order_id] |= units(reservation.items).keys()
                if involved[order_id] <= asked:
                    holding[order_id] = reservation
        done: dict[str, Status] = {
            order_id: reservation.status
            for order_id, reservation in recorded.items()
            if reservation.status is not Status.RESERVED
        }
        done |= await self._bury(involved.keys() - recorded.keys())
        owed = self._marks.note_all(before.values(), done)
        done |= await self._give_back(holding, before)
        if owed:
            await self._marks.settle(owed)
        return set(done)

    async def _bury(self, order_ids: set[str]) -> dict[str, Status]:
        now = self._clock()
        existing = await self._reservations.insert(
            [Reservation(order_id, Status.RELEASED, now, now) for order_id in order_ids]
        )
        return dict.fromkeys(order_ids - existing, Status.RELEASED)

    async def _give_back(self, holding: Mapping[str, Reservation], before: Mapping[str, Product]) -> dict[str, Status]:
        """Give back what these reservations hold; returns the orders of which everything is back."""
        due = {order_id: _due(reservation, before) for order_id, reservation in holding.items()}
        returns: dict[str, dict[str, int]] = {}
        for order_id, counts in due.items():
            for product_id, count in counts.items():
                returns.setdefault(product_id, {})[order_id] = count
        after = {
            product_id: given_back(settled(before[product_id], self._marks.known(product_id)), by_order)
            for product_id, by_order in returns.items()
        }
        stored = await self._products.write(list(after.values()))
        for product_id in stored:
            self._marks.removed(before[product_id], after[product_id])
        if stored:
            self._reach(STOCK_MOVED)
        released = [order_id for order_id, counts in due.items() if counts.keys() <= stored]
        await self._reservations.mark_released(released)
        if released:
            self._reach(RESERVATION_RECORDED)
        for order_id in released:
            for product_id in units(holding[order_id].items):
                self._marks.note(product_id, order_id, Status.RELEASED)
        return dict.fromkeys(released, Status.RELEASED)


def _due(reservation: Reservation, products: Mapping[str, Product]) -> dict[str, int]:
    """Units by product that are still out; a positive mark says that they are back already."""
    return {
        product_id: count
        for product_id, count in units(reservation.items).items()
        if product_id in products
        and products[product_id].kind is Kind.GOODS
        and products[product_id].moving.get(reservation.order_id, 0) <= 0
    }
