"""The saga: what an order does with each message, in each status. Pure: no I/O, no clock, no settings.

    PENDING ──stock and payment are there──▶ CONFIRMED (goods)  or  PROVISIONING (servers) ──▶ COMPLETED
       │                                                                 │
       ├── refused, cancelled, timed out ──▶ CANCELLED ◀── cancelled ────┤
       │                                     compensates                 └── failed ──▶ FAILED, money held:
       │                                                                                 retry, refund, or hold expires

`SAGA` below is the whole of it: a row for every status, an entry for every event that does something there; every
other event is ignored. `outputs` says what an order in a status has sent; who finds its step already done sends it
again, so that a crash between write and publish is mended by the message coming again. `owed` says which of it an
unsettled order still waits for an answer to; that is sent again from time to time, as messages can be lost.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any, NamedTuple

from order_service.order import Entry, Order, Status
from shared.contracts import (
    CancelProvisioning,
    Message,
    OrderCancelled,
    OrderCompleted,
    OrderConfirmed,
    OrderCreated,
    OrderFailed,
    OrderProvisioning,
    PaymentFailed,
    PaymentProcessed,
    PaymentRefunded,
    ProvisioningCompleted,
    ProvisioningFailed,
    ProvisioningProgress,
    ProvisionServer,
    RefundPayment,
    ReleaseStock,
    StockReleased,
    StockReservationFailed,
    StockReserved,
)

MAX_RUNS = 20
"""How often the provisioning of one order may be tried: each run adds to its history and to its job."""


class CancelRequested(NamedTuple):
    """The client does not want the order any more."""

    reason: str
    routing_key: str = "order.cancel_requested"


class RetryRequested(NamedTuple):
    """An operator wants another run of the provisioning."""

    routing_key: str = "order.retry_requested"


class RefundRequested(NamedTuple):
    """An operator gives a failed order up."""

    routing_key: str = "order.refund_requested"


class DeadlinePassed(NamedTuple):
    """The time that a status may last is over: the saga timeout, or the hold of a failed order's money."""

    routing_key: str = "order.deadline_passed"


Event = (
    StockReserved
    | StockReservationFailed
    | StockReleased
    | PaymentProcessed
    | PaymentFailed
    | PaymentRefunded
    | ProvisioningProgress
    | ProvisioningCompleted
    | ProvisioningFailed
    | CancelRequested
    | RetryRequested
    | RefundRequested
    | DeadlinePassed
)


class Step(NamedTuple):
    """What an event leads to: the order afterwards, what is to be sent, and the line in its history, if any."""

    order: Order
    messages: tuple[Message, ...] = ()
    entry: Entry | None = None


def advance(order: Order, event: Event, now: datetime) -> Step:
    """Take the step that the event means for the order; a step that is done already only sends its messages again."""
    if _is_late(order, event):
        return Step(order)
    rule = SAGA[order.status].get(type(event))
    step = rule(order, event, now) if rule else None
    if step is None or step.order == order:
        return Step(order, _again(order, event, step))
    changed = step.order
    if changed.status is not order.status:
        changed = replace(changed, cause=event.routing_key)
    entry = Entry(now, event.routing_key, changed.status, _in_words(event))
    return Step(replace(changed, updated_at=now), step.messages, entry)


def accepts(order: Order, event: Event) -> bool:
    """Whether the event means something for the order: what a client or an operator may ask for."""
    rule = SAGA[order.status].get(type(event))
    return rule is not None and rule(order, event, order.updated_at) is not None


def outputs(order: Order) -> tuple[Message, ...]:
    """Return everything that an order in its present state has sent on its way into it: its news, then its commands."""
    return (*_news(order), *owed(order))


def awaits_answer(order: Order) -> bool:
    """Whether the order owes commands; unlike them, this can be told of a record that cannot be put into messages.

    A FAILED order whose money is held waits for a decision instead, and a settled order for nothing.
    """
    return not order.settled and (order.status is not Status.FAILED or order.compensating)


