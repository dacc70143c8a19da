"""Allocation of stock to orders: first come, first served, everything that an order asks for or nothing. Pure.

An order asks for units of products, and for room for its whole price in a delivery slot: a named one or the earliest.

Units that other workers have taken for undecided orders may come back. An order that would fit with them is neither
served nor refused. It waits, and so does any later order that would fit only without it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from inventory_service.availability import AUTO, SlotAvailability, SlotRequest
from inventory_service.stock import Assignment, Booking, Kind, Product, Slot, StockItem
from shared.contracts import OrderCreated
from shared.contracts.inventory import ServerSpecification
from shared.contracts.orders import SLOT_PREFIX, DeliveryInstruction, Item
from shared.money import to_json_number

ONE_SERVER = "An order can hold one server at most"


@dataclass(frozen=True, slots=True)
class SlotOnlyOrder:
    """A request of another system for a slot and nothing else, shaped like an order; its id is a reservation's."""

    order_id: str
    total_amount: int
    assignment: Assignment
    delivery: DeliveryInstruction
    owner_id: str | None = None
    items: tuple[Item, ...] = ()
    user_id: None = None
    prices_required: None = None


Order = OrderCreated | SlotOnlyOrder


@dataclass(frozen=True, slots=True)
class Reserve:
    """The order gets everything; `take` holds the units that it does not hold yet, by item.

    It includes the slot, even for 0 units, unless the order holds it already: the guarded write detects a changed slot.
    """

    take: Mapping[str, int]
    booking: Booking | None = None


@dataclass(frozen=True, slots=True)
class Refuse:
    """The order gets nothing, for this reason."""

    reason: str


@dataclass(frozen=True, slots=True)
class Wait:
    """The order waits: it can be served or refused once other workers have decided theirs."""


Outcome = Reserve | Refuse | Wait


@dataclass(slots=True)
class _RunningBalance:
    """The units left of an item at an order's turn, if all orders before it are served.

    `may_return` may come back from undecided orders of all workers, `returning` will come back from orders of this
    batch once their refusals are recorded.
    """

    free: int
    may_return: int
    returning: int = 0

    def best_case(self, held: int) -> int:
        """Return the units that an order holding `held` could get at best."""
        return self.free + self.returning + max(0, self.may_return - held)

    def grant(self, need: int, held: int) -> None:
        """Serve an order: it gets what it needs and keeps what it holds."""
        self.free -= need
        self.may_return = max(0, self.may_return - held)

    def claim(self, need: int) -> None:
        """Hold back what a waiting order needs: later orders get it only if that order is refused."""
        self.free -= need
        self.may_return += need

    def return_later(self, held: int) -> None:
        """Refuse an order: later orders may wait for what it holds, but not take it before the refusal is recorded.

        If it were taken at once and the worker died between the two writes, more would be taken than there is.
        """
        self.returning += held
        self.may_return = max(0, self.may_return - held)


def allocate(
    orders: Sequence[Order],
    products: Mapping[str, StockItem],
    may_return: Mapping[str, int],
    availability: SlotAvailability | None = None,
) -> dict[str, Outcome]:
    """Decide different orders, in the order of their arrival; return outcomes by order.

    `may_return` counts, by item, the units taken for undecided orders, these or others. If it is empty, no order
    waits. `availability` is required if any order asks for a slot.
    """
    return _Allocation(products, may_return, availability).decide(orders)


