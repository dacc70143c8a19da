"""Products and reservations as values, and how stock moves between them without a transaction. No I/O.

A product and a reservation are two documents, so a unit of stock leaves one before it appears in the other. What closes
the gap is a mark on the product, `moving[order] = change of the quantity`, written in the same update as the quantity:

    reserve    1. product: quantity - n, mark -n       2. insert the reservation        3. product: remove the mark
    release    1. product: quantity + n, mark +n       2. reservation becomes RELEASED  3. product: remove the mark

Three rules make it safe with any number of workers, each of which may be killed or stall anywhere:

* Every change of a product is guarded by the version it was read at and leads to the next version.
* A worker reads the products first and the reservations after them. An order that has neither a mark at version v nor
  a reservation that was read later was never applied as of v: its mark is removed only after its reservation exists.
  If the guard on v then matches, it still was not.
* A mark is removed only when the reservation says what became of the order (`settled`), whoever finds out.

Conservation, at every moment, with `supplied` being all that was ever set or restocked:

    supplied = quantity + what is out;  of one order's n units of a product, n are out if its mark on it is -n,
    none if its mark is positive, and without a mark n if its reservation is RESERVED, else none.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum

from shared.contracts.inventory import ServerSpecification

MAX_UNITS = 10**12
"""The largest quantity of a product, far below what a JSON double holds exactly."""


class Kind(StrEnum):
    """What a product is: goods are counted; of servers the provider alone knows how many there are."""

    GOODS = "goods"
    VPS = "vps"


class Status(StrEnum):
    """What became of an order's stock. Only RESERVED changes once more, to RELEASED."""

    RESERVED = "RESERVED"
    FAILED = "FAILED"
    RELEASED = "RELEASED"


@dataclass(frozen=True, slots=True)
class Product:
    """A product as it was at one version; `quantity` is free to sell, `price` in minor units."""

    product_id: str
    kind: Kind
    version: int
    created_at: datetime
    updated_at: datetime
    quantity: int | None = None
    supplied: int | None = None
    moving: Mapping[str, int] = field(default_factory=dict)
    marked_since: datetime | None = None
    name: str | None = None
    price: int | None = None
    package: str | None = None
    package_id: str | None = None
    ram: int | None = None

    @property
    def free(self) -> int:
        """Units free to sell; none of a product that is not counted."""
        return self.quantity or 0

    @property
    def reserved(self) -> int:
        """Units held for orders."""
        return (self.supplied or 0) - self.free

    def held_for(self, order_id: str) -> int:
        """Units that have left the quantity for this order while its reservation may not say so yet."""
        return max(0, -self.moving.get(order_id, 0))


@dataclass(frozen=True, slots=True)
class Line:
    """One product of an order; `price` per unit in minor units."""

    product_id: str
    quantity: int
    price: int


@dataclass(frozen=True, slots=True)
class Reservation:
    """What became of an order's stock: the decision, which redelivered messages repeat."""

    order_id: str
    status: Status
    created_at: datetime
    updated_at: datetime
    items: tuple[Line, ...] = ()
    failure_reason: str | None = None
    server: ServerSpecification | None = None


def units(lines: Iterable[Line]) -> dict[str, int]:
    """Units by product."""
    total: dict[str, int] = {}
    for line in lines:
        total[line.product_id] = total.get(line.product_id, 0) + line.quantity
    return total


def taken(product: Product, takes: Mapping[str, int]) -> Product:
    """Take these units, by order, out of the quantity, under the orders' marks."""
    moving = dict(product.moving)
    for order_id, count in takes.items():
        moving[order_id] = moving.get(order_id, 0) - count
    return replace(product, quantity=product.free - sum(takes.values()), moving=moving)


def given_back(product: Product, returns: Mapping[str, int]) -> Product:
    """Give back what reservations hold, by order; the positive mark says that it is no longer out."""
    return replace(product, quantity=product.free + sum(returns.values()), moving={**product.moving, **returns})


def settled(product: Product, known: Mapping[str, Status]) -> Product:
    """Remove the marks of orders of which it is known, from a reservation read at any time, what became of them.

    What was taken for an order that was then refused or released goes back in the same step.
    """
    if not product.moving or not known:
        return product
    moving: dict[str, int] = {}
    quantity = product.free
    for order_id, change in product.moving.items():
        status = known.get(order_id)
        if status is None or (status is Status.RESERVED and change > 0):  # the latter is being released
            moving[order_id] = change
        elif status is not Status.RESERVED and change < 0:
            quantity -= change
    if len(moving) == len(product.moving):
        return product
    return replace(product, quantity=quantity, moving=moving)


def may_return(product: Product, known: Mapping[str, Status]) -> int:
    """Units taken for orders of which it is not known that they keep them."""
    return sum(
        -change
        for order_id, change in product.moving.items()
        if change < 0 and known.get(order_id) is not Status.RESERVED
    )