def owed(order: Order) -> tuple[Message, ...]:
    """Return the commands that an unsettled order waits for the answers to; see `awaits_answer`.

    They are sent again until they are answered, even if every message was lost: the record is the truth.
    """
    match order.status:
        case Status.PENDING:
            return (_created(order),)
        case Status.PROVISIONING:
            return (_provision(order), *((_stop(order),) if order.cancel_requested else ()))
        case Status.CANCELLED:
            return _compensation(order)
        case Status.FAILED if order.compensating:
            return _compensation(order)
        case _:
            return ()


def _news(order: Order) -> tuple[Message, ...]:
    event: dict[str, Any] = {"order_id": order.order_id, "user_id": order.user_id, "total_amount": order.total_amount}
    match order.status:
        case Status.PENDING:
            return ()
        case Status.CONFIRMED:
            return (OrderConfirmed(**event),)
        case Status.PROVISIONING:
            return (OrderProvisioning(**event),)
        case Status.COMPLETED:
            return (OrderCompleted(**event),)
        case Status.CANCELLED:
            return (OrderCancelled(**event, reason=order.failure_reason),)
        case Status.FAILED:
            return (OrderFailed(**event, reason=order.failure_reason),)


# --- The rules: what an event does. Each returns the step, or None where it means nothing. ---


def _stock_reserved(order: Order, event: StockReserved, now: datetime) -> Step:
    order = replace(
        order, stock="RESERVED", fulfilment=event.fulfilment, provisioning_spec=event.provisioning, slot=event.slot
    )
    return _join(order, now)


def _payment_processed(order: Order, event: PaymentProcessed, now: datetime) -> Step:
    return _join(replace(order, payment_status="PROCESSED", transaction_id=event.transaction_id), now)


def _join(order: Order, now: datetime) -> Step:
    """The parallel join: whichever answer comes second carries the order on."""
    if order.stock != "RESERVED" or order.payment_status != "PROCESSED":
        return Step(order)
    if order.fulfilment == "vps":
        return _start_run(order)
    return _enter(replace(order, status=Status.CONFIRMED, completed_at=now))


def _refused_by_stock(order: Order, event: StockReservationFailed, now: datetime) -> Step:
    return _cancel(replace(order, stock="FAILED"), event.reason, now)


def _refused_by_payment(order: Order, event: PaymentFailed, now: datetime) -> Step:
    return _cancel(replace(order, payment_status="FAILED"), event.reason, now)


def _stock_gone(order: Order, _event: StockReleased, now: datetime) -> Step:
    return _cancel(replace(order, stock="RELEASED"), "The stock was released before the order was confirmed", now)


def _money_gone(order: Order, event: PaymentRefunded, now: datetime) -> Step:
    order = replace(order, payment_status=event.status)
    return _cancel(order, "The payment was returned before the order was confirmed", now)


def _cancelled_by_client(order: Order, event: CancelRequested, now: datetime) -> Step:
    return _cancel(order, event.reason, now)


def _timed_out(order: Order, _event: DeadlinePassed, now: datetime) -> Step:
    silent = [name for name, state in (("stock", order.stock), ("payment", order.payment_status)) if state == "PENDING"]
    return _cancel(order, f"Timed out waiting for {' and '.join(silent)}", now)


def _cancel(order: Order, reason: str, now: datetime) -> Step:
    """Compensate whatever went through or still might: all but what is known to have failed."""
    return _enter(replace(order, status=Status.CANCELLED, failure_reason=reason, cancelled_at=now))


def _late_stock(order: Order, _event: StockReserved, _now: datetime) -> Step:
    held = replace(order, stock="RESERVED") if order.stock == "PENDING" else order
    return Step(held, (_release(order),))


def _late_payment(order: Order, _event: PaymentProcessed, _now: datetime) -> Step:
    held = replace(order, payment_status="PROCESSED") if order.payment_status == "PENDING" else order
    return Step(held, (_refund(order),))


