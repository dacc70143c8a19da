"""The broker loses everything in the middle of orders of all kinds: one command, and everything settles.

Nothing else sends again here: the repetitions of the order service begin after an hour.
`make test-recovery` runs the long form, with 5,000 orders.
"""

import asyncio
import contextlib
import logging
import os
import signal
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import timedelta
from typing import Any

import httpx
import pymongo
import pytest
from cryptography.fernet import Fernet
from pymongo.asynchronous.database import AsyncDatabase

import operations.settings
from operations.audit import audit
from operations.reading.broker import count_messages
from operations.recovery import RecoveryReport, recover
from operations.stack.broker_topology import apply_topology
from shared import topology
from shared.clock import utc_now
from shared.services import CONSOLE, NOTIFICATION, ORDER, Service
from tests.support import warm_processes
from tests.support.eventually import eventually
from tests.support.processes import Stack, run_stack
from tests.support.provisioning_processes import SHORT_DELAYS
from tests.support.servers import NativeServers, delete_topology
from tests.support.simulators import package, run_simulator

Document = dict[str, Any]

ORDERS = int(os.environ.get("RECOVERY_ORDERS", "120"))
SERVERS_AT_MOST = 240
"""As many addresses as the simulator's package has: each order for a server takes some tenths of a second."""
WITHIN = 120 + ORDERS / 10

PACKAGE = "103.181.91"
SETTINGS: dict[str, object] = {
    **SHORT_DELAYS,
    "resend_after_seconds": 3600,
    "republish_after_seconds": 1,
    "sweep_interval_seconds": 0.2,
    "topology_check_seconds": 0.5,
    "saga_timeout_seconds": 3600,
    "card_capture": "on_confirm",
    "webhook_key": Fernet.generate_key().decode(),
    "webhook_allow_private": True,
    "rate_limit": "",
}
RUNNING = ("order", "inventory", "payment", "provisioning")

_log = logging.getLogger(__name__)


