"""What is counted, and reservations, as values; how units move between them without a transaction. No I/O.

Counted are the units of a product and the room of a delivery slot, in minor units of money. What is counted and a
reservation are two documents, so a unit leaves one before it appears in the other. What closes the gap is a mark on the
counted one, `moving[order] = change of the quantity`, written in the same update as the quantity:

    reserve    1. counted: quantity - n, mark -n       2. insert the reservation        3. counted: remove the mark
    release    1. counted: quantity + n, mark +n       2. reservation becomes RELEASED  3. counted: remove the mark

Four rules make it safe with any number of workers, each of which may be killed or stall anywhere:

* Every change of what is counted is guarded by the version it was read at and leads to the next version.
* A worker reads what is counted first and the reservations after it. An order that has neither a mark at version v nor
  a reservation that was read later was never applied as of v: its mark is removed only after its reservation exists.
  If the guard on v then matches, it still was not.
* A mark is removed only when the reservation says what became of the order (`settled`), whoever finds out.
* Two workers with the same order may choose different slots for it. The reservation names the one that the order has;
  a mark on any other is room that comes back (`Decision.on`).

Conservation, at every moment, with `supplied` being all that was ever set or restocked, or a slot's capacity:

    supplied = quantity + what is out;  of one order's n units, n are out if its mark is -n, none if its mark is
    positive, and without a mark n if its reservation is RESERVED and, for a slot, names it; else none.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple, Self, TypeVar

from shared.contracts.inventory import ServerSpecification

MAX_UNITS = 10**12
"""The largest quantity of a product, far below what a JSON double holds exactly."""


class Kind(StrEnum):
    """What a product is: goods are counted; of servers the provider alone knows how many there are."""

    GOODS = "goods"
    VPS = "vps"


SLOT = "slot"
"""Stands where the kind of a product stands, in the document of a delivery slot."""


class Status(StrEnum):
    """What became of an order's stock. Only RESERVED changes once more, to RELEASED."""

    RESERVED = "RESERVED"
    FAILED = "FAILED"
    RELEASED = "RELEASED"


@dataclass(frozen=True, slots=True)
class Description:
    """What an operator says about a product; `price` in minor units."""

    kind: Kind
    name: str | None = None
    price: int | None = None
    package: str | None = None
    package_id: str | None = None
    ram: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StockItem:
    """Something as it was at one version; `quantity` is free, of `supplied` in all, and None where nothing is counted.

    Version 0 says that it is not stored yet.
    """

    id: str
    version: int
    created_at: datetime
    updated_at: datetime
    quantity: int | None = None
    supplied: int | None = None
    pending_moves: Mapping[str, int] = field(default_factory=dict)
    pending_since: datetime | None = None

    @property
    def is_counted(self) -> bool:
        """Whether units of it can be held."""
        return self.quantity is not None

    @property
    def free(self) -> int:
        """Units that can be had; none of what is not counted, fewer than none of a slot with a lowered capacity."""
        return self.quantity or 0

    @property
    def reserved(self) -> int:
        """Units held for orders."""
        return (self.supplied or 0) - self.free

    def held_for(self, order_id: str) -> int:
        """Units that have left the quantity for this order while its reservation may not say so yet."""
        return max(0, -self.pending_moves.get(order_id, 0))

    def with_change(self, change: int, pending_moves: Mapping[str, int]) -> Self:
        """Add to the quantity, under these marks."""
        return replace(self, quantity=self.free + change, pending_moves=pending_moves)


@dataclass(frozen=True, slots=True, kw_only=True)
class Product(StockItem):
    """A product; `price` in minor units."""

    kind: Kind
    name: str | None = None
    price: int | None = None
    package: str | None = None
    package_id: str | None = None
    ram: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot(StockItem):
    """A delivery slot: `supplied` is its capacity and `reserved` its load, both in minor units.

    `adjusted` says that an operator has set this slot's capacity: it does not follow the rules' any more. `ceiling` is
    the load above which the slot has never been booked since its capacity was lowered beneath what was booked.
    """

    start: datetime
    end: datetime
    disabled: bool = False
    adjusted: bool = False
    ceiling: int | None = None

    @property
    def capacity(self) -> int:
        """The load up to which orders are taken, in minor units."""
        return self.supplied or 0

    def with_change(self, change: int, pending_moves: Mapping[str, int]) -> Self:
        """Add to the room, under these marks; what is above the capacity can only become less."""
        load = self.reserved - change
        ceiling = min(self.ceiling, load) if self.ceiling is not None and load > self.capacity else None
        return replace(self, quantity=self.free + change, pending_moves=pending_moves, ceiling=ceiling)

    def with_capacity(self, capacity: int) -> Self:
        """Change the capacity; what is booked stays booked."""
        ceiling = self.reserved if self.reserved > capacity else None
        return replace(self, supplied=capacity, quantity=capacity - self.reserved, ceiling=ceiling)