def _stock_refused_late(order: Order, _event: StockReservationFailed, _now: datetime) -> Step:
    return Step(_settle(replace(order, stock="FAILED")))


def _payment_refused_late(order: Order, _event: PaymentFailed, _now: datetime) -> Step:
    return Step(_settle(replace(order, payment_status="FAILED")))


def _stock_returned(order: Order, _event: StockReleased, _now: datetime) -> Step:
    return Step(_settle(order if order.stock == "FAILED" else replace(order, stock="RELEASED")))


def _money_returned(order: Order, event: PaymentRefunded, _now: datetime) -> Step:
    final = order.payment_status in ("FAILED", "REFUNDED")
    return Step(_settle(order if final else replace(order, payment_status=event.status)))


def _start_run(order: Order) -> Step:
    """Ask for the server: for the first time, or once more."""
    order = replace(order, status=Status.PROVISIONING, provisioning_status="REQUESTED", failure_reason=None)
    return _enter(replace(order, provisioning_run=order.provisioning_run + 1))


def _progress(order: Order, event: ProvisioningProgress, _now: datetime) -> Step | None:
    """Record what is new: by its number, over all runs; from a sender who does not count, by its step and attempt."""
    if 0 < event.sequence <= order.progress_sequence:
        return None
    order = replace(order, provisioning_status="IN_PROGRESS", progress=f"{event.step}/{event.attempt}")
    return Step(replace(order, progress_sequence=event.sequence or order.progress_sequence))


def _server_ready(order: Order, event: ProvisioningCompleted, now: datetime) -> Step | None:
    """Complete the order, whichever run the server is from, as long as it is paid for."""
    if not _holds_all(order):
        return None
    ready = replace(order, status=Status.COMPLETED, server=event.server, completed_at=now, failure_reason=None)
    return _enter(replace(ready, provisioning_status="COMPLETED"))


def _provisioning_failed(order: Order, event: ProvisioningFailed, now: datetime) -> Step:
    """Cancel what is to be cancelled, unless a server was bought: then an operator decides, as after any failure."""
    order = replace(order, provisioning_status="FAILED", cancel_requested=order.cancel_requested and not event.bought)
    if order.cancel_requested:
        return _cancel(order, event.reason, now)
    return _enter(replace(order, status=Status.FAILED, failure_reason=event.reason))


def _stop_provisioning(order: Order, _event: CancelRequested, _now: datetime) -> Step:
    return Step(replace(order, cancel_requested=True), (_stop(order),))


def _try_again(order: Order, _event: RetryRequested, _now: datetime) -> Step | None:
    return _start_run(order) if _holds_all(order) and order.provisioning_run < MAX_RUNS else None


def _refunded_by_operator(order: Order, event: RefundRequested, now: datetime) -> Step | None:
    return _compensate_again(order, event, now) if order.compensating else _give_up(order, event, now)


def _give_up(order: Order, _event: RefundRequested | DeadlinePassed, _now: datetime) -> Step | None:
    if order.compensating:
        return None
    return Step(_settle(replace(order, compensating=True)), _compensation(order))


def _compensate_again(order: Order, _event: CancelRequested | RefundRequested, _now: datetime) -> Step | None:
    """Repeat the part of a compensation that has not been answered."""
    commands = owed(order)
    return Step(order, commands) if commands else None


# --- The page: status and event → rule. ---

Rule = Callable[..., Step | None]

_COMPENSATING: Mapping[type[object], Rule] = {
    StockReserved: _late_stock,
    StockReservationFailed: _stock_refused_late,
    StockReleased: _stock_returned,
    PaymentProcessed: _late_payment,
    PaymentFailed: _payment_refused_late,
    PaymentRefunded: _money_returned,
    CancelRequested: _compensate_again,
    RefundRequested: _compensate_again,
}

