"""Refunds in part: what is left to refund, and what each event does to a refund. Pure: no I/O, no clock.

    PENDING ──payment.refunded_part──▶ REFUNDED ──stock.returned──▶ REFUNDED and returned, if it restocks
       └──payment.refund_part_failed──▶ FAILED: nothing was returned, and the amount can be asked for again

The money of PENDING refunds counts as gone: of several requests for more than is left, only the first are accepted. So
do their units. A refund is a part of the order's record; the version of the record decides between concurrent requests.
"""

from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from typing import Any

from order_service.events import RefundPartRequested
from order_service.order import Order, Refund, RefundStatus
from order_service.participants import open_part
from order_service.rules import Transition
from shared.contracts import (
    Message,
    OrderRefunded,
    PartRefunded,
    PartRefundFailed,
    RefundPart,
    ReturnStock,
    StockReturned,
)
from shared.contracts.orders import MAX_REFUNDS, ReturnedItem
from shared.money import to_json_number

# --- Questions about an order. ---


def refunded_amount(order: Order) -> int:
    """Return what was returned of the order's money, in parts."""
    return sum(refund.amount for refund in order.refunds if refund.status is RefundStatus.REFUNDED)


def left(order: Order) -> int:
    """Return the amount that can still be refunded."""
    return order.total_amount - sum(refund.amount for refund in _effective(order))


def units_left(order: Order) -> dict[str, int]:
    """Return the units of each product that were bought and not refunded."""
    units: dict[str, int] = {}
    for item in order.items:
        units[item.product_id] = units.get(item.product_id, 0) + item.quantity
    for refund in _effective(order):
        for line in refund.lines:
            units[line.product_id] -= line.quantity
    return units


def is_waiting(order: Order) -> bool:
    """Return whether a refund of the order waits for an answer."""
    return any(_command(order, refund) for refund in order.refunds)


def find(order: Order, refund_id: str) -> Refund | None:
    """Return a refund of the order, None if there is no such refund."""
    return next((refund for refund in order.refunds if refund.refund_id == refund_id), None)


def refusal(order: Order, refund: Refund) -> str | None:
    """Return why an order that is fulfilled does not allow this refund, None if it does."""
    if order.fulfilment == "vps":
        return "it is for a server, and only goods are refunded in part"
    if open_ := open_part(order):
        return open_
    if len(order.refunds) >= MAX_REFUNDS:
        return f"it has {MAX_REFUNDS} refunds, the most that an order may have"
    units = units_left(order)
    for line in refund.lines:
        if line.quantity > units.get(line.product_id, 0):
            return f"{units.get(line.product_id, 0)} units of {line.product_id} are left, not {line.quantity}"
    if refund.amount > left(order):
        total = _money(order, order.total_amount)
        return f"{_money(order, left(order))} of {total} is left, not {_money(order, refund.amount)}"
    if refund.amount == 0:
        return "these lines cost nothing"
    return None


def commands(order: Order) -> tuple[Message, ...]:
    """Return the commands that refunds of the order still need answers to."""
    return tuple(command for refund in order.refunds if (command := _command(order, refund)))


def news(order: Order, refund: Refund) -> OrderRefunded:
    """Return the event that the money of a refund is returned, still without the order."""
    return OrderRefunded(
        order_id=order.order_id,
        user_id=order.user_id,
        owner_id=order.owner_id,
        refund_id=refund.refund_id,
        amount=refund.amount,
        at=refund.updated_at,
    )


# --- The rules of the saga's table. ---


def request(order: Order, event: RefundPartRequested, _now: datetime) -> Transition | None:
    """Add the refund to the order and have its money returned."""
    if find(order, event.refund_id) or refusal(order, event.refund) is not None:
        return None
    after = replace(order, refunds=(*order.refunds, event.refund))
    return Transition(after, _commands_of(after, event.refund))


def record_refunded(order: Order, answer: PartRefunded, now: datetime) -> Transition | None:
    """Record that the money is returned; a repeated answer repeats what followed from it."""
    refund = find(order, answer.refund_id)
    if refund is None or refund.status is RefundStatus.FAILED:
        return None
    if refund.status is RefundStatus.PENDING:
        refund = replace(refund, status=RefundStatus.REFUNDED, updated_at=now)
        order = _with(order, refund)
    return Transition(order, (news(order, refund), *_commands_of(order, refund)))


def record_failed(order: Order, answer: PartRefundFailed, now: datetime) -> Transition | None:
    """Record that nothing was returned."""
    refund = find(order, answer.refund_id)
    if refund is None or refund.status is not RefundStatus.PENDING:
        return None
    failed = replace(refund, status=RefundStatus.FAILED, failure_reason=answer.reason, updated_at=now)
    return Transition(_with(order, failed))


def record_returned(order: Order, answer: StockReturned, now: datetime) -> Transition | None:
    """Record that the units are back in free stock."""
    refund = find(order, answer.refund_id)
    if refund is None or not _awaits_stock(refund):
        return None
    return Transition(_with(order, replace(refund, returned=True, updated_at=now)))


# --- Helpers. ---


def _effective(order: Order) -> Iterator[Refund]:
    return (refund for refund in order.refunds if refund.status is not RefundStatus.FAILED)


def _awaits_stock(refund: Refund) -> bool:
    return refund.status is RefundStatus.REFUNDED and refund.restock and not refund.returned


def _commands_of(order: Order, refund: Refund) -> tuple[Message, ...]:
    command = _command(order, refund)
    return (command,) if command else ()


def _command(order: Order, refund: Refund) -> Message | None:
    """Return the command that the refund needs an answer to: for its money first, for its units afterwards."""
    ids: dict[str, Any] = {"order_id": order.order_id, "refund_id": refund.refund_id}
    if refund.status is RefundStatus.PENDING:
        return RefundPart(**ids, amount=refund.amount, reason=refund.reason or "")
    if _awaits_stock(refund):
        items = tuple(ReturnedItem(product_id=line.product_id, quantity=line.quantity) for line in refund.lines)
        return ReturnStock(**ids, items=items)
    return None


def _with(order: Order, changed: Refund) -> Order:
    refunds = tuple(changed if refund.refund_id == changed.refund_id else refund for refund in order.refunds)
    return replace(order, refunds=refunds)


def _money(order: Order, amount: int) -> str:
    return f"{to_json_number(amount)} {order.currency}"
