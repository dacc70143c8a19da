"""Products, stock and reservations as the API shows them."""

from datetime import datetime
from typing import Any

from inventory_service.stock import Kind, Product, Reservation, Status
from shared.clock import to_rfc3339
from shared.http import View
from shared.money import to_json_number


class ProductView(View):
    """A product as it was described."""

    product_id: str
    kind: Kind
    name: str | None
    price: float | None
    package: str | None
    package_id: str | None
    ram: int | None
    created_at: datetime
    updated_at: datetime


class ProductPage(View):
    """A page of products, by id."""

    items: list[ProductView]
    next_cursor: str | None


class StockView(View):
    """What is free to sell of a product and what is held for orders; `quantity` is null where nothing is counted."""

    product_id: str
    quantity: int | None
    reserved: int


class StockPage(View):
    """A page of stock, by product id."""

    items: list[StockView]
    next_cursor: str | None


class LineView(View):
    """One product of a reservation."""

    product_id: str
    quantity: int
    price: float


class ReservationView(View):
    """What became of an order's stock."""

    order_id: str
    status: Status
    items: list[LineView]
    failure_reason: str | None


def show_product(product: Product) -> dict[str, Any]:
    """Show a product's description."""
    return {
        "productId": product.product_id,
        "kind": product.kind,
        "name": product.name,
        "price": None if product.price is None else to_json_number(product.price),
        "package": product.package,
        "packageId": product.package_id,
        "ram": product.ram,
        "createdAt": to_rfc3339(product.created_at),
        "updatedAt": to_rfc3339(product.updated_at),
    }


def show_stock(product: Product) -> dict[str, Any]:
    """Show a product's stock."""
    return {"productId": product.product_id, "quantity": product.quantity, "reserved": product.reserved}


def show_reservation(reservation: Reservation) -> dict[str, Any]:
    """Show a reservation."""
    return {
        "orderId": reservation.order_id,
        "status": reservation.status,
        "items": [
            {"productId": line.product_id, "quantity": line.quantity, "price": to_json_number(line.price)}
            for line in reservation.items
        ],
        "failureReason": reservation.failure_reason,
    }
