"""An incident for people to work off: orders that wait, messages that failed, and servers that were not sold.

Nothing here is simulated but its cause: the messages fail in the services, and the orders wait for real.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import aiormq.exceptions
import orjson

from operations.dead_letters.filters import Filters
from operations.dead_letters.service import DeadLetterService
from operations.demo.shop_client import NotSettledError, ShopClient
from operations.errors import UnreachableError
from operations.reading.broker import CONNECT_SECONDS
from operations.reading.connection import open_bus, open_mongodb
from operations.reading.publishing import publish_once
from operations.settings import Stack
from shared.bus import Envelope
from shared.bus.amqp.connecting import connect
from shared.bus.publisher import Publisher
from shared.database import Collection
from shared.outage_words import with_detail
from shared.services import CONSOLE, ORDER
from shared.topology import EXCHANGE, INVENTORY_INBOX, ORDER_INBOX, PAYMENT_INBOX

PACKAGE = "203.0.113"
WITHIN_SECONDS = 120.0
POLL_SECONDS = 0.1

SETTINGS = {
    "ORDERSAGA_SAGA_TIMEOUT_SECONDS": "86400",
    "ORDERSAGA_RESEND_AFTER_SECONDS": "3600",
    "ORDERSAGA_TOPOLOGY_CHECK_SECONDS": "3600",
}
"""Settings under which the incident lasts: by default orders that wait are sent again after 30 s, or cancelled."""


@dataclass(frozen=True)
class Sizes:
    """How many orders and messages there are of each kind; `customers` place those of a kind in turn."""

    good: int = 40
    misread: int = 1
    """Orders that reach inventory with a word in place of a number."""
    lost: int = 0
    """Orders that do not reach inventory at all."""
    without_answer: int = 12
    foreign: int = 3
    not_json: int = 1
    servers: int = 4
    customers: int = 1

    @property
    def dead_letters(self) -> int:
        """How many messages fail."""
        return self.misread + self.without_answer + self.foreign + self.not_json


OF_DEMO = Sizes()

Say = Callable[[str], None]


@dataclass(frozen=True)
class Incident:
    """The orders of the incident, by what became of them, and the number of dead letters."""

    good: Sequence[str]
    misread: Sequence[str]
    without_answer: Sequence[str]
    failed_servers: Sequence[str]
    dead_letters: int
    lost: Sequence[str] = ()

    def as_json(self) -> dict[str, Any]:
        """Return the incident of a demo as JSON documents show it."""
        orders = {
            "good": self.good,
            "stuck": self.misread[0],
            "withoutAnswer": self.without_answer,
            "failedServers": self.failed_servers,
        }
        return {"orders": orders, "deadLetters": self.dead_letters}


async def make_incident(say: Say, stack: Stack, shop: ShopClient, sizes: Sizes = OF_DEMO) -> Incident:
    """Make the incident, and return it once all of it is there; `say` receives what happens.

    Raises UnreachableError or NotSettledError if it cannot be made.
    """
    async with (
        open_mongodb(stack.url_for_changes, purpose="make the incident", name="demo") as client,
        open_bus(stack.amqp_url, None, name="demo") as bus,
    ):
        orders = client[ORDER.database_in(stack.database_prefix)]["orders"]
        maker = _Maker(say, stack, shop, Publisher(bus), orders, sizes)
        good = await maker.good_orders()
        misread, lost = await maker.stuck_orders()
        waiting = await maker.orders_without_answer()
        failed = await maker.failed_servers()
        await maker.foreign_messages()
        await _until_recorded(stack, sizes.dead_letters)
    return Incident(good, misread, waiting, failed, sizes.dead_letters, lost)


@dataclass(frozen=True)
class _Maker:
    say: Say
    stack: Stack
    shop: ShopClient
    publisher: Publisher
    orders: Collection
    sizes: Sizes

    async def good_orders(self) -> list[str]:
        self.say(f"{self.sizes.good} customers order a lamp each, and all goes well.")
        await self.shop.set_stock("lamp", 5 * max(self.sizes.good, 40))
        placed = await self._place(self.sizes.good, "good", "lamp")
        await self._until(placed, settled=True)
        return placed

    async def stuck_orders(self) -> tuple[list[str], list[str]]:
        self.say("One order reaches inventory with a word in place of a number, and waits for its stock.")
        async with _without(self.stack.amqp_url, "order.created", INVENTORY_INBOX):
            placed = await self._place(self.sizes.misread + self.sizes.lost, "waiting", "lamp", units=2)
            await self._until(placed, paymentStatus="PROCESSED", unpublished=None)
        misread, lost = placed[: self.sizes.misread], placed[self.sizes.misread :]
        await self._publish(INVENTORY_INBOX, "order.created", *[await self._created(each, "two") for each in misread])
        return misread, lost

    async def orders_without_answer(self) -> list[str]:
        number = self.sizes.without_answer
        self.say(f"{number} orders are missing for a moment, as after a restore of an old copy, when")
        self.say("their payments are reported. Then they are back, paid, and nobody tells them so.")
        async with _without(self.stack.amqp_url, "order.created", PAYMENT_INBOX):
            placed = await self._place(number, "paid", "lamp")
            await self._until(placed, stockStatus="RESERVED", unpublished=None)
        bodies = [await self._created(order_id) for order_id in placed]
        of_these = {"_id": {"$in": placed}}
        missing = await self.orders.find(of_these).to_list(None)
        await self.orders.delete_many(of_these)
        try:
            await self._publish(PAYMENT_INBOX, "order.created", *bodies)
            await _until_recorded(self.stack, self.sizes.misread + number)
        finally:
            await self.orders.insert_many(missing)
        return placed

    async def failed_servers(self) -> list[str]:
        number = self.sizes.servers
        self.say(f"{number} servers are ordered, and the provider has none. Later it has {number + 2}.")
        await self.shop.set_provider_stock({PACKAGE: []})
        await self.shop.sell_as_server("server", PACKAGE)
        placed = await self._place(number, "hosted", "server")
        await self._until(placed, status="FAILED")
        free = [f"{PACKAGE}.{octet}" for octet in range(11, 13 + number)]
        await self.shop.set_provider_stock({PACKAGE: free})
        return placed

    async def foreign_messages(self) -> None:
        number = self.sizes.foreign
        self.say(f"A program for tests sends {number} messages about orders that nobody placed, and one that")
        self.say("is not JSON.")
        unknown = [orjson.dumps({"orderId": f"test-{each}"}) for each in range(1, number + 1)]
        await self._publish(ORDER_INBOX, "stock.released", *unknown)
        await self._publish(PAYMENT_INBOX, "order.created", *[b"order;lamp;1"] * self.sizes.not_json)

    async def _place(self, number: int, customer: str, product: str, units: int = 1) -> list[str]:
        """Place that many orders at once, by as many customers as there are."""
        names = [customer, *(f"{customer}-{other}" for other in range(2, self.sizes.customers + 1))]
        placed = (self.shop.order(names[each % len(names)], product, units=units) for each in range(number))
        return list(await asyncio.gather(*placed))

    async def _created(self, order_id: str, quantity: object = None) -> bytes:
        """Return the message that the order service sends about this order, with another quantity if one is given."""
        order = await self.shop.order_by_id(order_id)
        names = ("orderId", "userId", "ownerId", "totalAmount", "currency")
        known = {name: order[name] for name in names if order.get(name) is not None}
        changes = {} if quantity is None else {"quantity": quantity}
        items = [{**item, **changes} for item in order["items"]]
        payment = {"method": "card", "token": "tok_ok"}
        return orjson.dumps({**known, "items": items, "payment": payment, "delivery": {}})

    async def _publish(self, queue: str, kind: str, *bodies: bytes) -> None:
        await publish_once(
            self.publisher,
            [
                Envelope(
                    body=body,
                    exchange="",
                    routing_key=queue,
                    type=kind,
                    correlation_id="",
                    message_id=uuid4().hex,
                    mandatory=True,
                    headers={},
                )
                for body in bodies
            ],
        )

    async def _until(self, order_ids: Sequence[str], **fields: object) -> None:
        """Wait until all of these orders have these fields."""

        async def they_are() -> bool:
            found = await self.orders.count_documents({"_id": {"$in": list(order_ids)}, **fields})
            return found == len(order_ids)

        await _until(they_are, f"{len(order_ids)} orders are {fields}")


@asynccontextmanager
async def _without(amqp_url: str, routing_key: str, inbox: str) -> AsyncIterator[None]:
    """Keep messages of one type from an inbox while the context is open. Raises UnreachableError."""
    try:
        connection = await connect(amqp_url, CONNECT_SECONDS)
        async with connection:
            queue = await (await connection.channel()).get_queue(inbox)
            await queue.unbind(EXCHANGE, routing_key)
            try:
                yield
            finally:
                await queue.bind(EXCHANGE, routing_key)
    except (aiormq.exceptions.AMQPError, OSError, TimeoutError) as error:
        raise UnreachableError(f"RabbitMQ does not answer: {with_detail(error)}") from error


async def _until_recorded(stack: Stack, letters: int) -> None:
    """Wait until the console has recorded that many dead letters."""
    async with open_mongodb(stack.mongodb_url, purpose="count the dead letters", name="demo") as client:
        service = DeadLetterService(client[CONSOLE.database_in(stack.database_prefix)])

        async def they_are() -> bool:
            return await service.count_decidable(Filters()) >= letters

        await _until(they_are, f"{letters} dead letters are recorded")


async def _until(done: Callable[[], Awaitable[bool]], what: str) -> None:
    deadline = time.monotonic() + WITHIN_SECONDS
    while not await done():
        if time.monotonic() > deadline:
            raise NotSettledError(f"after {WITHIN_SECONDS:.0f} s it is not so that {what}")
        await asyncio.sleep(POLL_SECONDS)
