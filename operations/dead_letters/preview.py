"""What a replay would do with an order, by the services' own decisions, without any effect. Pure.

Messages have a preview as far as it does not depend on a bank, a slot or a worker, which decide only when a message is
handled. Of the others, it is only known whether they could be read.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from operations.dead_letters.effects import Effect, Preview, Unreadable, arrow, damaged, no_preview
from operations.dead_letters.letter import current_body, replay_envelope
from operations.dead_letters.masking import mask_text
from operations.dead_letters.notification_preview import preview_notification
from operations.dead_letters.payment_preview import preview_payment
from operations.dead_letters.provisioning_preview import preview_provisioning
from operations.dead_letters.stock_preview import Stock, preview_stock
from order_service.order import Order, Status
from order_service.participants import PARTICIPANTS
from order_service.saga import SAGA
from payment_service.lifecycle import Payment
from provisioning_service.job import Job
from shared.bus import Delivery
from shared.bus.reading import read
from shared.contracts import Message, OrderMessage
from shared.database import Document
from shared.errors import PoisonError, UnknownTypeError, UnknownValueError
from shared.topology import (
    INBOXES,
    INVENTORY_INBOX,
    NOTIFICATION_INBOX,
    ORDER_INBOX,
    PAYMENT_INBOX,
    PROVISIONING_INBOX,
)


@dataclass(frozen=True, slots=True)
class Read:
    """A message as the consumer of an inbox would read it."""

    queue: str
    message: Message


ToPreview = Read | Preview
"""A message, or the preview of one that cannot be read."""


@dataclass(frozen=True, slots=True)
class Records:
    """What the services have recorded about the orders that messages are about, by the order's id."""

    orders: Mapping[str, Order | Unreadable] = field(default_factory=dict)
    stock: Stock = field(default_factory=Stock)
    payments: Mapping[str, Payment | Unreadable] = field(default_factory=dict)
    jobs: Mapping[str, Job | Unreadable] = field(default_factory=dict)


_ANSWERS = frozenset(SAGA.answer_types)


def body_to_send(letter: Document) -> bytes | None:
    """Return the body that a replay would send; None if it is too big to be loaded, and to be sent."""
    body: bytes | None = letter["body"]
    return current_body(letter) if letter["edits"] or body is not None else None


def message_of(letter: Document, body: bytes | None) -> ToPreview:
    """Return the message that the consumer would read from a replay, or the preview of its failure."""
    if body is None:
        return Preview(Effect.FAILS, f"the body has {letter['size']} bytes, too many to be sent: edit it")
    try:
        sent = replay_envelope(letter, "preview", body)
        delivery = Delivery(
            body=sent.body,
            queue=letter["queue"],
            exchange=sent.exchange,
            routing_key=sent.routing_key,
            type=sent.type,
            correlation_id=sent.correlation_id,
            message_id=sent.message_id,
            redelivered=False,
            headers=sent.headers,
            receipt=None,
        )
        return Read(letter["queue"], read(delivery, INBOXES.get(letter["queue"], ())))
    except (PoisonError, UnknownTypeError, UnknownValueError, ValueError) as error:
        return Preview(Effect.FAILS, mask_text(f"{type(error).__name__}: {error}"))


def previews(messages: Iterable[ToPreview], records: Records, now: datetime) -> Iterator[Preview]:
    """Yield what each message would do, one after the other: a message finds the records as those before it left them.

    After one without a preview, the others of the same inbox about the same order have none either.
    """
    decisions, undecided = _decisions(records, now), set[tuple[str, str]]()
    for each in messages:
        if isinstance(each, Preview):
            yield each
            continue
        message, about = each.message, (each.queue, each.message.correlation_id)
        if about in undecided or each.queue not in decisions:
            yield no_preview(message)
            continue
        try:
            found = decisions[each.queue](message)
        except (AttributeError, LookupError, TypeError, ValueError) as error:  # a record has what it should not
            found = Preview(Effect.UNKNOWN, damaged(f"order {message.correlation_id}", error))
        # An event is no record that the messages after it find.
        if found.effect is Effect.UNKNOWN and each.queue != NOTIFICATION_INBOX:
            undecided.add(about)
        yield found


Decide = Callable[[Any], Preview]
"""Returns what a message of an inbox would do; each inbox has its own types of messages."""


def _decisions(records: Records, now: datetime) -> Mapping[str, Decide]:
    """Return the decisions by inbox; they change their copy of the records as the messages would."""
    orders, stock, payments = dict(records.orders), records.stock.copy(), dict(records.payments)
    jobs = dict(records.jobs)
    return {
        ORDER_INBOX: lambda message: _answered(message, orders, now),
        INVENTORY_INBOX: lambda message: preview_stock(message, stock, now),
        PAYMENT_INBOX: lambda message: preview_payment(message, payments, now),
        PROVISIONING_INBOX: lambda message: preview_provisioning(message, jobs, now),
        NOTIFICATION_INBOX: lambda message: preview_notification(message, now),
    }


def _answered(message: Message, orders: dict[str, Order | Unreadable], now: datetime) -> Preview:
    if not isinstance(message, OrderMessage) or type(message) not in _ANSWERS:
        return no_preview(message)
    order = orders.get(message.order_id)
    if order is None:
        why = f"{message.routing_key} for order {message.order_id}, which does not exist"
        return Preview(Effect.FAILS, f"{PoisonError.__name__}: {why}")
    if isinstance(order, Unreadable):
        return Preview(Effect.UNKNOWN, order.why)
    transition = SAGA.advance(order, message, now)
    sends = tuple(each.routing_key for each in transition.messages)
    orders[message.order_id] = transition.order
    if transition.entry is None:
        state = "settled" if order.settled else str(order.status.value)
        return Preview(Effect.NOTHING, state, order, sends)
    return Preview(Effect.CHANGES, _changes(order, transition.order, message), transition.order, sends)


def _changes(before: Order, after: Order, message: Message) -> str:
    """Describe the difference: of the status, else of the parts of the order within it."""
    if after.status is not before.status:
        return arrow("", before.status.value, after.status.value)
    states: list[tuple[str, str | None, str | None]] = [
        *((each.name, each.state(before), each.state(after)) for each in PARTICIPANTS),
        ("provisioning", before.provisioning_status, after.provisioning_status),
    ]
    parts = [arrow(f"{name} ", old, new) for name, old, new in states if old != new]
    return f"{Status(after.status).value}, {' and '.join(parts) or f'records {message.routing_key}'}"
