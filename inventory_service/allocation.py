"""Who gets what: first come, first served, all that an order asks for or nothing. Pure: no I/O, no clock.

An order asks for units of products, and room for its whole price in a delivery slot: in a certain one, or the earliest.

Units that other workers have taken for orders still undecided may come back. An order that would fit with them is
neither served nor refused: it waits, and so does whoever came after it and would fit only without it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from inventory_service.availability import AUTO, SlotAvailability, SlotRequest
from inventory_service.stock import Assignment, Booking, Kind, Product, Slot, StockItem
from shared.contracts import OrderCreated
from shared.contracts.inventory import ServerSpecification
from shared.contracts.orders import SLOT_PREFIX, Delivery, Item
from shared.money import to_json_number

ONE_SERVER = "An order can hold one server at most"


@dataclass(frozen=True, slots=True)
class SlotOnlyOrder:
    """Another system asks for a slot, and nothing else, under the id of a reservation; it reads like an order."""

    order_id: str
    total_amount: int
    assignment: Assignment
    delivery: Delivery
    items: tuple[Item, ...] = ()


Request = OrderCreated | SlotOnlyOrder


@dataclass(frozen=True, slots=True)
class Reserve:
    """The order gets everything; `take` is what it does not hold yet, by the id of what is counted.

    The slot is always in it unless the order holds it: its write is what makes sure that the slot is still as it was.
    """

    take: Mapping[str, int]
    booking: Booking | None = None


@dataclass(frozen=True, slots=True)
class Refuse:
    """The order gets nothing, for this reason."""

    reason: str


@dataclass(frozen=True, slots=True)
class Wait:
    """Whether the order can be served depends on orders that other workers have in hand."""


Outcome = Reserve | Refuse | Wait


@dataclass(slots=True)
class _RunningBalance:
    """What is left of something at an order's turn: free if all before it are served, and what may come back if not."""

    free: int
    may_return: int
    returning: int = 0

    def best_case(self, held: int) -> int:
        """What could be had at best by an order that holds this much already."""
        return self.free + self.returning + max(0, self.may_return - held)

    def grant(self, need: int, held: int) -> None:
        """The order gets what it needs and keeps what it holds."""
        self.free -= need
        self.may_return = max(0, self.may_return - held)

    def claim(self, need: int) -> None:
        """The order waits: what it needs is not for those behind it, unless it is refused."""
        self.free -= need
        self.may_return += need

    def return_later(self, held: int) -> None:
        """The order is refused: what it holds is for those behind it, but not before the refusal is recorded.

        Given away at once, there would be more taken than there is if the worker died between the two writes.
        """
        self.returning += held
        self.may_return = max(0, self.may_return - held)


def allocate(
    orders: Sequence[Request],
    products: Mapping[str, StockItem],
    may_return: Mapping[str, int],
    availability: SlotAvailability | None = None,
) -> dict[str, Outcome]:
    """Decide different orders, in the order of their arrival, over what there is; returns outcomes by order.

    `may_return` says, by id, how many units are taken for orders (these or others) still undecided. Without any, every
    order is decided and none waits. Orders that want a slot need availability.
    """
    return _Allocation(products, may_return, availability).decide(orders)


