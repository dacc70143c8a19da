"""Judges one product: everything that was supplied must be free or out for orders. Pure: no I/O, no clock.

Inventory takes units from a product in one write and records the reservation in another. In between, a pending move on
the product, `moving[order] = change of the quantity`, tells what happened. So of an order's n units, n are out if its
pending move is minus n, none if it is positive (they are back already). Otherwise n are out if the reservation is
RESERVED or SHIPPED. Units that a refund puts back are not out any more, from the pending move of the return on; the
reservation records them in `returns`. Of those that are out, the product counts the shipped ones: those of SHIPPED
reservations, and of RESERVED ones with a pending move of 0, which are about to become SHIPPED.

Delivery slots are counted in the same way, and judged in slots.py.
"""

from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from operations.audit.report import Violation
from shared.contracts.orders import SLOT_PREFIX

Document = dict[str, Any]

LONGEST_PENDING = timedelta(seconds=60)
"""The time after which a pending move of a settled order is wrong: inventory removes it at once, a sweep in seconds."""

RETURN = "return:"
"""The prefix of the keys of pending moves that put units of a refund back: `return:<refund>:<order>`."""
HOLD = "hold:"
"""The prefix of reservations that are holds."""

ASSIGNMENT = "assignment:"
"""The prefix of reservations that are assignments of a slot by another system."""


class StockRecords(NamedTuple):
    """A product or a slot, and the records that it is judged by.

    `out` is what RESERVED and SHIPPED reservations have of it, in units or in minor units of money, and `shipped` what
    SHIPPED ones have; `reservations` and `orders` are those with a pending move.
    """

    product_id: str
    product: Document | None
    out: int
    shipped: int
    reservations: Mapping[str, Document]
    orders: Mapping[str, Document]

    @property
    def is_slot(self) -> bool:
        """True for a delivery slot, by its kind or, if it does not exist, by its id."""
        return (self.product or {}).get("kind") == "slot" or self.product_id.startswith(SLOT_PREFIX)

    def violation(self, invariant: int, kind: str, found: str, expected: str) -> Violation:
        """Return a violation of this product or slot."""
        return Violation(invariant, kind, "slot" if self.is_slot else "product", self.product_id, found, expected)


def judge(stock: StockRecords, now: datetime) -> list[Violation]:
    """Return every violation of the product."""
    product = stock.product
    if product is None:
        found = f"{stock.out} units reserved or shipped of a product that does not exist"
        return [stock.violation(1, "unknown product", found, "a product with this id")]
    return [*_pending_moves(stock, product, now), *(_conserved(stock, product) if product.get("kind") != "vps" else ())]


def lingering(stock: StockRecords, now: datetime) -> int:
    """Count the pending moves that have outlived their orders for long; the books balance nevertheless."""
    return sum(_is_outdated(stock, holder, now) for holder in _moves_of(stock))


def out(stock: StockRecords) -> int:
    """Return the units that are out for orders, and for assignments of a slot."""
    units = stock.out
    for holder, change in _moves_of(stock).items():
        if holder.startswith(RETURN):
            units -= _put_back(stock, holder, change)
        elif change:
            units += max(0, -change) - held_by(stock.reservations.get(holder), stock.product_id)
    return units


def shipped(stock: StockRecords) -> int:
    """Return the units that have been delivered, and not come back."""
    moves = _moves_of(stock)
    units = stock.shipped
    for holder, change in moves.items():
        reservation = stock.reservations.get(order_of(holder))
        if not change and reservation and is_reserved(reservation):
            units += held_by(reservation, stock.product_id)
        elif holder.startswith(RETURN) and (not is_reserved(reservation or {}) or moves.get(order_of(holder)) == 0):
            units -= _put_back(stock, holder, change)
    return units


def _put_back(stock: StockRecords, key: str, change: int) -> int:
    """Return the units that a pending move has put back and the reservation does not know of yet."""
    _, refund_id, order_id = key.split(":", 2)
    reservation = stock.reservations.get(order_id)
    recorded = [each.get("refundId") for each in (reservation or {}).get("returns") or ()]
    is_held = held_by(reservation, stock.product_id) > 0 and _moves_of(stock).get(order_id, 0) <= 0
    return change if is_held and refund_id not in recorded else 0


