"""Stock items and reservations as values, and how units move between them without a transaction. No I/O.

A stock item is the units of a product, or the room of a delivery slot in minor units of money. An item and a
reservation are two documents, so units leave one before they appear in the other. What closes the gap is a pending move
on the item, `pending_moves[order] = change of the quantity`, written in the same update as the quantity and stored in
the field `moving`:

    reserve    1. item: quantity - n, pending move -n    2. insert the reservation         3. item: clear the move
    release    1. item: quantity + n, pending move +n    2. reservation becomes RELEASED   3. item: clear the move
    ship       1. item: shipped + n, pending move 0      2. reservation becomes SHIPPED    3. item: clear the move
    return     1. item: quantity + k, pending move +k    2. reservation records the refund 3. item: clear the move

A return puts k units of a refund back, under a key of its own (`return_id`), and the order keeps the others.

A hold is a reservation without an order. An order takes it over by both at once, in one update of the item: the move
of the hold is +n, that of the order -m, and the quantity changes by n - m. So the units are never free in between.

Four rules make this safe with any number of workers, each of which may be killed or stall at any point:

* Every change of an item is guarded by the version it was read at, and increments the version.
* A worker reads the items first and the reservations after them. An order with neither a pending move at version v nor
  a reservation that was read later was not applied as of v, because its move is cleared only after its reservation
  exists. If the guard on v then matches, it still was not.
* A move is cleared only when the reservation says what became of the order (`clear_moves`); any worker may do it.
* Two workers may choose different slots for one order. The reservation names the slot that the order has; a pending
  move on any other slot is room that comes back (`Decision.status_for`).

Conservation, at every moment, where `supplied` is everything that was ever set or restocked, or a slot's capacity:

    supplied = quantity + units out

Of an order's n units, n are out if its pending move is -n, and none if it is positive. Otherwise n are out if its
reservation is RESERVED or SHIPPED and, for a slot, names that slot; if not, none. The units of its returns are not out,
from the pending move on. `shipped` counts those of the units out that have left: of SHIPPED reservations, and of
RESERVED ones with a pending move of 0. Slots do not count it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple, Self, TypeVar

from shared.contracts.inventory import ServerSpecification
from shared.errors import PoisonError

MAX_UNITS = 10**12
"""The largest quantity of a product, far below what a JSON double holds exactly."""


class Kind(StrEnum):
    """What a product is: goods are counted; of servers the provider alone knows how many there are."""

    GOODS = "goods"
    VPS = "vps"


SLOT = "slot"
"""The kind of a delivery slot's document; not a kind of product."""


class Status(StrEnum):
    """What became of an order's stock. Only RESERVED changes once more, to RELEASED or SHIPPED."""

    RESERVED = "RESERVED"
    FAILED = "FAILED"
    RELEASED = "RELEASED"
    SHIPPED = "SHIPPED"

    @property
    def keeps_units(self) -> bool:
        """Return whether the units are out: held for the order, or delivered."""
        return self in (Status.RESERVED, Status.SHIPPED)