AnyStockItem = TypeVar("AnyStockItem", bound=StockItem)


@dataclass(frozen=True, slots=True)
class ReservationLine:
    """One product of an order; `price` per unit in minor units."""

    product_id: str
    quantity: int
    price: int


@dataclass(frozen=True, slots=True)
class Booking:
    """The room of a slot that an order has: its price, in minor units; `visible_at` is when the work begins to show."""

    slot_id: str
    start: datetime
    visible_at: datetime
    price: int


@dataclass(frozen=True, slots=True)
class Assignment:
    """For whom another system has booked a slot: the order, and how often before that was done and undone."""

    order_id: str
    number: int
    items_count: int


def assignment_id(order_id: str, number: int) -> str:
    """The id of an assignment's reservation, which no order has: order ids are without colons."""
    return f"assignment:{number}:{order_id}"


def is_assignment(reservation_id: str) -> bool:
    """Whether this is the id of an assignment's reservation."""
    return reservation_id.startswith("assignment:")


def assignment_of(reservation_id: str) -> Assignment:
    """What the id alone says about an assignment."""
    _, number, order_id = reservation_id.split(":", 2)
    return Assignment(order_id, int(number), items_count=0)


class Decision(NamedTuple):
    """What a reservation says: its status, and the slot that the order has, if any."""

    status: Status
    slot_id: str | None = None

    def status_for(self, item: StockItem) -> Status:
        """What it says about the order's mark on this: a slot other than the one it names is not kept."""
        if self.status is Status.RESERVED and isinstance(item, Slot) and item.id != self.slot_id:
            return Status.RELEASED
        return self.status


@dataclass(frozen=True, slots=True)
class Reservation:
    """What became of an order's stock: the decision, which redelivered messages repeat.

    One with an `assignment` holds a slot and nothing else, under an id of its own (assigner.py).
    """

    order_id: str
    status: Status
    created_at: datetime
    updated_at: datetime
    items: tuple[ReservationLine, ...] = ()
    failure_reason: str | None = None
    server: ServerSpecification | None = None
    booking: Booking | None = None
    assignment: Assignment | None = None

    @property
    def decision(self) -> Decision:
        """What marks go by."""
        return Decision(self.status, self.booking.slot_id if self.booking else None)

    @property
    def holds(self) -> dict[str, int]:
        """What is held while it is RESERVED: units by product, and the price by slot."""
        return units_by_product(self.items) | ({self.booking.slot_id: self.booking.price} if self.booking else {})


def units_by_product(lines: Iterable[ReservationLine]) -> dict[str, int]:
    """Units by product."""
    total: dict[str, int] = {}
    for line in lines:
        total[line.product_id] = total.get(line.product_id, 0) + line.quantity
    return total


def take(item: AnyStockItem, takes: Mapping[str, int]) -> AnyStockItem:
    """Take these units, by order, out of the quantity, under the orders' marks."""
    pending_moves = dict(item.pending_moves)
    for order_id, count in takes.items():
        pending_moves[order_id] = pending_moves.get(order_id, 0) - count
    return item.with_change(-sum(takes.values()), pending_moves)


def give_back(item: AnyStockItem, returns: Mapping[str, int]) -> AnyStockItem:
    """Give back what reservations hold, by order; the positive mark says that it is no longer out."""
    return item.with_change(sum(returns.values()), {**item.pending_moves, **returns})


def clear_moves(item: AnyStockItem, known: Mapping[str, Status]) -> AnyStockItem:
    """Remove the marks of orders of which it is known, from a reservation read at any time, what became of them.

    What was taken for an order that was then refused or released goes back in the same step.
    """
    if not item.pending_moves or not known:
        return item
    pending_moves: dict[str, int] = {}
    returned = 0
    for order_id, change in item.pending_moves.items():
        status = known.get(order_id)
        if status is None or (status is Status.RESERVED and change > 0):  # the latter is being released
            pending_moves[order_id] = change
        elif status is not Status.RESERVED and change < 0:
            returned -= change
    if len(pending_moves) == len(item.pending_moves):
        return item
    return item.with_change(returned, pending_moves)


def may_return(item: StockItem, known: Mapping[str, Status]) -> int:
    """Units taken for orders of which it is not known that they keep them."""
    return sum(
        -change
        for order_id, change in item.pending_moves.items()
        if change < 0 and known.get(order_id) is not Status.RESERVED
    )