class Shop:
    """A stack with something of every kind to sell, a registered webhook, and orders that are under way."""

    def __init__(self, stack: Stack, client: pymongo.AsyncMongoClient[Document], number: int) -> None:
        """`number` orders are placed, a quarter of them early: they are fulfilled before the loss."""
        self.stack = stack
        self.number, self.early = number, number // 4
        self._client = client
        self.orders = self.database(ORDER)["orders"]
        self.deliveries = self.database(NOTIFICATION)["deliveries"]
        self._holds: dict[int, str] = {}
        self._gate = asyncio.Semaphore(20)

    def database(self, service: Service) -> AsyncDatabase[Document]:
        return self._client[service.database_in(self.stack.database_prefix)]

    async def open(self) -> None:
        """Start the services, fill the stock, and register a webhook whose service ends before any order."""
        (notification,) = await self.stack.start("notification")
        endpoint = {"url": "http://127.0.0.1:9/", "events": ["order.*"]}
        await self.post("notification", "/webhooks", endpoint)
        await self.stack.kill(notification)
        await self.stack.start(*RUNNING)
        await self.stack.stock("p1", 2 * self.number)
        await self.stack.stock("rare", 0)
        url, body = f"{self.stack.url('inventory')}/products/vps", {"kind": "vps", "package": PACKAGE}
        (await self.stack.client.put(url, json=body)).raise_for_status()

    async def post(self, service: str, path: str, body: Any = None) -> Document:
        async with self._gate:
            answer = await self.stack.client.post(f"{self.stack.url(service)}{path}", json=body)
        assert answer.is_success, answer.text
        answered: Document = answer.json()
        return answered

    async def unsettled(self) -> int:
        return await self.orders.count_documents({"settled": False})

    async def settles(self) -> None:
        async def is_settled() -> bool:
            return await self.unsettled() == 0

        started = time.monotonic()
        await eventually(is_settled, WITHIN, "everything to settle")
        _log.info("everything settled %.1f s after the recovery", time.monotonic() - started)

    # --- Orders of all kinds. ---

    async def hold(self, number: int) -> None:
        """Hold the unit of an order that takes it over."""
        items = [{"productId": "p1", "quantity": 1}]
        asked = {"userId": f"u{number}", "items": items, "ttlSeconds": 3600}
        held = await eventually(lambda: self.post("inventory", "/holds", asked), WITHIN)
        self._holds[number] = held["holdId"]

    def body(self, number: int) -> Document:
        """Return the body of an order: half of them are plain, the others of some kind."""
        kinds: dict[int, Document] = {
            5: {"delivery": {"slot": "auto"}},
            6: _one("vps") if number % 20 == 6 and number < 20 * SERVERS_AT_MOST else {},
            7: {"holdId": self._holds.get(number)},
            8: {"payment": {"token": "tok_declined"}},
            9: _one("rare"),
        }
        return {"userId": f"u{number}", "payment": {"token": "tok_ok"}, **kinds.get(number % 10, {})}

    async def in_the_middle(self, lose: Callable[[], Awaitable[None]]) -> None:
        """Bring orders into every state, with messages in every inbox, and lose the messages meanwhile."""
        await asyncio.gather(*map(self.hold, range(7, self.number, 10)))
        with self.paused("provisioning"):
            await self.stack.place_many(self.early, self.body)
            await eventually(self.only_servers_are_left, WITHIN, "the early orders to be fulfilled")
            with self.paused("payment"):
                await self.request_more()
                placing = asyncio.create_task(
                    self.stack.place_many(self.number - self.early, lambda index: self.body(self.early + index))
                )
                await eventually(self.half_are_placed, WITHIN, "half of the orders to be placed")
                await lose()
                await placing
        unsettled = await self.unsettled()
        _log.info("%d of %d orders are not settled", unsettled, self.number)
        assert unsettled > self.number // 4

    async def only_servers_are_left(self) -> bool:
        waiting = self.orders.count_documents({"settled": False, "status": {"$ne": "PROVISIONING"}})
        return await waiting == 0 and await self.unsettled() > 0

    async def half_are_placed(self) -> bool:
        return await self.orders.count_documents({}) >= (self.early + self.number) // 2

    async def request_more(self) -> None:
        """Ask for refunds, deliveries and cancellations of early orders."""
        confirmed = await self.ids(status="CONFIRMED")
        provisioning = await self.ids(status="PROVISIONING")
        await asyncio.gather(
            *(self.request(order_id, "refunds", {"amount": 4}) for order_id in confirmed[0::3]),
            *(self.request(order_id, "deliver") for order_id in confirmed[1::3]),
            *(self.request(order_id, "cancel") for order_id in provisioning[0::2]),
        )

    async def request(self, order_id: str, what: str, body: Any = None) -> None:
        """Send a request about an order; again if a server of a busy machine does not answer in time."""

        async def is_accepted() -> bool:
            async with self._gate:
                answer = await self.stack.client.post(f"{self.stack.url('order')}/orders/{order_id}/{what}", json=body)
            return answer.is_success or answer.status_code == httpx.codes.CONFLICT  # it was accepted before

        await eventually(is_accepted, WITHIN, f"{what} of {order_id} to be accepted")

    async def ids(self, **query: str) -> list[str]:
        return [each["_id"] async for each in self.orders.find(query, {"_id": True}).sort("_id")]

    @contextlib.contextmanager
    def paused(self, service: str) -> Iterator[None]:
        """Stop the service's process without ending it, so that its messages wait."""
        (process,) = self.stack.processes(service)
        process.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            process.process.send_signal(signal.SIGCONT)

    # --- The recovery, and what must hold afterwards. ---

    async def recover(self) -> RecoveryReport:
        """Recover as the command does, in this process; again if a server does not answer in time."""
        known = self.stack
        found = operations.settings.Stack(known.mongodb_url, known.amqp_url, {}, None, known.database_prefix)
        an_hour_ago = utc_now() - timedelta(hours=1)
        report = await eventually(lambda: recover(found, by="tests", why="no queues", since=an_hour_ago), WITHIN)
        _log.info("%s", report.in_words())
        return report

    async def assert_books_balance(self) -> None:
        known = self.stack
        report = await eventually(lambda: audit(known.mongodb_url, known.amqp_url, known.database_prefix), WITHIN)
        assert report.ok, report.violations

    async def every_event_is_known(self) -> None:
        """Wait until the webhook has the event of each order's creation, of its status, and of its refunds."""

        async def all_known() -> bool:
            known = defaultdict[str, set[str]](set)
            async for each in self.deliveries.find({}, {"orderId": True, "type": True}):
                known[each["orderId"]].add(each["type"])
            async for order in self.orders.find({}, {"status": True, "refundedAmount": True}):
                expected = {"order.created", f"order.{order['status'].lower()}"}
                expected |= {"order.refunded"} if "refundedAmount" in order else set()
                if not expected <= known[order["_id"]]:
                    return False
            return True

        await eventually(all_known, WITHIN, "every event to be recorded for the webhook")


def _one(product: str) -> Document:
    return {"items": [{"productId": product, "quantity": 1, "price": 10}]}


