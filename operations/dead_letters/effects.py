"""What a replay of one letter would do, as a value and in words. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from order_service.order import Order
from shared.contracts import Message


class Effect(StrEnum):
    """What kind of effect a replay would have."""

    CHANGES = "changes"
    NOTHING = "changes nothing"
    FAILS = "fails again"
    UNKNOWN = "no preview"


@dataclass(frozen=True, slots=True)
class Preview:
    """What a replay of one letter would do; `details` puts it into words.

    `sends` are the types of the messages that follow, and `order` is the order afterwards, by which tests compare
    the preview with what then happens; both only where known.
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
class Unreadable:
    """A record on which this release cannot decide, and why."""

    why: str


def arrow(name: str, before: str | None, after: str | None) -> str:
    """Describe the change of a state, such as "stock PENDING → RESERVED"."""
    return f"{name}{before or 'nothing'} → {after or 'nothing'}"


def no_preview(message: Message) -> Preview:
    """Return the preview of a message that its service decides on when it handles it."""
    return Preview(Effect.UNKNOWN, f"{message.routing_key} can be read; its service decides when it handles it")


def damaged(record: str, error: Exception) -> str:
    """Say that a record has something else than it should, without its content."""
    return f"the record of {record} is damaged ({type(error).__name__})"
