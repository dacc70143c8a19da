"""Judges one product: whether what was supplied is free or out for orders. Pure: no I/O, no clock.

Inventory takes units from a product in one write and records the reservation in another; in between, a mark on the
product, `moving[order] = change of the quantity`, says what happened. So of an order's n units, n are out if its mark
is minus n, none if its mark is positive (they are back already), and without a mark n if its reservation is RESERVED.

Delivery slots are counted in the same way, and judged in slots.py.
"""

from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from operations.audit.report import Violation
from shared.contracts.orders import SLOT_PREFIX

Document = dict[str, Any]

MARKED = timedelta(seconds=60)
"""How long after the end of its order a mark may stay: inventory removes it at once, its sweep within seconds."""

ASSIGNMENT = "assignment:"
"""How the id of a reservation begins that is a slot's assignment by another system."""


class Shelf(NamedTuple):
    """A product or a slot and what belongs to it.

    That is what RESERVED reservations hold of it, in units or in minor units of money, and the records of those who
    have a mark on it: reservations, and orders.
    """

    product_id: str
    product: Document | None
    reserved: int
    reservations: Mapping[str, Document]
    orders: Mapping[str, Document]

    @property
    def is_slot(self) -> bool:
        """Whether it is a delivery slot, by its kind or, where it does not exist, by the id that is meant."""
        return (self.product or {}).get("kind") == "slot" or self.product_id.startswith(SLOT_PREFIX)

    def violation(self, invariant: int, kind: str, found: str, expected: str) -> Violation:
        """A violation of this product or slot."""
        return Violation(invariant, kind, "slot" if self.is_slot else "product", self.product_id, found, expected)


def judge(shelf: Shelf, now: datetime) -> list[Violation]:
    """Everything that is wrong with the product."""
    product = shelf.product
    if product is None:
        found = f"{shelf.reserved} units reserved of a product that does not exist"
        return [shelf.violation(1, "unknown product", found, "a product of this id")]
    return [*_marks(shelf, product, now), *(_conserved(shelf, product) if product.get("kind") != "vps" else ())]


def lingering(shelf: Shelf, now: datetime) -> int:
    """How many marks have stayed long after their orders' end; they do no harm to the books."""
    return sum(_is_long_over(shelf, holder, now) for holder in _moving(shelf))


def out(shelf: Shelf) -> int:
    """What is out for orders, and for assignments of a slot."""
    units = shelf.reserved
    for holder, change in _moving(shelf).items():
        units += max(0, -change) - held_by(shelf.reservations.get(holder), shelf.product_id)
    return units


def _conserved(shelf: Shelf, product: Document) -> Iterator[Violation]:
    supplied, free = product.get("supplied"), product.get("quantity")
    if not isinstance(supplied, int) or not isinstance(free, int):
        yield shelf.violation(1, "counts", f"supplied {supplied!r}, quantity {free!r}", "two whole numbers")
        return
    if free < 0:
        yield shelf.violation(1, "negative", f"{free} free", "0 or more")
    held = out(shelf)
    if supplied != free + held:
        found = f"{free} free and {held} out for orders, together {free + held}"
        yield shelf.violation(1, "conservation", found, f"{supplied}, all that was ever supplied")


def _marks(shelf: Shelf, product: Document, now: datetime) -> Iterator[Violation]:
    for order_id, change in (product.get("moving") or {}).items():
        if order_id not in shelf.orders:
            found = f"{-change} units marked for order {order_id}, which does not exist"
            yield shelf.violation(2, "mark", found, "marks of orders only")
        elif (
            change < 0
            and not held_by(shelf.reservations.get(order_id), shelf.product_id)
            and is_settled_long_ago(shelf.orders[order_id], now)
        ):
            found = f"{-change} units held for order {order_id}, which is over and has no stock reserved"
            yield shelf.violation(2, "mark", found, "units of ended orders back on the shelf")


# --- What slots.py rests on too. ---


def is_assignment(reservation_id: str) -> bool:
    """Whether it is the id of a slot's assignment by another system; no order has a colon in its id."""
    return reservation_id.startswith(ASSIGNMENT)


def held_by(reservation: Document | None, counted_id: str) -> int:
    """What a reservation holds of a product, in units, or of a slot, in minor units; only while it is RESERVED."""
    if reservation is None or reservation.get("status") != "RESERVED":
        return 0
    slot = reservation.get("slot") or {}
    held: int = slot.get("price", 0) if slot.get("slotId") == counted_id else 0
    held += sum(item["quantity"] for item in reservation.get("items", ()) if item["productId"] == counted_id)
    return held


def is_settled_long_ago(order: Document | None, now: datetime) -> bool:
    """Whether the order is over, and every mark of it should be gone by now."""
    return order is not None and bool(order.get("settled")) and _is_old(order, now)


def is_decided_long_ago(reservation: Document | None, now: datetime) -> bool:
    """Whether the reservation exists, and the marks that it decides about should be gone by now."""
    return reservation is not None and _is_old(reservation, now)


def _is_long_over(shelf: Shelf, holder: str, now: datetime) -> bool:
    if is_assignment(holder):
        return is_decided_long_ago(shelf.reservations.get(holder), now)
    return is_settled_long_ago(shelf.orders.get(holder), now)


def _moving(shelf: Shelf) -> Mapping[str, int]:
    return (shelf.product or {}).get("moving") or {}


def _is_old(record: Document, now: datetime) -> bool:
    updated = record.get("updatedAt")
    return not isinstance(updated, datetime) or now - updated > MARKED