class _Allocation:
    """One batch on its way: what is left after each order's turn."""

    def __init__(
        self, products: Mapping[str, StockItem], may_return: Mapping[str, int], availability: SlotAvailability | None
    ) -> None:
        self._products = products
        self._availability = availability
        self._slot_of = availability.held() if availability is not None else {}
        items = (products, availability.slots) if availability is not None else (products,)
        self._balances = {
            each.id: _RunningBalance(each.free, may_return.get(each.id, 0))
            for group in items
            for each in group.values()
        }

    def decide(self, orders: Sequence[Request]) -> dict[str, Outcome]:
        return {order.order_id: self._decide(order) for order in self._in_turn(orders)}

    def _in_turn(self, orders: Sequence[Request]) -> list[Request]:
        """Put orders that hold something already before all others, and those that have got furthest first.

        All that is counted is taken in the order of the ids, so an order waits only for orders that have got further
        than itself: no two orders of a batch can wait for each other.
        """
        started = [order for order in orders if any(self._held(order).values())]
        started.sort(key=self._first_missing, reverse=True)
        ids = {order.order_id for order in started}
        return [*started, *(order for order in orders if order.order_id not in ids)]

    def _first_missing(self, order: Request) -> tuple[bool, str]:
        held = self._held(order)
        missing = [item.product_id for item in order.items if item.quantity > held.get(item.product_id, item.quantity)]
        if order.delivery.slot is not None and order.order_id not in self._slot_of:
            missing.append(SLOT_PREFIX)
        return (not missing, min(missing, default=""))

    def _decide(self, order: Request) -> Outcome:
        refusal = refusal_reason(order, self._products)
        want = {} if refusal else requested_units(order, self._products)
        held = self._held(order)
        refusal = refusal or self._shortage(want, held)
        slot = None
        if refusal is None and (wish := order.delivery.slot) is not None:
            slot, refusal = self._slot_for(order, wish, held)
        if slot is not None:
            # A mark is never changed: whoever else has this order in hand may be about to record it as it is.
            want[slot.id] = held[slot.id] if order.order_id in slot.pending_moves else order.total_amount
            held.setdefault(slot.id, 0)
        if refusal:
            for identifier, count in held.items():
                self._balances[identifier].return_later(count)
            return Refuse(refusal)
        return self._serve(order, want, held, slot)

    def _serve(self, order: Request, want: Mapping[str, int], held: Mapping[str, int], slot: Slot | None) -> Outcome:
        need = {identifier: count - held[identifier] for identifier, count in want.items()}
        if any(count > max(0, self._balances[identifier].free) for identifier, count in need.items()):
            for identifier, count in need.items():
                self._balances[identifier].claim(count)
            return Wait()
        for identifier, count in need.items():
            self._balances[identifier].grant(count, held[identifier])
        take = {identifier: count for identifier, count in need.items() if count}
        if slot is None or self._availability is None:
            return Reserve(take)
        if order.order_id not in slot.pending_moves:
            take.setdefault(slot.id, 0)
        return Reserve(take, self._availability.booking(slot, want[slot.id]))

    def _slot_for(self, order: Request, wish: str, held: Mapping[str, int]) -> tuple[Slot | None, str | None]:
        """The slot that the order gets, or may get if others do not; or why it gets none."""
        if self._availability is None:
            raise ValueError(f"order {order.order_id} wants a slot, and there is no availability")
        price = order.total_amount

        def room(slot: Slot) -> int:
            return self._balances[slot.id].free + held.get(slot.id, 0)

        def max_room(slot: Slot) -> int:
            has = held.get(slot.id, 0)
            return self._balances[slot.id].best_case(has) + has

        mine = self._slot_of.get(order.order_id)
        if mine is not None and mine.id in self._availability.offered and wish in (AUTO, mine.id):
            return mine, None
        chosen = self._availability.choose(SlotRequest(wish, price), room, max_room)
        return (chosen, None) if isinstance(chosen, Slot) else (None, chosen)

    def _held(self, order: Request) -> dict[str, int]:
        """What has been taken for the order, by id; nothing is 0 for what it wants and does not hold."""
        known = [self._products[item.product_id] for item in order.items if item.product_id in self._products]
        if (slot := self._slot_of.get(order.order_id)) is not None:
            known.append(slot)
        return {stock_item.id: stock_item.held_for(order.order_id) for stock_item in known if stock_item.is_counted}

    def _shortage(self, want: Mapping[str, int], held: Mapping[str, int]) -> str | None:
        for product_id, count in want.items():
            shelf, has = self._balances[product_id], held[product_id]
            if count - has > shelf.best_case(has):
                free = max(0, shelf.free + has)
                return f"Insufficient stock for {product_id}: asked {count}, free {free}"
        return None


def requested_units(order: Request, products: Mapping[str, StockItem]) -> dict[str, int]:
    """Units by product, of the products that are counted."""
    total: dict[str, int] = {}
    for item in order.items:
        if products[item.product_id].is_counted:
            total[item.product_id] = total.get(item.product_id, 0) + item.quantity
    return total


def server_specification(order: Request, products: Mapping[str, StockItem]) -> ServerSpecification | None:
    """What to provision, if the order holds a server."""
    for item in order.items:
        product = products[item.product_id]
        if isinstance(product, Product) and product.kind is Kind.VPS and product.package is not None:
            return ServerSpecification(package=product.package, package_id=product.package_id, ram=product.ram)
    return None


def refusal_reason(order: Request, products: Mapping[str, StockItem]) -> str | None:
    """Why the order cannot be served however much there is, if so."""
    servers = 0
    for item in order.items:
        product = products.get(item.product_id)
        if not isinstance(product, Product):
            return f"Unknown product {item.product_id}"
        if product.price is not None and product.price != item.price:
            return _wrong_price(item, product.price)
        servers += item.quantity if product.kind is Kind.VPS else 0
    return ONE_SERVER if servers > 1 else None


def _wrong_price(item: Item, price: int) -> str:
    return f"Price of {item.product_id} is {to_json_number(price)}, the order says {to_json_number(item.price)}"
