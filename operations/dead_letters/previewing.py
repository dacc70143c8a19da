"""Reads the letters and the orders that a preview is made from; it writes nothing and sends nothing."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pymongo import AsyncMongoClient
from pymongo.read_concern import ReadConcern

from operations.dead_letters.filters import Filters
from operations.dead_letters.preview import (
    Effect,
    Orders,
    Preview,
    UnreadableOrder,
    body_to_send,
    damaged,
    message_of,
    preview_from_json,
    previews,
)
from operations.dead_letters.records import LetterRecords
from order_service.order import Order
from order_service.orders import from_document
from order_service.particulars import UNREAD
from shared.clock import utc_now
from shared.contracts import Message, OrderMessage
from shared.database import Document
from shared.errors import NewerOrderError
from shared.services import CONSOLE, ORDER

MOST_PREVIEWED = 1000
"""The most letters of a selection that a preview looks at, in the order in which a replay sends them."""

PAGE = 100


@dataclass(frozen=True, slots=True)
class SelectionPreview:
    """What a replay of a selection would do: letter by letter for the first of them, of `total` in all."""

    letters: Sequence[tuple[str, Preview]]
    total: int

    @property
    def counts(self) -> list[tuple[str, Effect, int]]:
        """Count the letters by what a replay would do with them: in words, its kind, and the number, the most first."""
        return count_effects(preview for _, preview in self.letters)

    def as_json(self) -> dict[str, Any]:
        """Return the preview as a JSON document shows it."""
        return {
            "total": self.total,
            "previewed": len(self.letters),
            "counts": [{"effect": effect, "text": words, "letters": number} for words, effect, number in self.counts],
            "items": [{"id": key, "effect": each.effect, "text": each.in_words()} for key, each in self.letters],
        }


def selection_preview_from_json(document: Mapping[str, Any]) -> SelectionPreview:
    """Return the preview that a JSON document shows."""
    return SelectionPreview([(each["id"], preview_from_json(each)) for each in document["items"]], document["total"])


def count_effects(found: Iterable[Preview]) -> list[tuple[str, Effect, int]]:
    """Count letters by what a replay would do with them: in words, its kind, and the number, the most first."""
    counted = Counter((preview.in_words(), preview.effect) for preview in found)
    return [(words, effect, number) for (words, effect), number in counted.most_common()]


class ReplayPreviews:
    """Previews of the replays of a stack. Lets the driver's errors out."""

    def __init__(self, client: AsyncMongoClient[Document], prefix: str) -> None:
        self._letters = LetterRecords(client[CONSOLE.database_in(prefix)])
        orders = client[ORDER.database_in(prefix)]["orders"]
        self._orders = orders.with_options(read_concern=ReadConcern("majority"))

    async def of_letter(self, letter: Document, body: bytes | None = None) -> Preview:
        """Return what a replay of this letter would do, with another body if one is given."""
        message = message_of(letter, body_to_send(letter) if body is None else body)
        return (await self.of_messages([message]))[0]

    async def of_messages(self, messages: Sequence[Message | Preview]) -> list[Preview]:
        """Return what each of these messages would do, one after the other."""
        return list(previews(messages, await self._orders_of(messages), utc_now()))

    async def of_selection(self, filters: Filters, most: int = MOST_PREVIEWED) -> SelectionPreview:
        """Return what a replay of the selected letters would do, for the first ones that it would send."""
        ids = await self._letters.replayable(filters, most)
        messages: list[Message | Preview] = []
        for start in range(0, len(ids), PAGE):
            letters = await self._letters.without_big_bodies(ids[start : start + PAGE])
            messages += [message_of(letter, body_to_send(letter)) for letter in letters]
        found = await self.of_messages(messages)
        return SelectionPreview(list(zip(ids, found, strict=True)), await self._letters.count_replayable(filters))

    async def _orders_of(self, messages: Iterable[Message | Preview]) -> Orders:
        """Return the orders that the messages are about, as they are now."""
        ids = {message.order_id for message in messages if isinstance(message, OrderMessage)}
        found = self._orders.find({"_id": {"$in": list(ids)}}, {"history": False, **UNREAD})
        return {document["_id"]: _order(document) async for document in found}


def _order(document: Document) -> Order | UnreadableOrder:
    try:
        return from_document(document)
    except NewerOrderError as error:
        return UnreadableOrder(str(error))
    except (AttributeError, LookupError, TypeError, ValueError) as error:  # a field is missing, or is something else
        return UnreadableOrder(damaged(document["_id"], error))
