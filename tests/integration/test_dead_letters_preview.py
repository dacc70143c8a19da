"""A preview agrees with what then happens: random letters, previewed, then replayed through the real handlers."""

import asyncio
import random
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import pytest
from pymongo import AsyncMongoClient

from notification_service.deliveries import Deliveries
from notification_service.endpoint import Endpoint, Secret
from notification_service.endpoints import Endpoints
from notification_service.handlers import handlers as event_handlers
from operations.dead_letters.effects import Effect, Preview
from operations.dead_letters.filters import Filters
from operations.dead_letters.ingest import Ingest
from operations.dead_letters.notices import handlers as notice_handlers
from operations.dead_letters.previewing import ReplayPreviews
from operations.dead_letters.records import LetterRecords
from operations.dead_letters.replaying import Replayer
from operations.dead_letters.replays import ReplayRecords
from operations.dead_letters.service import DeadLetterService
from order_service.handlers import handlers as answer_handlers
from order_service.order import HistoryEntry, Order
from order_service.orders import Change, NewRecord, Orders
from order_service.saga import SAGA
from provisioning_service.handlers import handlers as job_handlers
from provisioning_service.job import State
from provisioning_service.jobs import Jobs
from provisioning_service.lifecycle import requested
from shared import contracts as c
from shared.bus import Delivery, Handler, Handlers
from shared.bus.publisher import Publisher
from shared.clock import utc_now
from shared.contracts import Message, OrderMessage
from shared.contracts.orders import PaymentInstruction
from shared.contracts.provisioning import Server
from shared.database import Collection, Database, Document
from shared.pausing.records import PauseRecords
from shared.topology import (
    DEAD_LETTERS,
    INVENTORY_INBOX,
    NOTIFICATION_INBOX,
    OPERATIONS_INBOX,
    ORDER_INBOX,
    PAYMENT_INBOX,
    PROVISIONING_INBOX,
)
from tests.integration.test_dead_letters import consuming
from tests.support.builders import TIMEOUTS, an_order, new_id
from tests.support.buses import RabbitHarness
from tests.support.consoles import a_letter
from tests.support.eventually import eventually
from tests.support.inventory_worker import Worker, inventory_database
from tests.support.inventory_worker import order as an_order_of
from tests.support.payment_workers import PaymentWorker, payment_worker
from tests.support.seeds import IS_LONG_FORM

LETTERS = 1000 if IS_LONG_FORM else 120
SEED = 17

ANSWERS: tuple[OrderMessage, ...] = (
    c.StockReserved(order_id="o"),
    c.StockReservationFailed(order_id="o", reason="none left"),
    c.StockReleased(order_id="o"),
    c.StockShipped(order_id="o"),
    c.PaymentProcessed(order_id="o", transaction_id="tx"),
    c.PaymentProcessed(order_id="o", status="AUTHORIZED", transaction_id="tx"),
    c.PaymentFailed(order_id="o", reason="declined"),
    c.PaymentCaptured(order_id="o"),
    c.PaymentCaptureFailed(order_id="o", reason="expired"),
    c.PaymentRefunded(order_id="o", status="REFUNDED"),
    c.PaymentRefunded(order_id="o", status="VOIDED"),
    c.ProvisioningProgress(order_id="o", step="buy", attempt=1, message="buying", sequence=1),
    c.ProvisioningCompleted(order_id="o", server=Server(ip="103.181.91.50")),
    c.ProvisioningFailed(order_id="o", reason="no address", run=1),
)


def about(message: OrderMessage, order_id: str) -> OrderMessage:
    return message.model_copy(update={"order_id": order_id})


def random_order(random_: random.Random) -> tuple[Order, Order]:
    """Return a new order, and what up to six random answers made of it."""
    new = order = an_order()
    for answer in random_.choices(ANSWERS, k=random_.randrange(7)):
        order = SAGA.advance(order, about(answer, new.order_id), utc_now()).order
    return new, order


def random_letter(random_: random.Random, order_id: str) -> Delivery:
    """Return a dead letter of the order service: mostly a valid answer, else about no order, or unreadable."""
    answer = random_.choice(ANSWERS)
    body = about(answer, order_id if random_.random() > 0.1 else "nothing").to_json()
    if random_.random() < 0.05:
        body = b'{"orderId": 7}'
    return a_letter(order_id, body=body, queue=ORDER_INBOX, routing_key=answer.routing_key)


def decided(order: Order) -> tuple[object, ...]:
    """Return what the saga decides, without times and versions."""
    states = (order.status, order.stock_status, order.payment_status, order.provisioning_status)
    return (*states, order.settled, order.failure_reason, order.server, order.progress, order.compensating)


