"""What a replay would do with an order, by the saga's own decision, without any effect. Pure.

The answers that the order service takes have a preview. What the other services would do with a message depends on
stock, on a card's bank or on a provider, which are asked only when it is handled: of theirs, it is only known whether
they could read it.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from operations.dead_letters.letter import current_body, replay_envelope
from operations.dead_letters.masking import mask_text
from order_service.order import Order, Status
from order_service.participants import PARTICIPANTS
from order_service.saga import SAGA
from shared.bus import Delivery
from shared.bus.reading import read
from shared.contracts import Message, OrderMessage
from shared.database import Document
from shared.errors import PoisonError, UnknownTypeError, UnknownValueError
from shared.topology import INBOXES


class Effect(StrEnum):
    """What kind of effect a replay would have."""

    CHANGES = "changes"
    NOTHING = "changes nothing"
    FAILS = "fails again"
    UNKNOWN = "no preview"


@dataclass(frozen=True, slots=True)
class Preview:
    """What a replay of one letter would do; `details` puts it into words.

    `order` is the order afterwards, and `sends` are the types of the messages that follow; both only where known.
    """

    effect: Effect
    details: str
    order: Order | None = None
    sends: tuple[str, ...] = ()

    def in_words(self) -> str:
        """Describe the effect, such as "PENDING → CONFIRMED, sends order.confirmed"."""
        words = self.details if self.effect is Effect.CHANGES else f"{self.effect}: {self.details}"
        again = "" if self.effect is Effect.CHANGES else " again"
        return f"{words}, sends {' and '.join(self.sends)}{again}" if self.sends else words


def preview_from_json(document: Mapping[str, str]) -> Preview:
    """Return the preview that a JSON document shows in words."""
    effect, text = Effect(document["effect"]), document["text"]
    return Preview(effect, text if effect is Effect.CHANGES else text.removeprefix(f"{effect}: "))


@dataclass(frozen=True, slots=True)
class UnreadableOrder:
    """An order on which this release cannot decide, and why."""

    why: str


Orders = Mapping[str, Order | UnreadableOrder]

_ANSWERS = frozenset(SAGA.answer_types)


def body_to_send(letter: Document) -> bytes | None:
    """Return the body that a replay would send; None if it is too big to be loaded, and to be sent."""
    body: bytes | None = letter["body"]
    return current_body(letter) if letter["edits"] or body is not None else None


def message_of(letter: Document, body: bytes | None) -> Message | Preview:
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
        return read(delivery, INBOXES.get(letter["queue"], ()))
    except (PoisonError, UnknownTypeError, UnknownValueError, ValueError) as error:
        return Preview(Effect.FAILS, mask_text(f"{type(error).__name__}: {error}"))


def previews(messages: Iterable[Message | Preview], orders: Orders, now: datetime) -> Iterator[Preview]:
    """Yield what each message would do, one after the other: a message finds its order as those before it left it."""
    current = dict(orders)
    for message in messages:
        found = message if isinstance(message, Preview) else _preview(message, current, now)
        if found.order is not None:
            current[found.order.order_id] = found.order
        yield found


def _preview(message: Message, orders: Orders, now: datetime) -> Preview:
    if type(message) not in _ANSWERS or not isinstance(message, OrderMessage):
        return Preview(Effect.UNKNOWN, f"{message.routing_key} can be read; its service decides when it handles it")
    order = orders.get(message.order_id)
    if order is None:
        why = f"{message.routing_key} for order {message.order_id}, which does not exist"
        return Preview(Effect.FAILS, f"{PoisonError.__name__}: {why}")
    if isinstance(order, UnreadableOrder):
        return Preview(Effect.UNKNOWN, order.why)
    try:
        transition = SAGA.advance(order, message, now)
    except (AttributeError, LookupError, TypeError, ValueError) as error:  # its messages cannot be made
        return Preview(Effect.UNKNOWN, damaged(order.order_id, error))
    sends = tuple(each.routing_key for each in transition.messages)
    if transition.entry is None:
        state = "settled" if order.settled else str(order.status.value)
        return Preview(Effect.NOTHING, state, order, sends)
    return Preview(Effect.CHANGES, _changes(order, transition.order, message), transition.order, sends)


def damaged(order_id: str, error: Exception) -> str:
    """Say that the record of an order has something else than it should, without its content."""
    return f"the record of order {order_id} is damaged ({type(error).__name__})"


def _changes(before: Order, after: Order, message: Message) -> str:
    """Describe the difference: of the status, else of the parts of the order within it."""
    if after.status is not before.status:
        return _arrow("", before.status.value, after.status.value)
    states: list[tuple[str, str | None, str | None]] = [
        *((each.name, each.state(before), each.state(after)) for each in PARTICIPANTS),
        ("provisioning", before.provisioning_status, after.provisioning_status),
    ]
    parts = [_arrow(f"{name} ", old, new) for name, old, new in states if old != new]
    return f"{Status(after.status).value}, {' and '.join(parts) or f'records {message.routing_key}'}"


def _arrow(name: str, before: str | None, after: str | None) -> str:
    return f"{name}{before or 'nothing'} → {after or 'nothing'}"