@contextlib.asynccontextmanager
async def open_shop(
    mongodb_url: str, amqp_url: str, prefix: str, number: int, **settings: object
) -> AsyncIterator[Shop]:
    async with (
        run_simulator() as simulator,
        run_stack(mongodb_url, amqp_url, prefix, **SETTINGS, **simulator.settings, **settings) as stack,
        pymongo.AsyncMongoClient[Document](mongodb_url) as client,
    ):
        await simulator.packages([package(PACKAGE, SERVERS_AT_MOST)])
        shop = Shop(stack, client, number)
        await shop.open()
        yield shop


@pytest.fixture(autouse=True)
def requests_are_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "httpx")


@pytest.fixture
async def checking(mongodb_url: str, clean_broker: str, database_prefix: str) -> AsyncIterator[Shop]:
    """A shop whose services may declare nothing."""
    await apply_topology(clean_broker, topology.DEFAULT_OPTIONS)
    async with open_shop(mongodb_url, clean_broker, database_prefix, ORDERS, topology="check") as shop:
        yield shop


async def interrupted_recovery(shop: Shop) -> None:
    """Run a slow recovery, and kill it once it has settled an order."""
    before = await shop.unsettled()
    words = ("recover", "--rate", "0.5")
    recovery = await warm_processes.start("operations.cli", *words, environment=shop.stack.command_environment)

    async def has_settled_some() -> bool:
        return await shop.unsettled() < before

    await eventually(has_settled_some, WITHIN, "an order to settle")
    recovery.send_signal(signal.SIGKILL)
    await recovery.wait()


async def test_every_queue_and_exchange_is_deleted(checking: Shop) -> None:
    shop, stack = checking, checking.stack
    await shop.in_the_middle(lambda: delete_topology(stack.amqp_url))

    planned = await eventually(lambda: stack.command("recover", "--dry-run"), WITHIN)
    queues = topology.all_queues(topology.DEFAULT_OPTIONS)
    assert len(planned["missing"]) == len(topology.exchanges()) + len(queues)
    assert planned["commands"].keys() >= {
        "order.created",
        "payment.refund_part",
        "provisioning.requested",
        "provisioning.cancel",
    }
    notification = await stack.launch("notification")

    await interrupted_recovery(shop)
    report = await eventually(lambda: stack.command("recover"), WITHIN)
    _log.info("a killed recovery, and then %s", report)

    assert (report["ok"], report["missing"]) == (True, [])
    assert 0 < report["orders"] <= planned["orders"]
    await shop.settles()
    await stack.ready(notification)
    await shop.every_event_is_known()
    await assert_a_repetition_changes_nothing(shop)
    await shop.assert_books_balance()
    log = [each async for each in shop.database(CONSOLE)["actions"].find({"action": "broker.recover"}).sort("at")]
    outcomes = [each["outcome"] for each in log]
    assert outcomes[0] == "started"
    assert outcomes.count("started") == len(outcomes) // 2 + 1, "each but the one that was killed has an outcome"
    assert outcomes[-1].startswith("0 commands of 0 orders and ")


async def assert_a_repetition_changes_nothing(shop: Shop) -> None:
    """Recover once more: all events are published, and the last one is consumed before this returns."""
    known = await shop.deliveries.count_documents({})
    again = await shop.recover()
    assert (again.orders, +again.commands, again.missing) == (0, Counter(), [])
    assert again.events["order.created"] == await shop.orders.count_documents({})

    async def inboxes_are_empty() -> bool:
        levels = await count_messages(shop.stack.amqp_url, list(topology.INBOXES))
        return not any(levels[inbox] for inbox in topology.INBOXES if inbox != topology.OPERATIONS_INBOX)

    await eventually(inboxes_are_empty, WITHIN, "the inboxes to be empty")
    assert await shop.unsettled() == 0
    assert await shop.deliveries.count_documents({}) == known


@pytest.mark.extended
async def test_the_data_of_the_broker_are_wiped(own_servers: NativeServers, unique_id: str) -> None:
    """Services that may declare the topology do so by themselves, and consume again."""
    urls = own_servers.mongodb_url, own_servers.amqp_url
    async with open_shop(*urls, f"t{unique_id}", max(60, ORDERS // 10), topology="declare") as shop:
        await shop.in_the_middle(own_servers.wipe_broker)
        await shop.stack.start("notification")

        report = await shop.recover()

        assert report.ok
        await shop.settles()
        await shop.every_event_is_known()
        await shop.assert_books_balance()
