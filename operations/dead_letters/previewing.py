"""Reads the letters and the records of services that a preview is made from; it writes nothing and sends nothing."""

import asyncio
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from pymongo import AsyncMongoClient
from pymongo.read_concern import ReadConcern

from inventory_service.reservations import COLLECTION as RESERVATIONS
from inventory_service.reservations import reservation_of
from inventory_service.stock_documents import stock_item_of
from operations.dead_letters.effects import Effect, Preview, Unreadable, damaged, preview_from_json
from operations.dead_letters.filters import Filters
from operations.dead_letters.preview import Read, Records, ToPreview, body_to_send, message_of, previews
from operations.dead_letters.records import LetterRecords
from operations.dead_letters.stock_preview import Stock, named_products
from order_service.orders import from_document
from order_service.particulars import UNREAD
from payment_service.payment_documents import payment_of
from provisioning_service.jobs import COLLECTION as JOBS
from provisioning_service.jobs import job_of
from shared.clock import utc_now
from shared.contracts import OrderMessage
from shared.database import Collection, Database, Document
from shared.errors import NewerOrderError
from shared.services import CONSOLE, INVENTORY, ORDER, PAYMENT, PROVISIONING, Service
from shared.topology import INVENTORY_INBOX, ORDER_INBOX, PAYMENT_INBOX, PROVISIONING_INBOX

PRODUCTS, PAYMENTS = "products", "payments"
"""Collections; the modules that write them define metrics, which are those of their services and not of this one."""

MOST_PREVIEWED = 1000
"""The most letters of a selection that a preview looks at, in the order in which a replay sends them."""


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


Record = TypeVar("Record")


class ReplayPreviews:
    """Previews of the replays of a stack. Lets the driver's errors out."""

    def __init__(self, client: AsyncMongoClient[Document], prefix: str) -> None:
        self._letters = LetterRecords(client[CONSOLE.database_in(prefix)])

        def database(service: Service) -> Database:
            return client.get_database(service.database_in(prefix), read_concern=ReadConcern("majority"))

        self._orders = database(ORDER)["orders"]
        self._inventory = database(INVENTORY)
        self._payments = database(PAYMENT)[PAYMENTS]
        self._jobs = database(PROVISIONING)[JOBS]

    async def of_letter(self, letter: Document, body: bytes | None = None) -> Preview:
        """Return what a replay of this letter would do, with another body if one is given."""
        message = message_of(letter, body_to_send(letter) if body is None else body)
        return (await self.of_messages([message]))[0]

    async def of_messages(self, messages: Sequence[ToPreview]) -> list[Preview]:
        """Return what each of these messages would do, one after the other."""
        return list(previews(messages, await self._records_of(messages), utc_now()))

    async def of_selection(self, filters: Filters, most: int = MOST_PREVIEWED) -> SelectionPreview:
        """Return what a replay of the selected letters would do, for the first ones that it would send."""
        ids: list[str] = []
        messages: list[ToPreview] = []
        async for letter in self._letters.to_replay(filters, most):
            ids.append(letter["_id"])
            messages.append(message_of(letter, body_to_send(letter)))
        found = await self.of_messages(messages)
        return SelectionPreview(list(zip(ids, found, strict=True)), await self._letters.count_replayable(filters))

    async def _records_of(self, messages: Iterable[ToPreview]) -> Records:
        """Return what the services have recorded about the orders of the messages, as it is now."""
        about: dict[str, list[OrderMessage]] = defaultdict(list)
        for each in messages:
            if isinstance(each, Read) and isinstance(each.message, OrderMessage):
                about[each.queue].append(each.message)
        orders, stock, payments, jobs = await asyncio.gather(
            _read(self._orders, about[ORDER_INBOX], from_document, {"history": False, **UNREAD}),
            self._stock_of(about[INVENTORY_INBOX]),
            _read(self._payments, about[PAYMENT_INBOX], payment_of),
            _read(self._jobs, about[PROVISIONING_INBOX], job_of, {"credentials": False, "attempts": False}),
        )
        return Records(orders, stock, payments, jobs)

    async def _stock_of(self, messages: Sequence[OrderMessage]) -> Stock:
        if not messages:
            return Stock()
        reservations, ids = self._inventory[RESERVATIONS], list({message.order_id for message in messages})
        recorded, products, assigned = await asyncio.gather(
            _read(reservations, messages, reservation_of),
            self._inventory[PRODUCTS].find({"_id": {"$in": list(named_products(messages))}}).to_list(None),
            reservations.distinct("assignment.orderId", {"assignment.orderId": {"$in": ids}}),
        )
        items = {each["_id"]: _converted(each, stock_item_of, "product") for each in products}
        return Stock(recorded, items, frozenset(assigned))


async def _read(
    collection: Collection,
    messages: Sequence[OrderMessage],
    convert: Callable[[Document], Record],
    fields: Document | None = None,
) -> dict[str, Record | Unreadable]:
    """Return the records of the orders of these messages, by the order's id."""
    ids = list({message.order_id for message in messages})
    if not ids:
        return {}
    return {each["_id"]: _converted(each, convert) async for each in collection.find({"_id": {"$in": ids}}, fields)}


def _converted(document: Document, convert: Callable[[Document], Record], noun: str = "order") -> Record | Unreadable:
    try:
        return convert(document)
    except NewerOrderError as error:
        return Unreadable(str(error))
    except (AttributeError, LookupError, TypeError, ValueError) as error:  # a field is missing, or is something else
        return Unreadable(damaged(f"{noun} {document['_id']}", error))