@dataclass(frozen=True, slots=True)
class Description:
    """A product as an operator describes it; `price` in minor units."""

    kind: Kind
    name: str | None = None
    price: int | None = None
    package: str | None = None
    package_id: str | None = None
    ram: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StockItem:
    """A product or a slot at one version; version 0 is not stored yet.

    `quantity` is what is free, out of `supplied`. It is None where stock is not counted.
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
        """True if its stock is counted."""
        return self.quantity is not None

    @property
    def free(self) -> int:
        """Free units; 0 if stock is not counted, negative for a slot whose capacity was lowered below its load."""
        return self.quantity or 0

    @property
    def reserved(self) -> int:
        """Units held for orders."""
        return (self.supplied or 0) - self.free

    def held_for(self, order_id: str) -> int:
        """Units taken for this order by a pending move: its reservation may not exist yet."""
        return max(0, -self.pending_moves.get(order_id, 0))

    def with_change(self, change: int, pending_moves: Mapping[str, int]) -> Self:
        """Add `change` to the quantity and replace the pending moves."""
        return replace(self, quantity=self.free + change, pending_moves=pending_moves)


@dataclass(frozen=True, slots=True, kw_only=True)
class Product(StockItem):
    """A product; `price` in minor units. `shipped` units have been delivered."""

    kind: Kind
    name: str | None = None
    price: int | None = None
    package: str | None = None
    package_id: str | None = None
    ram: int | None = None
    shipped: int = 0
    on_sale: bool = True
    off_sale_reason: str | None = None
    """Why it is not on sale, for operators; None if it is, or if no reason was given."""

    @property
    def reserved(self) -> int:
        """Units held for orders that are not delivered yet."""
        return (self.supplied or 0) - self.free - self.shipped


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot(StockItem):
    """A delivery slot: `supplied` is its capacity and `reserved` its load, both in minor units.

    `adjusted` is true if an operator has set a capacity for this slot, which then no longer follows the rules.
    `ceiling` is the load at the moment when the capacity was lowered below it. It falls with the load, and is gone once
    the load fits the capacity.
    """

    start: datetime
    end: datetime
    disabled: bool = False
    adjusted: bool = False
    ceiling: int | None = None

    @property
    def capacity(self) -> int:
        """The highest load that orders may reach, in minor units."""
        return self.supplied or 0

    def with_change(self, change: int, pending_moves: Mapping[str, int]) -> Self:
        """Add `change` to the room and replace the pending moves; a load above the capacity can only fall."""
        load = self.reserved - change
        ceiling = min(self.ceiling, load) if self.ceiling is not None and load > self.capacity else None
        return replace(self, quantity=self.free + change, pending_moves=pending_moves, ceiling=ceiling)

    def with_capacity(self, capacity: int) -> Self:
        """Change the capacity and keep what is booked."""
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
    """An order's room in a slot: its price, in minor units. The work becomes visible at `visible_at`."""

    slot_id: str
    start: datetime
    visible_at: datetime
    price: int


@dataclass(frozen=True, slots=True)
class Assignment:
    """The order that another system has booked a slot for; `number` counts its assignments."""

    order_id: str
    number: int
    items_count: int


def assignment_id(order_id: str, number: int) -> str:
    """Return the id of an assignment's reservation. Order ids contain no colon, so it is never an order's."""
    return f"assignment:{number}:{order_id}"


def is_assignment(reservation_id: str) -> bool:
    """Return whether this is the id of an assignment's reservation."""
    return reservation_id.startswith("assignment:")


def assignment_of(reservation_id: str) -> Assignment:
    """Read the assignment from its reservation's id, which has no count of items."""
    _, number, order_id = reservation_id.split(":", 2)
    return Assignment(order_id, int(number), items_count=0)


class Return(NamedTuple):
    """The units of a refund that go back into free stock, by product."""

    refund_id: str
    units: Mapping[str, int]


def return_id(order_id: str, refund_id: str) -> str:
    """Return the key of a return's pending moves. Order ids contain no colon, so it is never an order's."""
    return f"return:{refund_id}:{order_id}"


def refund_of(key: str) -> tuple[str, str] | None:
    """Read order and refund from the key of a return's pending moves; None for another key."""
    if not key.startswith("return:"):
        return None
    _, refund_id, order_id = key.split(":", 2)
    return order_id, refund_id


class HoldOutcome(StrEnum):
    """How a hold ended. It is set once, by the one update that still finds it open."""

    TAKEN = "TAKEN"
    """An order has taken it over."""
    EXPIRED = "EXPIRED"
    DELETED = "DELETED"


@dataclass(frozen=True, slots=True)
class HoldTerms:
    """For whom a hold is and until when; once it has ended, how, and for which order.

    At `due_at` the sweep looks at it: at its expiry, and after its end until its units are back.
    """

    user_id: str
    expires_at: datetime
    due_at: datetime
    outcome: HoldOutcome | None = None
    order_id: str | None = None
    fingerprint: str | None = None


