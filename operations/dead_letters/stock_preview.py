"""What a replay would do with the stock of an order, by the inventory service's own decisions. Pure.

A preview changes the copy of the records that it is given, so that the next letter finds them as this one left them.
Not all is known: a slot and a customer's own holds are only looked for when the message is handled.
"""

from collections.abc import Iterable, Set
from dataclasses import dataclass, field, replace
from datetime import datetime

from inventory_service.allocation import Refuse, Reserve, allocate, server_specification
from inventory_service.answers import answer
from inventory_service.stock import (
    Product,
    Reservation,
    ReservationLine,
    Status,
    StockItem,
    check_reserved,
    take,
    units_by_product,
)
from operations.dead_letters.effects import Effect, Preview, Unreadable, arrow
from order_service.participants import STOCK
from shared.contracts import OrderCreated, OrderMessage, ReturnStock, ShipStock, StockReturned, StockShipped
from shared.errors import PoisonError


@dataclass(frozen=True, slots=True)
class Stock:
    """Records of inventory, by id; `assigned` are the orders whose slot another system has chosen."""

    reservations: dict[str, Reservation | Unreadable] = field(default_factory=dict)
    products: dict[str, StockItem | Unreadable] = field(default_factory=dict)
    assigned: Set[str] = frozenset()

    def copy(self) -> "Stock":
        """Return a copy for previews to change."""
        return Stock(dict(self.reservations), dict(self.products), self.assigned)


def preview_stock(message: OrderMessage, stock: Stock, now: datetime) -> Preview:
    """Return what inventory would do with a message, and change its records as it would."""
    recorded = stock.reservations.get(message.order_id)
    if isinstance(recorded, Unreadable):
        return Preview(Effect.UNKNOWN, recorded.why)
    if isinstance(message, OrderCreated):
        return _reserve(message, recorded, stock, now)
    if isinstance(message, STOCK.undo_type):
        return _release(message, recorded, stock, now)
    if isinstance(message, ShipStock):
        return _ship(message, recorded, stock)
    put_back = {each.refund_id for each in recorded.returns} if recorded else set[str]()
    if isinstance(message, ReturnStock) and recorded and message.refund_id in put_back:
        return _nothing(recorded, StockReturned.routing_key)
    return _unknown(message, "what it comes to is known when the units are counted")


def _reserve(order: OrderCreated, recorded: Reservation | None, stock: Stock, now: datetime) -> Preview:
    if recorded is not None:
        return _nothing(recorded, answer(recorded).routing_key)
    if order.delivery.slot is not None or order.hold_id is not None or order.order_id in stock.assigned:
        _take_units(order, stock)
        return _unknown(order, "a slot or a hold is looked for when it is handled")
    asked = {item.product_id: stock.products.get(item.product_id) for item in order.items}
    for product in asked.values():
        if isinstance(product, Unreadable):
            return Preview(Effect.UNKNOWN, product.why)
    products = {name: product for name, product in asked.items() if isinstance(product, StockItem)}
    outcome = allocate([order], products, {})[order.order_id]
    if isinstance(outcome, Reserve):
        for product_id, count in outcome.take.items():
            stock.products[product_id] = take(products[product_id], {order.order_id: count})
        reserved = replace(_reservation(order, now), server=server_specification(order, products))
        return _record(reserved, None, stock, answer(reserved).routing_key)
    if isinstance(outcome, Refuse) and not outcome.is_shortage:
        refused = replace(_reservation(order, now), status=Status.FAILED, failure_reason=outcome.reason)
        return _record(refused, None, stock, answer(refused).routing_key, outcome.reason)
    return _unknown(order, f"{outcome.reason if isinstance(outcome, Refuse) else 'too little'}, apart from holds")


def _release(command: OrderMessage, recorded: Reservation | None, stock: Stock, now: datetime) -> Preview:
    if command.order_id in stock.assigned:
        return _unknown(command, "another system has chosen a slot for the order")
    if recorded is not None and recorded.status is not Status.RESERVED:
        return _nothing(recorded, STOCK.undone.routing_key)
    # The units are not added to what is free: an order that is short of them has no preview anyway.
    released = recorded or Reservation(command.order_id, Status.RELEASED, now, now)
    return _record(replace(released, status=Status.RELEASED), recorded, stock, STOCK.undone.routing_key)


def _ship(command: ShipStock, recorded: Reservation | None, stock: Stock) -> Preview:
    try:
        found = check_reserved(command.order_id, recorded)
    except PoisonError as error:
        return Preview(Effect.FAILS, f"{type(error).__name__}: {error}")
    if found.status is Status.SHIPPED:
        return _nothing(found, StockShipped.routing_key)
    return _record(replace(found, status=Status.SHIPPED), found, stock, StockShipped.routing_key)


def _reservation(order: OrderCreated, now: datetime) -> Reservation:
    return Reservation(order.order_id, Status.RESERVED, now, now, _lines(order))


def _lines(order: OrderCreated) -> tuple[ReservationLine, ...]:
    return tuple(ReservationLine(item.product_id, item.quantity, item.price or 0) for item in order.items)


def _take_units(order: OrderCreated, stock: Stock) -> None:
    """Leave to an order that may get it what it asks for: a later one must not count on it."""
    for product_id, count in units_by_product(_lines(order)).items():
        product = stock.products.get(product_id)
        if isinstance(product, Product) and product.is_counted:
            stock.products[product_id] = take(product, {order.order_id: count})


def _record(after: Reservation, before: Reservation | None, stock: Stock, sent: str, why: str = "") -> Preview:
    stock.reservations[after.order_id] = after
    change = arrow("stock ", before.status.value if before else None, after.status.value)
    return Preview(Effect.CHANGES, f"{change} ({why})" if why else change, sends=(sent,))


def _nothing(recorded: Reservation, sent: str) -> Preview:
    return Preview(Effect.NOTHING, f"stock {recorded.status.value}", sends=(sent,))


def _unknown(message: OrderMessage, why: str) -> Preview:
    return Preview(Effect.UNKNOWN, f"{message.routing_key} can be read; {why}")


def named_products(messages: Iterable[OrderMessage]) -> set[str]:
    """Return the products on which the previews of these messages depend."""
    return {item.product_id for each in messages if isinstance(each, OrderCreated) for item in each.items}
