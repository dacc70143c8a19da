"""Views of products, stock, reservations and slots."""

from datetime import datetime
from typing import Any, Literal

from inventory_service.stock import HOLD_PREFIX, Booking, Kind, Product, Reservation, Slot, Status
from inventory_service.timetable import Rules
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
    on_sale: bool
    off_sale_reason: str | None
    created_at: datetime
    updated_at: datetime


class ProductPage(View):
    """A page of products, by id."""

    items: list[ProductView]
    next_cursor: str | None


class StockView(View):
    """How many units of a product are free to sell, held for orders, and delivered.

    `quantity` is null where nothing is counted.
    """

    product_id: str
    name: str | None
    on_sale: bool
    quantity: int | None
    reserved: int
    shipped: int


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
    slot: "AssignmentView | None"
    hold: "HoldUseView | None"


class HoldUseView(View):
    """The hold that the order named: TAKEN, or why its units were reserved as usual."""

    hold_id: str
    outcome: Literal["TAKEN", "UNKNOWN", "USED", "EXPIRED", "DELETED"]


class HeldLineView(View):
    """One product of a hold."""

    product_id: str
    quantity: int


class HoldView(View):
    """A hold; `order_id` is that of the order that has taken it over."""

    hold_id: str
    user_id: str
    status: Literal["HELD", "TAKEN", "EXPIRED", "DELETED"]
    expires_at: datetime
    items: list[HeldLineView]
    slot: str | None
    order_id: str | None


class AssignmentView(View):
    """The slot that an order has; `order_price` is what it takes of the slot's capacity."""

    slot_id: str
    slot_start: datetime
    visible_at: datetime
    order_price: float


class BookingView(View):
    """An order in a slot; `items` is empty for an order of another system, of which only the number is known."""

    order_id: str
    status: Status
    items: list[LineView]
    items_count: int
    slot_start: datetime
    visible_at: datetime
    order_price: float


class BookingPage(View):
    """A page of the orders in a slot, by the time at which they become visible."""

    items: list[BookingView]
    next_cursor: str | None


class SlotView(View):
    """A delivery slot; load and capacity are money, and the capacity is of the rules or of the slot's own."""

    slot_id: str
    start: datetime
    end: datetime
    capacity: float
    load: float
    disabled: bool
    follows_rules: bool


class SlotPage(View):
    """A page of slots, by their start."""

    items: list[SlotView]
    next_cursor: str | None


class SlotRulesView(View):
    """The rules by which there are slots; times of day in UTC."""

    duration_minutes: int
    capacity: float
    open_time: str
    close_time: str
    cutoff_minutes: int
    lead_minutes: int
    horizon_slots: int


def show_product(product: Product) -> dict[str, Any]:
    """Show a product's description."""
    return {
        "productId": product.id,
        "kind": product.kind,
        "name": product.name,
        "price": None if product.price is None else to_json_number(product.price),
        "package": product.package,
        "packageId": product.package_id,
        "ram": product.ram,
        "onSale": product.on_sale,
        "offSaleReason": product.off_sale_reason,
        "createdAt": to_rfc3339(product.created_at),
        "updatedAt": to_rfc3339(product.updated_at),
    }


def show_stock(product: Product) -> dict[str, Any]:
    """Show a product's stock."""
    return {
        "productId": product.id,
        "name": product.name,
        "onSale": product.on_sale,
        "quantity": product.quantity,
        "reserved": product.reserved,
        "shipped": product.shipped,
    }


def show_reservation(reservation: Reservation) -> dict[str, Any]:
    """Show a reservation."""
    return {
        "orderId": reservation.order_id,
        "status": reservation.status,
        "items": _lines(reservation),
        "failureReason": reservation.failure_reason,
        "slot": show_assignment(reservation.booking) if reservation.booking is not None else None,
        "hold": {"holdId": used.hold_id, "outcome": used.outcome} if (used := reservation.used_hold) else None,
    }


def show_hold(reservation: Reservation) -> dict[str, Any]:
    """Show a hold."""
    terms = reservation.hold
    if terms is None:
        raise ValueError(f"{reservation.order_id} is not a hold")
    return {
        "holdId": reservation.order_id.removeprefix(HOLD_PREFIX),
        "userId": terms.user_id,
        "status": terms.outcome or "HELD",
        "expiresAt": to_rfc3339(terms.expires_at),
        "items": [{"productId": line.product_id, "quantity": line.quantity} for line in reservation.items],
        "slot": reservation.booking.slot_id if reservation.booking is not None else None,
        "orderId": terms.order_id,
    }


def show_in_slot(reservation: Reservation) -> dict[str, Any]:
    """Show an order in the list of its slot."""
    if reservation.booking is None:
        raise ValueError(f"{reservation.order_id} has no slot")
    booking = show_assignment(reservation.booking)
    assignment = reservation.assignment
    return {
        "orderId": assignment.order_id if assignment else reservation.order_id,
        "status": reservation.status,
        "items": _lines(reservation),
        "itemsCount": assignment.items_count if assignment else sum(line.quantity for line in reservation.items),
        **{name: booking[name] for name in ("slotStart", "visibleAt", "orderPrice")},
    }


def _lines(reservation: Reservation) -> list[dict[str, Any]]:
    return [
        {"productId": line.product_id, "quantity": line.quantity, "price": to_json_number(line.price)}
        for line in reservation.items
    ]


def show_assignment(booking: Booking) -> dict[str, Any]:
    """Show the slot that an order has."""
    return {
        "slotId": booking.slot_id,
        "slotStart": to_rfc3339(booking.start),
        "visibleAt": to_rfc3339(booking.visible_at),
        "orderPrice": to_json_number(booking.price),
    }


def show_slot(slot: Slot) -> dict[str, Any]:
    """Show a slot."""
    return {
        "slotId": slot.id,
        "start": to_rfc3339(slot.start),
        "end": to_rfc3339(slot.end),
        "capacity": to_json_number(slot.capacity),
        "load": to_json_number(slot.reserved),
        "disabled": slot.disabled,
        "followsRules": not slot.adjusted,
    }


def show_rules(rules: Rules) -> dict[str, Any]:
    """Show the rules."""
    return {
        "durationMinutes": rules.duration,
        "capacity": to_json_number(rules.capacity),
        "openTime": _time_of_day(rules.opens),
        "closeTime": _time_of_day(rules.closes),
        "cutoffMinutes": rules.cutoff,
        "leadMinutes": rules.lead,
        "horizonSlots": rules.horizon,
    }


def _time_of_day(minutes: int) -> str:
    return f"{minutes // 60:02}:{minutes % 60:02}"