def _conserved(stock: StockRecords, product: Document) -> Iterator[Violation]:
    supplied, free = product.get("supplied"), product.get("quantity")
    if not isinstance(supplied, int) or not isinstance(free, int):
        yield stock.violation(1, "counts", f"supplied {supplied!r}, quantity {free!r}", "two whole numbers")
        return
    if free < 0:
        yield stock.violation(1, "negative", f"{free} free", "0 or more")
    held = out(stock)
    if supplied != free + held:
        found = f"{free} free and {held} out for orders, {free + held} together"
        yield stock.violation(1, "conservation", found, f"{supplied}, the number supplied")
    if not stock.is_slot and (counted := product.get("shipped", 0)) != (left := shipped(stock)):
        yield stock.violation(1, "shipped", f"{counted} shipped", f"{left}, the units of SHIPPED reservations")


def _pending_moves(stock: StockRecords, product: Document, now: datetime) -> Iterator[Violation]:
    for key, change in (product.get("moving") or {}).items():
        order_id = order_of(key)
        if is_hold(order_id):
            if change < 0 and _is_over(stock, order_id, now):
                found = f"a pending move of {-change} units for {order_id}, which has ended"
                yield stock.violation(2, "pending move", found, "the units of holds that have ended returned")
        elif order_id not in stock.orders:
            found = f"a pending move of {-change} units for order {order_id}, which does not exist"
            yield stock.violation(2, "pending move", found, "pending moves of orders only")
        elif (
            change < 0
            and not held_by(stock.reservations.get(order_id), stock.product_id)
            and is_settled_long_ago(stock.orders[order_id], now)
        ):
            found = (
                f"a pending move of {-change} units for order {order_id}, which is settled and has no stock reserved"
            )
            yield stock.violation(2, "pending move", found, "the units of settled orders returned")


# --- Shared with slots.py. ---


def is_hold(reservation_id: str) -> bool:
    """Return whether the id is that of a hold; order ids contain no colon."""
    return reservation_id.startswith(HOLD)


def is_assignment(reservation_id: str) -> bool:
    """Return whether the id is that of an assignment; order ids contain no colon."""
    return reservation_id.startswith(ASSIGNMENT)


def order_of(key: str) -> str:
    """Return the order, or assignment, that a pending move belongs to."""
    return key.split(":", 2)[2] if key.startswith(RETURN) else key


def held_by(reservation: Document | None, counted_id: str) -> int:
    """Return what a RESERVED or SHIPPED reservation has of a product, in units, or of a slot, in minor units."""
    if reservation is None or not keeps_units(reservation):
        return 0
    slot = reservation.get("slot") or {}
    held: int = slot.get("price", 0) if slot.get("slotId") == counted_id else 0
    held += sum(item["quantity"] for item in reservation.get("items", ()) if item["productId"] == counted_id)
    put_back = [item for each in reservation.get("returns") or () for item in each["items"]]
    back: int = sum(item["quantity"] for item in put_back if item["productId"] == counted_id)
    return held - back


def keeps_units(reservation: Document | None) -> bool:
    """Return whether what a reservation names is out: held, or delivered."""
    return (reservation or {}).get("status") in ("RESERVED", "SHIPPED")


def is_reserved(reservation: Document) -> bool:
    """Return whether what a reservation names is held, and not delivered yet."""
    return reservation.get("status") == "RESERVED"


def is_settled_long_ago(order: Document | None, now: datetime) -> bool:
    """Return whether the order has been settled for long enough that its pending moves must be gone."""
    return order is not None and bool(order.get("settled")) and _is_old(order, now)


def is_decided_long_ago(reservation: Document | None, now: datetime) -> bool:
    """Return whether the reservation was decided long enough ago that its pending moves must be gone."""
    return reservation is not None and _is_old(reservation, now)


def _is_over(stock: StockRecords, hold: str, now: datetime) -> bool:
    reservation = stock.reservations.get(hold)
    return is_decided_long_ago(reservation, now) and not held_by(reservation, stock.product_id)


def _is_outdated(stock: StockRecords, holder: str, now: datetime) -> bool:
    if is_assignment(holder) or is_hold(holder):
        return is_decided_long_ago(stock.reservations.get(holder), now)
    return is_settled_long_ago(stock.orders.get(order_of(holder)), now)


def _moves_of(stock: StockRecords) -> Mapping[str, int]:
    return (stock.product or {}).get("moving") or {}


def _is_old(record: Document, now: datetime) -> bool:
    updated = record.get("updatedAt")
    return not isinstance(updated, datetime) or now - updated > LONGEST_PENDING
