"""Allocation of stock to orders: first come, first served, everything that an order asks for or nothing. Pure.

An order that has claimed a hold gets what is held for it before anything else, whatever is free.

An order asks for units of products, and for room for its whole price in a delivery slot: a named one or the earliest.

Units that other workers have taken for undecided orders may come back. An order that would fit with them is neither
served nor refused. It waits, and so does any later order that would fit only without it.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from inventory_service.availability import AUTO, SlotAvailability, SlotRequest
from inventory_service.stock import Assignment, Booking, HoldTerms, Kind, Product, Reservation, Slot, StockItem
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
    hold_id: None = None


@dataclass(frozen=True, slots=True)
class HoldLine:
    """Units of a product to hold; the price is checked like that of an order if it is given."""

    product_id: str
    quantity: int
    price: int | None = None


@dataclass(frozen=True, slots=True)
class HoldOrder:
    """A request to hold units, shaped like an order; its id is a reservation's."""

    order_id: str
    user_id: str
    items: tuple[HoldLine, ...]
    total_amount: int
    terms: HoldTerms
    delivery: DeliveryInstruction
    owner_id: str | None = None
    prices_required: None = None
    hold_id: None = None


Order = OrderCreated | SlotOnlyOrder | HoldOrder


@dataclass(frozen=True, slots=True)
class Reserve:
    """The order gets everything; `take` holds the units that it does not hold yet, by item.

    It includes the slot, even for 0 units, unless the order holds it already: the guarded write detects a changed slot.
    It also includes every item of `from_holds`, the units that come from holds, by item and hold; the count is negative
    where the order needs less than what was held.
    """

    take: Mapping[str, int]
    booking: Booking | None = None
    from_holds: Mapping[str, Mapping[str, int]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Refuse:
    """The order gets nothing, for this reason; with `is_shortage`, because too little is free."""

    reason: str
    is_shortage: bool = field(default=False, compare=False)


@dataclass(frozen=True, slots=True)
class Wait:
    """The order waits: it can be served or refused once other workers have decided theirs."""


Outcome = Reserve | Refuse | Wait

FromHolds = dict[str, dict[str, int]]
"""Units that orders get from holds, by item and hold."""


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


NO_CLAIMS: Mapping[str, Sequence[Reservation]] = {}


def allocate(
    orders: Sequence[Order],
    products: Mapping[str, StockItem],
    may_return: Mapping[str, int],
    availability: SlotAvailability | None = None,
    claimed: Mapping[str, Sequence[Reservation]] = NO_CLAIMS,
) -> dict[str, Outcome]:
    """Decide different orders, in the order of their arrival; return outcomes by order.

    `may_return` counts, by item, the units taken for undecided orders, these or others. If it is empty, no order
    waits. `availability` is required if any order asks for a slot. `claimed` are the holds that orders take over.
    """
    return _Allocation(products, may_return, availability, claimed).decide(orders)


class _Allocation:
    """The allocation of one batch, with a running balance of each item."""

    def __init__(
        self,
        products: Mapping[str, StockItem],
        may_return: Mapping[str, int],
        availability: SlotAvailability | None,
        claimed: Mapping[str, Sequence[Reservation]],
    ) -> None:
        self._products = products
        self._claimed = claimed
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
        from_holds = self._from_holds(order, want)
        is_shortage = refusal is None
        refusal = refusal or self._shortage(want, held, from_holds)
        slot = None
        if refusal is None and (requested := order.delivery.slot) is not None:
            slot, refusal = self._slot_for(order, requested, held)
        if slot is not None:
            from_holds |= self._from_holds(order, [slot.id])
            # Keep the amount of a pending move: another worker may be about to record the order with it.
            want[slot.id] = held[slot.id] if order.order_id in slot.pending_moves else order.total_amount
            held.setdefault(slot.id, 0)
        if refusal:
            for item_id, count in held.items():
                self._balances[item_id].return_later(count)
            return Refuse(refusal, is_shortage)
        return self._serve(order, want, held, slot, from_holds)

    def _serve(
        self, order: Order, want: Mapping[str, int], held: Mapping[str, int], slot: Slot | None, from_holds: FromHolds
    ) -> Outcome:
        need = {
            item_id: count - held[item_id] - sum(from_holds.get(item_id, {}).values())
            for item_id, count in want.items()
        }
        if any(count > max(0, self._balances[item_id].free) for item_id, count in need.items()):
            for item_id, count in need.items():
                self._balances[item_id].claim(max(0, count))
            return Wait()
        for item_id, count in need.items():
            self._balances[item_id].grant(count, held[item_id])
        take = {item_id: count for item_id, count in need.items() if count or item_id in from_holds}
        if slot is None or self._availability is None:
            return Reserve(take, from_holds=from_holds)
        if order.order_id not in slot.pending_moves:
            take.setdefault(slot.id, 0)
        return Reserve(take, self._availability.booking(slot, want[slot.id]), from_holds)

    def _slot_for(self, order: Order, requested: str, held: Mapping[str, int]) -> tuple[Slot | None, str | None]:
        """Return the slot that the order gets or may wait for, or the reason why it gets none."""
        if self._availability is None:
            raise ValueError(f"order {order.order_id} asks for a slot, but the availability of slots was not given")
        price = order.total_amount

        def room(slot: Slot) -> int:
            return self._balances[slot.id].free + held.get(slot.id, 0) + self._units_from_holds(order, slot)

        def max_room(slot: Slot) -> int:
            has = held.get(slot.id, 0)
            return self._balances[slot.id].best_case(has) + has + self._units_from_holds(order, slot)

        mine = self._slot_of.get(order.order_id)
        if mine is not None and mine.id in self._availability.offered and requested in (AUTO, mine.id):
            return mine, None
        for hold in self._claimed.get(order.order_id, ()):
            kept = self._availability.slots.get(hold.booking.slot_id) if hold.booking is not None else None
            if kept is None or kept.id not in self._availability.offered or requested not in (AUTO, kept.id):
                continue
            if room(kept) >= price:
                return kept, None
        chosen = self._availability.choose(SlotRequest(requested, price), room, max_room)
        return (chosen, None) if isinstance(chosen, Slot) else (None, chosen)

    def _held(self, order: Order) -> dict[str, int]:
        """Return the units taken for the order, by item: 0 for an item that it wants and does not hold."""
        known = [self._products[item.product_id] for item in order.items if item.product_id in self._products]
        if (slot := self._slot_of.get(order.order_id)) is not None:
            known.append(slot)
        return {each.id: each.held_for(order.order_id) for each in known if each.is_counted}

    def _from_holds(self, order: Order, item_ids: Iterable[str]) -> FromHolds:
        """Return the units of these items that are still held for the order, by item and hold."""
        found: FromHolds = {}
        for hold in self._claimed.get(order.order_id, ()):
            units = hold.holds
            for item_id in item_ids:
                # A positive pending move means that they have left the hold already.
                if units.get(item_id) and self._item(item_id).pending_moves.get(hold.order_id, 0) <= 0:
                    found.setdefault(item_id, {})[hold.order_id] = units[item_id]
        return found

    def _units_from_holds(self, order: Order, slot: Slot) -> int:
        return sum(sum(by_hold.values()) for by_hold in self._from_holds(order, [slot.id]).values())

    def _item(self, item_id: str) -> StockItem:
        if item_id in self._products or self._availability is None:
            return self._products[item_id]
        return self._availability.slots[item_id]

    def _shortage(self, want: Mapping[str, int], held: Mapping[str, int], from_holds: FromHolds) -> str | None:
        for product_id, count in want.items():
            balance, has = self._balances[product_id], held[product_id]
            kept = sum(from_holds.get(product_id, {}).values())
            if count - has - kept > balance.best_case(has):
                free = max(0, balance.free + has + kept)
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
        if isinstance(order, HoldOrder) and product.kind is not Kind.GOODS:
            return f"Product {item.product_id} is of kind {product.kind}: only goods can be held"
        if not product.on_sale:
            return f"Product {item.product_id} is not on sale"
        if product.price is None and order.prices_required:
            return f"No price is set for {item.product_id}: it cannot be ordered"
        if product.price is not None and item.price is not None and product.price != item.price:
            return _wrong_price(item.product_id, product.price, item.price)
        servers += item.quantity if product.kind is Kind.VPS else 0
    return ONE_SERVER if servers > 1 else None


def _wrong_price(product_id: str, price: int, stated: int) -> str:
    return f"Price of {product_id} is {to_json_number(price)}, the order says {to_json_number(stated)}"