class _Allocation:
    """The allocation of one batch, with a running balance of each item."""

    def __init__(
        self, products: Mapping[str, StockItem], may_return: Mapping[str, int], availability: SlotAvailability | None
    ) -> None:
        self._products = products
        self._availability = availability
        self._slot_of = availability.held() if availability is not None else {}
        groups = (products, availability.slots) if availability is not None else (products,)
        self._balances = {
            item.id: _RunningBalance(item.free, may_return.get(item.id, 0))
            for group in groups
            for item in group.values()
        }

    def decide(self, orders: Sequence[Order]) -> dict[str, Outcome]:
        return {order.order_id: self._decide(order) for order in self._in_turn(orders)}

    def _in_turn(self, orders: Sequence[Order]) -> list[Order]:
        """Put orders that hold something before all others, those that have progressed furthest first.

        Items are taken in the order of their ids, so an order waits only for orders that have progressed further: no
        two orders of a batch can wait for each other.
        """
        started = [order for order in orders if any(self._held(order).values())]
        started.sort(key=self._first_missing, reverse=True)
        ids = {order.order_id for order in started}
        return [*started, *(order for order in orders if order.order_id not in ids)]

    def _first_missing(self, order: Order) -> tuple[bool, str]:
        held = self._held(order)
        missing = [item.product_id for item in order.items if item.quantity > held.get(item.product_id, item.quantity)]
        if order.delivery.slot is not None and order.order_id not in self._slot_of:
            missing.append(SLOT_PREFIX)
        return (not missing, min(missing, default=""))

    def _decide(self, order: Order) -> Outcome:
        refusal = refusal_reason(order, self._products)
        want = {} if refusal else requested_units(order, self._products)
        held = self._held(order)
        refusal = refusal or self._shortage(want, held)
        slot = None
        if refusal is None and (requested := order.delivery.slot) is not None:
            slot, refusal = self._slot_for(order, requested, held)
        if slot is not None:
            # Keep the amount of a pending move: another worker may be about to record the order with it.
            want[slot.id] = held[slot.id] if order.order_id in slot.pending_moves else order.total_amount
            held.setdefault(slot.id, 0)
        if refusal:
            for item_id, count in held.items():
                self._balances[item_id].return_later(count)
            return Refuse(refusal)
        return self._serve(order, want, held, slot)

    def _serve(self, order: Order, want: Mapping[str, int], held: Mapping[str, int], slot: Slot | None) -> Outcome:
        need = {item_id: count - held[item_id] for item_id, count in want.items()}
        if any(count > max(0, self._balances[item_id].free) for item_id, count in need.items()):
            for item_id, count in need.items():
                self._balances[item_id].claim(count)
            return Wait()
        for item_id, count in need.items():
            self._balances[item_id].grant(count, held[item_id])
        take = {item_id: count for item_id, count in need.items() if count}
        if slot is None or self._availability is None:
            return Reserve(take)
        if order.order_id not in slot.pending_moves:
            take.setdefault(slot.id, 0)
        return Reserve(take, self._availability.booking(slot, want[slot.id]))

    def _slot_for(self, order: Order, requested: str, held: Mapping[str, int]) -> tuple[Slot | None, str | None]:
        """Return the slot that the order gets or may wait for, or the reason why it gets none."""
        if self._availability is None:
            raise ValueError(f"order {order.order_id} asks for a slot, but the availability of slots was not given")
        price = order.total_amount

        def room(slot: Slot) -> int:
            return self._balances[slot.id].free + held.get(slot.id, 0)

        def max_room(slot: Slot) -> int:
            has = held.get(slot.id, 0)
            return self._balances[slot.id].best_case(has) + has

        mine = self._slot_of.get(order.order_id)
        if mine is not None and mine.id in self._availability.offered and requested in (AUTO, mine.id):
            return mine, None
        chosen = self._availability.choose(SlotRequest(requested, price), room, max_room)
        return (chosen, None) if isinstance(chosen, Slot) else (None, chosen)

    def _held(self, order: Order) -> dict[str, int]:
        """Return the units taken for the order, by item: 0 for an item that it wants and does not hold."""
        known = [self._products[item.product_id] for item in order.items if item.product_id in self._products]
        if (slot := self._slot_of.get(order.order_id)) is not None:
            known.append(slot)
        return {each.id: each.held_for(order.order_id) for each in known if each.is_counted}

    def _shortage(self, want: Mapping[str, int], held: Mapping[str, int]) -> str | None:
        for product_id, count in want.items():
            balance, has = self._balances[product_id], held[product_id]
            if count - has > balance.best_case(has):
                free = max(0, balance.free + has)
                return f"Insufficient stock for {product_id}: asked {count}, free {free}"
        return None


def requested_units(order: Order, products: Mapping[str, StockItem]) -> dict[str, int]:
    """Add up the units that the order asks for, by product, where stock is counted."""
    total: dict[str, int] = {}
    for item in order.items:
        if products[item.product_id].is_counted:
            total[item.product_id] = total.get(item.product_id, 0) + item.quantity
    return total


def server_specification(order: Order, products: Mapping[str, StockItem]) -> ServerSpecification | None:
    """Return the server to provision, if the order includes one."""
    for item in order.items:
        product = products[item.product_id]
        if isinstance(product, Product) and product.kind is Kind.VPS and product.package is not None:
            return ServerSpecification(package=product.package, package_id=product.package_id, ram=product.ram)
    return None


def refusal_reason(order: Order, products: Mapping[str, StockItem]) -> str | None:
    """Return the reason why no amount of stock could serve the order, or None."""
    servers = 0
    for item in order.items:
        product = products.get(item.product_id)
        if not isinstance(product, Product):
            return f"Unknown product {item.product_id}"
        if product.price is None and order.prices_required:
            return f"No price is set for {item.product_id}: it cannot be ordered"
        if product.price is not None and product.price != item.price:
            return _wrong_price(item, product.price)
        servers += item.quantity if product.kind is Kind.VPS else 0
    return ONE_SERVER if servers > 1 else None


def _wrong_price(item: Item, price: int) -> str:
    return f"Price of {item.product_id} is {to_json_number(price)}, the order says {to_json_number(item.price)}"
