"""Judges one product: whether what was supplied is free or out for orders. Pure: no I/O, no clock.

Inventory takes units from a product in one write and records the reservation in another; in between, a mark on the
product, `moving[order] = change of the quantity`, says what happened. So of an order's n units, n are out if its mark
is minus n, none if its mark is positive (they are back already), and without a mark n if its reservation is RESERVED.
"""

from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from operations.audit.report import Violation

Document = dict[str, Any]

MARKED = timedelta(seconds=60)
"""How long after the end of its order a mark may stay: inventory removes it at once, its sweep within seconds."""


class Shelf(NamedTuple):
    """A product and what belongs to it: units of its RESERVED reservations, and the records of orders with a mark."""

    product_id: str
    product: Document | None
    reserved: int
    reservations: Mapping[str, Document]
    orders: Mapping[str, Document]

    def violation(self, invariant: int, kind: str, found: str, expected: str) -> Violation:
        """A violation of this product."""
        return Violation(invariant, kind, "product", self.product_id, found, expected)


def judge(shelf: Shelf, now: datetime) -> list[Violation]:
    """Everything that is wrong with the product."""
    product = shelf.product
    if product is None:
        found = f"{shelf.reserved} units reserved of a product that does not exist"
        return [shelf.violation(1, "unknown product", found, "a product of this id")]
    return [*_marks(shelf, product, now), *(_conserved(shelf, product) if product.get("kind") != "vps" else ())]


def lingering(shelf: Shelf, now: datetime) -> int:
    """How many marks have stayed on the product long after their orders' end; they do no harm to the books."""
    marked = (shelf.product or {}).get("moving") or {}
    return sum(_ended(shelf.orders.get(order_id), now) for order_id in marked)


def out(shelf: Shelf) -> int:
    """Units that are out for orders."""
    units = shelf.reserved
    for order_id, change in ((shelf.product or {}).get("moving") or {}).items():
        units += max(0, -change) - _reserved_for(shelf, order_id)
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
        elif change < 0 and _reserved_for(shelf, order_id) == 0 and _ended(shelf.orders[order_id], now):
            found = f"{-change} units held for order {order_id}, which is over and has no stock reserved"
            yield shelf.violation(2, "mark", found, "units of ended orders back on the shelf")


def _reserved_for(shelf: Shelf, order_id: str) -> int:
    reservation = shelf.reservations.get(order_id)
    if reservation is None or reservation.get("status") != "RESERVED":
        return 0
    return sum(item["quantity"] for item in reservation.get("items", ()) if item["productId"] == shelf.product_id)


def _ended(order: Document | None, now: datetime) -> bool:
    if order is None or not order.get("settled"):
        return False
    updated = order.get("updatedAt")
    return not isinstance(updated, datetime) or now - updated > MARKED
