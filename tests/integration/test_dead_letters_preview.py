"""A preview agrees with what then happens: random letters, previewed, then replayed through the order service."""

import asyncio
import random
from collections.abc import Sequence

import pytest
from pymongo import AsyncMongoClient

from operations.dead_letters.filters import Filters
from operations.dead_letters.ingest import Ingest
from operations.dead_letters.notices import handlers as notice_handlers
from operations.dead_letters.preview import Effect, Preview
from operations.dead_letters.previewing import ReplayPreviews
from operations.dead_letters.records import LetterRecords
from operations.dead_letters.replaying import Replayer
from operations.dead_letters.replays import ReplayRecords
from operations.dead_letters.service import DeadLetterService
from order_service.handlers import handlers as answer_handlers
from order_service.order import HistoryEntry, Order
from order_service.orders import Change, NewRecord, Orders
from order_service.saga import SAGA
from shared import contracts as c
from shared.bus import Delivery
from shared.bus.publisher import Publisher
from shared.clock import utc_now
from shared.contracts import Message, OrderMessage
from shared.contracts.provisioning import Server
from shared.database import Document
from shared.pausing.records import PauseRecords
from shared.topology import DEAD_LETTERS, OPERATIONS_INBOX, ORDER_INBOX
from tests.integration.test_dead_letters import consuming
from tests.support.builders import TIMEOUTS, an_order
from tests.support.buses import RabbitHarness
from tests.support.consoles import a_letter
from tests.support.eventually import eventually
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

        sent = await replay_all(harness, service, records, orders)
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
    sent: dict[str, list[str]],
) -> bool:
    """Return whether the outcome of a replay is what its preview said."""
    order_id = letter["orderId"]
    outcome = letter["replays"][0]["outcome"]
    if preview.effect is Effect.FAILS:
        error = letter["replays"][0]["error"]
        return outcome == "dead" and preview.details.startswith(f"{error['type']}: ")
    assert preview.order is not None
    same = decided(after[order_id]) == decided(preview.order) and sent.get(order_id, []) == list(preview.sends)
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
    harness: RabbitHarness, service: DeadLetterService, records: LetterRecords, orders: Orders
) -> dict[str, list[str]]:
    """Replay all letters until every outcome is known; return what the order service sent, by the order's id."""
    sent: dict[str, list[str]] = {}
    table = answer_handlers(orders, PauseRecords(service._database), TIMEOUTS, utc_now, ())
    advance = table[c.StockReserved]

    async def advance_and_note(answers: Sequence[Message]) -> Sequence[Message]:
        messages = await advance(answers)
        for message in messages:
            sent.setdefault(message.correlation_id, []).append(message.routing_key)
        return messages

    replay_id = await service.start_replay(Filters(), by="ann", why="fixed", rate=10_000)
    letters = Ingest(await harness.bus(DEAD_LETTERS), records)
    recording = asyncio.create_task(letters.run())
    async with (
        consuming(harness, ORDER_INBOX, dict.fromkeys(table, advance_and_note)),
        consuming(harness, OPERATIONS_INBOX, notice_handlers(records, utc_now)),
    ):
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