@pytest.mark.long_form
async def test_a_preview_agrees_with_what_then_happens(mongodb_url: str, amqp_url: str, database_prefix: str) -> None:
    random_ = random.Random(SEED)
    async with (
        AsyncMongoClient[Document](mongodb_url, tz_aware=True, w="majority") as client,
        RabbitHarness.open(amqp_url) as harness,
    ):
        database, orders = (
            client[f"{database_prefix}_operations"],
            Orders(client[f"{database_prefix}_orders"]["orders"]),
        )
        service, records = DeadLetterService(database), LetterRecords(database)
        await service.prepare()
        before = await store_orders(orders, random_)
        await records.record([random_letter(random_, order_id) for order_id in before], utc_now())

        found = await ReplayPreviews(client, database_prefix).of_selection(Filters())
        assert len(found.letters) == found.total == LETTERS
        assert {each.effect for _, each in found.letters} == {Effect.CHANGES, Effect.NOTHING, Effect.FAILS}
        assert {key: decided(each) for key, each in (await orders.load(before)).items()} == before
        await harness.take_from(ORDER_INBOX, 0)

        table = answer_handlers(orders, PauseRecords(database), TIMEOUTS, utc_now, ())
        sent = await replay_all(harness, service, records, {ORDER_INBOX: table})
        after = await orders.load(before)
        letters = {letter["_id"]: letter async for letter in database["dead_letters"].find()}
        for letter_id, preview in found.letters:
            letter = letters[letter_id]
            assert agrees(preview, letter, before, after, sent), (preview, letter["error"], letter["orderId"])


def agrees(
    preview: Preview,
    letter: Document,
    before: dict[str, tuple[object, ...]],
    after: dict[str, Order],
    sent: Mapping[tuple[str, str], list[str]],
) -> bool:
    """Return whether the outcome of a replay is what its preview said."""
    order_id = letter["orderId"]
    outcome = letter["replays"][0]["outcome"]
    if preview.effect is Effect.FAILS:
        error = letter["replays"][0]["error"]
        return outcome == "dead" and preview.details.startswith(f"{error['type']}: ")
    assert preview.order is not None
    same = decided(after[order_id]) == decided(preview.order) and sent.get((ORDER_INBOX, order_id), []) == list(
        preview.sends
    )
    return (
        same
        and outcome == "handled"
        and (preview.effect is Effect.CHANGES or before[order_id] == decided(after[order_id]))
    )


async def store_orders(orders: Orders, random_: random.Random) -> dict[str, tuple[object, ...]]:
    """Store random orders; return what the saga has decided of each, by its id."""
    pairs = [random_order(random_) for _ in range(LETTERS)]
    await orders.insert([NewRecord(new) for new, _ in pairs])
    changes = [
        Change(new, order, (HistoryEntry(utc_now(), "before", order.status),)) for new, order in pairs if new != order
    ]
    assert await orders.apply(changes)
    return {order.order_id: decided(order) for _, order in pairs}


async def replay_all(
    harness: RabbitHarness, service: DeadLetterService, records: LetterRecords, tables: Mapping[str, Handlers]
) -> dict[tuple[str, str], list[str]]:
    """Replay all letters until every outcome is known; return what was sent, by the inbox and the order's id."""
    sent: dict[tuple[str, str], list[str]] = defaultdict(list)
    replay_id = await service.start_replay(Filters(), by="ann", why="fixed", rate=10_000)
    letters = Ingest(await harness.bus(DEAD_LETTERS), records)
    recording = asyncio.create_task(letters.run())
    async with AsyncExitStack() as stack:
        for inbox, table in tables.items():
            await stack.enter_async_context(consuming(harness, inbox, noting(inbox, table, sent)))
        await stack.enter_async_context(consuming(harness, OPERATIONS_INBOX, notice_handlers(records, utc_now)))
        replay = await ReplayRecords(service._database).acquire("test", replay_id)
        assert replay is not None
        await Replayer(service._database, Publisher(await harness.bus())).run(replay, "test")

        async def known() -> bool:
            outcome = await service.outcome(replay_id)
            return outcome.handled + outcome.failed == LETTERS

        await eventually(known, 120, "every outcome to be known")
    await letters.stop()
    await recording
    return sent


def noting(inbox: str, table: Handlers, sent: dict[tuple[str, str], list[str]]) -> Handlers:
    """Return the handlers of an inbox, which note what they send; types with one handler still have one."""

    def note(handler: Handler) -> Handler:
        async def handle(batch: Sequence[Any]) -> Sequence[Message]:
            messages = await handler(batch)
            for message in messages:
                sent[inbox, message.correlation_id].append(message.routing_key)
            return messages

        return handle

    wrapped = {handler: note(handler) for handler in set(table.values())}
    return {type_: wrapped[handler] for type_, handler in table.items()}


STOCK_HISTORIES = ("", "", "reserve", "reserve release", "reserve ship", "release")
PAYMENT_HISTORIES = ("", "", "charge", "charge refund", "refund", "decline")