@dataclass(frozen=True, slots=True)
class HoldUse:
    """What became of the hold that an order named: TAKEN, or why its units were reserved as usual."""

    hold_id: str
    outcome: str


HOLD_PREFIX = "hold:"
UNKNOWN_HOLD = "UNKNOWN"
"""The outcome of a hold that does not exist, or belongs to another owner or user."""
USED_HOLD = "USED"
"""The outcome of a hold that another order has taken over."""


def hold_reservation_id(hold_id: str) -> str:
    """Return the id of a hold's reservation. Order ids contain no colon, so it is never an order's."""
    return f"{HOLD_PREFIX}{hold_id}"


def is_hold(reservation_id: str) -> bool:
    """Return whether this is the id of a hold's reservation."""
    return reservation_id.startswith(HOLD_PREFIX)


class Decision(NamedTuple):
    """A reservation's status, and the slot that the order has, if any."""

    status: Status
    slot_id: str | None = None

    def status_for(self, item: StockItem) -> Status:
        """Return what it means for the order's pending move on this item: only the slot that it names is kept."""
        if self.status.keeps_units and isinstance(item, Slot) and item.id != self.slot_id:
            return Status.RELEASED
        return self.status


@dataclass(frozen=True, slots=True)
class Reservation:
    """The decision about an order's stock; redelivered messages repeat it.

    A reservation with an `assignment` holds a slot and nothing else, and has its own id (slot_assigner.py).
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
    owner_id: str | None = None
    """The owner of the order; None for orders without one, and for reservations of earlier releases."""
    user_id: str | None = None
    returns: tuple[Return, ...] = ()
    """The units that refunds have put back."""
    hold: HoldTerms | None = None
    """Only of a hold."""
    used_hold: HoldUse | None = None
    """Only of an order that named a hold, or was served from one."""

    @property
    def decision(self) -> Decision:
        """The part that pending moves depend on."""
        return Decision(self.status, self.booking.slot_id if self.booking else None)

    @property
    def holds(self) -> dict[str, int]:
        """Units that are out while it is RESERVED or SHIPPED, by item, less those put back; for a slot, the price."""
        held = units_by_product(self.items) | ({self.booking.slot_id: self.booking.price} if self.booking else {})
        for each in self.returns:
            for item_id, count in each.units.items():
                held[item_id] = held.get(item_id, 0) - count
        return held

    def still_held(self, item: StockItem) -> int:
        """Return the units of an item that it holds, given the item as read before: less returns not recorded yet."""
        if self.hold is not None:  # a hold has no refunds, and an item may have the moves of a thousand holds
            return self.holds.get(item.id, 0)
        recorded = {return_id(self.order_id, each.refund_id) for each in self.returns}
        pending = sum(
            change
            for key, change in item.pending_moves.items()
            if key not in recorded and (refund := refund_of(key)) and refund[0] == self.order_id
        )
        return self.holds.get(item.id, 0) - pending

    def is_shipped_from(self, item: StockItem) -> bool:
        """Return whether an item counts its units as shipped, given the item as read before."""
        return self.status is Status.SHIPPED or item.pending_moves.get(self.order_id) == 0


NO_HOLDS: Mapping[str, Mapping[str, int]] = {}


def units_by_product(lines: Iterable[ReservationLine]) -> dict[str, int]:
    """Add up the units of each product."""
    total: dict[str, int] = {}
    for line in lines:
        total[line.product_id] = total.get(line.product_id, 0) + line.quantity
    return total


def take(
    item: AnyStockItem, takes: Mapping[str, int], from_holds: Mapping[str, Mapping[str, int]] = NO_HOLDS
) -> AnyStockItem:
    """Take units out of the quantity, by order, as pending moves; `from_holds` are units of holds that orders get.

    A hold's units come back and go out in the same change. What an order does not need of them becomes free.
    """
    pending_moves = dict(item.pending_moves)
    for order_id, count in takes.items():
        held = from_holds.get(order_id, {})
        pending_moves[order_id] = pending_moves.get(order_id, 0) - count - sum(held.values())
        pending_moves |= held
    return item.with_change(-sum(takes.values()), pending_moves)


def return_units(item: AnyStockItem, returns: Mapping[str, int]) -> AnyStockItem:
    """Return the units that reservations hold, by order; the positive pending move says that they are no longer out."""
    return item.with_change(sum(returns.values()), {**item.pending_moves, **returns})


def check_reserved(order_id: str, reservation: Reservation | None) -> Reservation:
    """Return the reservation if its goods can leave, or have left. Raises PoisonError if not."""
    if reservation is None or not reservation.status.keeps_units:
        state = "no reservation" if reservation is None else f"a reservation that is {reservation.status}"
        raise PoisonError(f"order {order_id} has {state}: there is nothing to ship")
    return reservation


def ship(product: Product, ships: Mapping[str, int]) -> Product:
    """Count the units that reservations hold as shipped, by order; the pending move of 0 says that they are counted."""
    return replace(
        product,
        shipped=product.shipped + sum(ships.values()),
        pending_moves={**product.pending_moves, **dict.fromkeys(ships, 0)},
    )


def put_back(
    reservation: Reservation,
    asked: Return,
    items: Mapping[str, AnyStockItem],
    known: Mapping[str, Mapping[str, Status]],
) -> list[AnyStockItem]:
    """Return the items, as they become, that get units of this refund back; `known` has statuses by item and order.

    It does not matter whether the order's units are RESERVED or have left: they become free. Items that have them back
    already are left out: by this very return, by a release in progress, or because their stock is not counted.
    Raises ValueError if the order does not hold as many units.
    """
    move, order_id = return_id(reservation.order_id, asked.refund_id), reservation.order_id
    changed = []
    for item_id, count in asked.units.items():
        item = items.get(item_id)
        if count > (held := reservation.holds.get(item_id, 0)):
            raise ValueError(f"{count} units of {item_id} cannot come back: the order has {held}")
        if item is None or not item.is_counted or move in item.pending_moves or item.pending_moves.get(order_id, 0) > 0:
            continue
        if count > (held := reservation.still_held(item)):
            raise ValueError(f"{count} units of {item_id} cannot come back: the order has {held}")
        # The reservation exists, so the order's own move is over. Left behind, it would be undone by a release.
        item = clear_moves(item, {**known.get(item_id, {}), order_id: Status.RESERVED})
        back = item.with_change(count, {**item.pending_moves, move: count})
        if isinstance(back, Product) and reservation.is_shipped_from(item):
            back = replace(back, shipped=back.shipped - count)
        changed.append(back)
    return changed


def clear_moves(item: AnyStockItem, known: Mapping[str, Status]) -> AnyStockItem:
    """Clear the pending moves of orders whose status is known from their reservations, however old the read.

    Units taken for an order that was refused or released go back in the same step.
    """
    if not item.pending_moves or not known:
        return item
    pending_moves: dict[str, int] = {}
    returned = 0
    for order_id, change in item.pending_moves.items():
        status = known.get(order_id)
        if status is None or (status is Status.RESERVED and change >= 0):  # the latter: a release or shipping goes on
            pending_moves[order_id] = change
        elif not status.keeps_units and change < 0:
            returned -= change
    if len(pending_moves) == len(item.pending_moves):
        return item
    return item.with_change(returned, pending_moves)


def may_return(item: StockItem, known: Mapping[str, Status]) -> int:
    """Count the units taken for orders that are not known to keep them."""
    return sum(
        -change
        for order_id, change in item.pending_moves.items()
        if change < 0 and not ((status := known.get(order_id)) and status.keeps_units)
    )