SAGA: Mapping[Status, Mapping[type[object], Rule]] = {
    Status.PENDING: {
        StockReserved: _stock_reserved,
        PaymentProcessed: _payment_processed,
        StockReservationFailed: _refused_by_stock,
        PaymentFailed: _refused_by_payment,
        StockReleased: _stock_gone,
        PaymentRefunded: _money_gone,
        CancelRequested: _cancelled_by_client,
        DeadlinePassed: _timed_out,
    },
    Status.CONFIRMED: {},
    Status.PROVISIONING: {
        ProvisioningProgress: _progress,
        ProvisioningCompleted: _server_ready,
        ProvisioningFailed: _provisioning_failed,
        CancelRequested: _stop_provisioning,
    },
    Status.COMPLETED: {},
    Status.CANCELLED: _COMPENSATING,
    Status.FAILED: {
        StockReleased: _stock_returned,
        PaymentRefunded: _money_returned,
        ProvisioningCompleted: _server_ready,
        RetryRequested: _try_again,
        CancelRequested: _compensate_again,
        RefundRequested: _refunded_by_operator,
        DeadlinePassed: _give_up,
    },
}


# --- What the rules are made of. ---


def _is_late(order: Order, event: Event) -> bool:
    """Whether the event tells of a run that a later one has followed: its failure is past."""
    return isinstance(event, ProvisioningFailed) and 0 < event.run < order.provisioning_run


def _holds_all(order: Order) -> bool:
    """Whether what the order takes to be fulfilled is there, and not on its way back."""
    return order.stock == "RESERVED" and order.payment_status == "PROCESSED" and not order.compensating


def _enter(order: Order) -> Step:
    order = _settle(order)
    return Step(order, outputs(order))


def _in_words(event: Event) -> str | None:
    """What the history tells people besides the event's name: what is going on, or the reason of a refusal."""
    return getattr(event, "message", None) or getattr(event, "reason", None)


def _again(order: Order, event: Event, step: Step | None) -> tuple[Message, ...]:
    """What a step that changes nothing sends: all of the status's outputs if this very message led into it."""
    if isinstance(event, Message) and event.routing_key == order.cause:
        return outputs(order)
    return step.messages if step else ()


def _settle(order: Order) -> Order:
    """Mark the order as settled once nothing more can happen by itself."""
    nothing_held = order.stock in ("FAILED", "RELEASED") and order.payment_status in ("FAILED", "VOIDED", "REFUNDED")
    match order.status:
        case Status.CONFIRMED | Status.COMPLETED:
            settled = True
        case Status.CANCELLED:
            settled = nothing_held
        case Status.FAILED:
            settled = order.compensating and nothing_held
        case _:
            settled = False
    return replace(order, settled=settled)


def _compensation(order: Order) -> tuple[Message, ...]:
    """Sent for what might still happen, not only for what did."""
    stock = () if order.stock in ("FAILED", "RELEASED") else (_release(order),)
    payment = () if order.payment_status in ("FAILED", "VOIDED", "REFUNDED") else (_refund(order),)
    return (*stock, *payment)


def _created(order: Order) -> OrderCreated:
    return OrderCreated(
        order_id=order.order_id,
        user_id=order.user_id,
        items=order.items,
        total_amount=order.total_amount,
        currency=order.currency,
        payment=order.payment,
        delivery=order.delivery,
    )


def _release(order: Order) -> ReleaseStock:
    return ReleaseStock(order_id=order.order_id, items=order.items)


def _refund(order: Order) -> RefundPayment:
    return RefundPayment(order_id=order.order_id, reason=order.failure_reason or "")


def _stop(order: Order) -> CancelProvisioning:
    return CancelProvisioning(order_id=order.order_id, run=order.provisioning_run)


def _provision(order: Order) -> ProvisionServer:
    spec = order.provisioning_spec
    if spec is None:
        raise ValueError(f"order {order.order_id} is to be provisioned, but stock.reserved did not say what")
    return ProvisionServer(
        order_id=order.order_id,
        user_id=order.user_id,
        package=spec.package,
        package_id=spec.package_id,
        ram=spec.ram,
        run=order.provisioning_run,
    )
