"""Who gets what: first come, first served, all that an order asks for or nothing. Pure: no I/O, no clock.

Units that other workers have taken for orders still undecided may come back. An order that would fit with them is
neither served nor refused: it waits, and so does whoever came after it and would fit only without it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from inventory_service.stock import Kind, Product
from shared.contracts import OrderCreated
from shared.contracts.inventory import ServerSpecification
from shared.contracts.orders import Item
from shared.money import to_json_number

ONE_SERVER = "An order can hold one server at most"
NO_SLOTS = "Delivery slots are not available: order without delivery.slot"


@dataclass(frozen=True, slots=True)
class Reserve:
    """The order gets everything; `take` is what it does not hold yet, by product."""

    take: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Refuse:
    """The order gets nothing, for this reason."""

    reason: str


@dataclass(frozen=True, slots=True)
class Wait:
    """Whether the order can be served depends on orders that other workers have in hand."""


Outcome = Reserve | Refuse | Wait


@dataclass(slots=True)
class _Shelf:
    """What is left of a product at an order's turn: free if all before it are served, and what may come back if not."""

    free: int
    may_return: int

    def at_most(self, held: int) -> int:
        """What could be had at best by an order that holds this much already."""
        return self.free + max(0, self.may_return - held)

    def give(self, need: int, held: int) -> None:
        """The order gets what it needs and keeps what it holds."""
        self.free -= need
        self.may_return = max(0, self.may_return - held)

    def claim(self, need: int) -> None:
        """The order waits: what it needs is not for those behind it, unless it is refused."""
        self.free -= need
        self.may_return += need

    def put_back(self, held: int) -> None:
        """The order is refused."""
        self.free += held
        self.may_return = max(0, self.may_return - held)


def allocate(
    orders: Sequence[OrderCreated], products: Mapping[str, Product], may_return: Mapping[str, int]
) -> dict[str, Outcome]:
    """Decide different orders, in the order of their arrival, over the products as they are; returns outcomes by order.

    `may_return` says, by product, how many units are taken for orders (these or others) still undecided. Without any,
    every order is decided and none waits.
    """
    shelves = {
        product.product_id: _Shelf(product.free, may_return.get(product.product_id, 0)) for product in products.values()
    }
    return {order.order_id: _decide(order, products, shelves) for order in _by_turn(orders, products)}


def _by_turn(orders: Sequence[OrderCreated], products: Mapping[str, Product]) -> list[OrderCreated]:
    """Put orders that hold something already before all others, and those that have got furthest first.

    Products are taken in the order of their ids, so an order waits only for orders that have got further than itself:
    no two orders of a batch can wait for each other.
    """
    started = [order for order in orders if any(_held(order, products).values())]
    started.sort(key=lambda order: _first_missing(order, products), reverse=True)
    ids = {order.order_id for order in started}
    return [*started, *(order for order in orders if order.order_id not in ids)]


def _first_missing(order: OrderCreated, products: Mapping[str, Product]) -> tuple[bool, str]:
    held = _held(order, products)
    missing = [item.product_id for item in order.items if item.quantity > held.get(item.product_id, item.quantity)]
    return (not missing, min(missing, default=""))


def wanted(order: OrderCreated, products: Mapping[str, Product]) -> dict[str, int]:
    """Units by product, of the products that are counted."""
    total: dict[str, int] = {}
    for item in order.items:
        if products[item.product_id].kind is Kind.GOODS:
            total[item.product_id] = total.get(item.product_id, 0) + item.quantity
    return total


def server_of(order: OrderCreated, products: Mapping[str, Product]) -> ServerSpecification | None:
    """What to provision, if the order holds a server."""
    for item in order.items:
        product = products[item.product_id]
        if product.kind is Kind.VPS and product.package is not None:
            return ServerSpecification(package=product.package, package_id=product.package_id, ram=product.ram)
    return None


def objection(order: OrderCreated, products: Mapping[str, Product]) -> str | None:
    """Why the order cannot be served however much there is, if so."""
    if order.delivery.slot is not None:
        return NO_SLOTS
    servers = 0
    for item in order.items:
        product = products.get(item.product_id)
        if product is None:
            return f"Unknown product {item.product_id}"
        if product.price is not None and product.price != item.price:
            return _wrong_price(item, product.price)
        servers += item.quantity if product.kind is Kind.VPS else 0
    return ONE_SERVER if servers > 1 else None


def _wrong_price(item: Item, price: int) -> str:
    return f"Price of {item.product_id} is {to_json_number(price)}, the order says {to_json_number(item.price)}"


def _decide(order: OrderCreated, products: Mapping[str, Product], shelves: Mapping[str, _Shelf]) -> Outcome:
    refusal = objection(order, products)
    want = {} if refusal else wanted(order, products)
    held = _held(order, products)
    refusal = refusal or _shortage(want, held, shelves)
    if refusal:
        for product_id, count in held.items():
            shelves[product_id].put_back(count)
        return Refuse(refusal)
    need = {product_id: count - held[product_id] for product_id, count in want.items()}
    if any(count > max(0, shelves[product_id].free) for product_id, count in need.items()):
        for product_id, count in need.items():
            shelves[product_id].claim(count)
        return Wait()
    for product_id, count in need.items():
        shelves[product_id].give(count, held[product_id])
    return Reserve({product_id: count for product_id, count in need.items() if count})


def _held(order: OrderCreated, products: Mapping[str, Product]) -> dict[str, int]:
    known = [products[item.product_id] for item in order.items if item.product_id in products]
    return {product.product_id: product.held_for(order.order_id) for product in known if product.kind is Kind.GOODS}


def _shortage(want: Mapping[str, int], held: Mapping[str, int], shelves: Mapping[str, _Shelf]) -> str | None:
    for product_id, count in want.items():
        shelf, has = shelves[product_id], held[product_id]
        if count - has > shelf.at_most(has):
            free = max(0, shelf.free + has)
            return f"Insufficient stock for {product_id}: asked {count}, free {free}"
    return None