@dataclass(frozen=True)
class Others:
    """Orders as inventory and payment know them, and the workers of both."""

    stock: Worker
    payment: PaymentWorker
    jobs: Collection
    notifications: Database

    @property
    def tables(self) -> Mapping[str, Handlers]:
        stock, payment = self.stock.handlers, self.payment._handlers
        endpoints, deliveries = Endpoints(self.notifications), Deliveries(self.notifications, timedelta(days=1))
        return {
            PROVISIONING_INBOX: job_handlers(Jobs(self.jobs), utc_now, lambda _: None, has_provider=True),
            NOTIFICATION_INBOX: event_handlers(endpoints, deliveries, utc_now, lambda _: None),
            INVENTORY_INBOX: {c.OrderCreated: stock.reserve, c.ReleaseStock: stock.release, c.ShipStock: stock.ship},
            PAYMENT_INBOX: {
                c.OrderCreated: payment.charge,
                c.CapturePayment: payment.capture,
                c.RefundPayment: payment.refund,
            },
        }

    async def states(self) -> dict[tuple[str, str], str]:
        """Return the recorded statuses by inbox and order."""
        found: dict[tuple[str, str], str] = {}
        for inbox, records in (
            (INVENTORY_INBOX, self.stock.database["reservations"]),
            (PAYMENT_INBOX, self.payment.database["payments"]),
        ):
            found |= {(inbox, each["_id"]): str(each["status"]) async for each in records.find()}
        found |= {(PROVISIONING_INBOX, each["_id"]): each["state"] async for each in self.jobs.find()}
        async for delivery in self.notifications["deliveries"].find():
            key = NOTIFICATION_INBOX, delivery["orderId"]
            found[key] = " ".join(sorted([*found.get(key, "").split(), delivery["type"]]))
        return found

    async def left_to_send(self) -> dict[str, list[str]]:
        """Return the messages that jobs have in their outboxes."""
        return {each["_id"]: [sent["routingKey"] for sent in each.get("outbox", ())] async for each in self.jobs.find()}

    async def live(self, orders: Sequence[c.OrderCreated], random_: random.Random) -> None:
        """Let each order have a random history with both services."""
        await self.stock.stock({"lamp": 10_000, "sofa": LETTERS // 20})
        stock, payment = [
            {order.order_id: random_.choice(histories).split() for order in orders}
            for histories in (STOCK_HISTORIES, PAYMENT_HISTORIES)
        ]
        await self.stock.reserve(*(order for order in orders if "reserve" in stock[order.order_id]))
        await self.stock.release(*(key for key, history in stock.items() if "release" in history))
        await self.payment.charge(*(order for order in orders if "charge" in payment[order.order_id]))
        declined = PaymentInstruction(token="tok_declined")
        refused = (order for order in orders if "decline" in payment[order.order_id])
        await self.payment.charge(*(order.model_copy(update={"payment": declined}) for order in refused))
        await self.payment.refund(*(key for key, history in payment.items() if "refund" in history))
        await self._provision(orders, random_)
        reserved = {key for (inbox, key), status in (await self.states()).items() if status == "RESERVED"}
        await self.stock.ship(*(key for key, history in stock.items() if "ship" in history and key in reserved))

    async def _provision(self, orders: Sequence[c.OrderCreated], random_: random.Random) -> None:
        """Give orders jobs in every state, whose messages are published, and shops a webhook, which knows of some."""
        states: list[dict[str, Any] | None] = [
            None,
            None,
            {"state": State.QUEUED},
            {"state": State.RUNNING},
            {"state": State.WAITING, "ip": "10.0.0.7"},
            {"state": State.FAILED, "failure_reason": "No address"},
            {"state": State.COMPLETED, "ip": "10.0.0.7", "server": Server(ip="10.0.0.7")},
        ]
        recorded = [(order, state) for order in orders if (state := random_.choice(states)) is not None]
        await Jobs(self.jobs).insert(
            [
                replace(requested(a_request(order), utc_now(), 1), outbox=(), due_at=None, **state)
                for order, state in recorded
            ]
        )
        secret = Secret(b"sealed", utc_now())
        everything = Endpoint("wh_1", "https://shop.example/", ("*",), (secret,), utc_now(), utc_now(), "shop")
        await Endpoints(self.notifications).insert(everything)
        known = [order.model_copy(update={"owner_id": "shop"}) for order in orders if random_.random() < 0.5]
        await self.tables[NOTIFICATION_INBOX][c.OrderCreated](known)


def a_request(order: c.OrderCreated, run: int = 1) -> c.ProvisionServer:
    return c.ProvisionServer(order_id=order.order_id, user_id="u1", package="10.0.0", run=run)


def random_new_order(random_: random.Random) -> c.OrderCreated:
    product = random_.choices(("lamp", "sofa", "ghost"), (8, 3, 1))[0]
    order = an_order_of(new_id(), {product: random_.randrange(1, 3)}, slot="auto" if random_.random() < 0.05 else None)
    free = {"total_amount": 0} if random_.random() < 0.2 else {}
    return order.model_copy(update={"payment": PaymentInstruction(token="tok_ok"), **free})


def letter_of_another(random_: random.Random, order: c.OrderCreated) -> Delivery:
    """Return a dead letter of another service about an order."""
    inbox, message = random_.choice(
        [
            (INVENTORY_INBOX, order),
            (INVENTORY_INBOX, c.ReleaseStock(order_id=order.order_id)),
            (INVENTORY_INBOX, c.ShipStock(order_id=order.order_id)),
            (PAYMENT_INBOX, order),
            (PAYMENT_INBOX, c.RefundPayment(order_id=order.order_id)),
            (PAYMENT_INBOX, c.CapturePayment(order_id=order.order_id)),
            (PROVISIONING_INBOX, a_request(order, random_.choice((1, 1, 2)))),
            (PROVISIONING_INBOX, c.CancelProvisioning(order_id=order.order_id)),
            (NOTIFICATION_INBOX, order.model_copy(update={"owner_id": "shop"})),
            (
                NOTIFICATION_INBOX,
                c.OrderCompleted(order_id=order.order_id, user_id="u1", owner_id="shop", total_amount=1),
            ),
        ]
    )
    return a_letter(order.order_id, body=message.to_json(), queue=inbox, routing_key=message.routing_key)


@pytest.mark.long_form
async def test_a_preview_of_other_services_agrees_too(mongodb_url: str, amqp_url: str, database_prefix: str) -> None:
    random_ = random.Random(SEED)
    async with (
        AsyncMongoClient[Document](mongodb_url, tz_aware=True, w="majority") as client,
        inventory_database(mongodb_url, database_prefix) as inventory,
        payment_worker(mongodb_url, database_prefix) as payment,
        RabbitHarness.open(amqp_url) as harness,
    ):
        jobs = client[f"{database_prefix}_provisioning"]["jobs"]
        others = Others(Worker(inventory), payment, jobs, client[f"{database_prefix}_notifications"])
        database = client[f"{database_prefix}_operations"]
        service, records = DeadLetterService(database), LetterRecords(database)
        await service.prepare()
        orders = [random_new_order(random_) for _ in range(LETTERS)]
        await others.live(orders, random_)
        before = await others.states()
        await records.record([letter_of_another(random_, order) for order in orders], utc_now())

        found = dict((await ReplayPreviews(client, database_prefix).of_selection(Filters())).letters)
        effects = Counter(preview.effect for preview in found.values())
        assert set(effects) == set(Effect)
        assert effects[Effect.UNKNOWN] < LETTERS / 2
        assert await others.states() == before

        sent = await replay_all(harness, service, records, others.tables)
        after, left = await others.states(), await others.left_to_send()
        letters = {letter["_id"]: letter async for letter in database["dead_letters"].find()}
        assert len(found) == len(letters) == LETTERS
        for letter_id, preview in found.items():
            letter = letters[letter_id]
            key = letter["queue"], letter["orderId"]
            states = before.get(key, "nothing"), after.get(key, "nothing")
            messages = sent.get(key, []) + (left.get(key[1], []) if key[0] == PROVISIONING_INBOX else [])
            assert is_what_happened(preview, letter["replays"][0], states, messages), (preview, letter, states)


def _with_event(state: str, event: str) -> str:
    """Return what is delivered about an order once an event is: the same as before if it was already."""
    known = [] if state == "nothing" else state.split()
    return state if event in known else " ".join(sorted([*known, event]))


def is_what_happened(preview: Preview, replay: Document, states: tuple[str, str], sent: list[str]) -> bool:
    """Return whether the outcome of a replay is what its preview said."""
    event, goes, _ = preview.details.partition(" goes to ")
    if goes:  # to no webhook, if all that asked for it had got it
        return replay["outcome"] == "handled" and states[1] == _with_event(states[0], event)
    if preview.effect is Effect.UNKNOWN:
        return True
    if preview.effect is Effect.FAILS:
        return replay["outcome"] == "dead" and preview.details.startswith(f"{replay['error']['type']}: ")
    if "records" in preview.details:
        return replay["outcome"] == "handled" and states[0] == states[1] and sent == list(preview.sends)
    said = f" {' → '.join(states)}" if preview.effect is Effect.CHANGES else f" {states[1]}"
    unchanged = states[0] == states[1]
    return (
        replay["outcome"] == "handled"
        and said in f"{preview.details} "
        and sent == list(preview.sends)
        and unchanged == (preview.effect is Effect.NOTHING)
    )
