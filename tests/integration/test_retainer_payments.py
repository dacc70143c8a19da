"""Orders paid from retainers: over a real database, with several workers, redelivery and refunds."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Any

import pytest

from payment_service import retainer_charger
from payment_service.ledger import chart_of_accounts, journal_entries
from payment_service.ledger.chart_of_accounts import AccountKind
from payment_service.ledger.ledger import references
from payment_service.ledger.unit_of_work import UnitOfWork
from payment_service.lifecycle import PaymentStatus
from shared import tracing
from shared.contracts import Message, OrderCreated, PaymentFailed, PaymentProcessed, PaymentRefunded
from shared.contracts.orders import PaymentInstruction
from tests.support.builders import new_id
from tests.support.eventually import eventually
from tests.support.monitoring import counted
from tests.support.payment_workers import MovableClock, PaymentWorker, order_created, payment_worker
from tests.support.turns import turn_taken

pytestmark = pytest.mark.both_databases


@pytest.fixture
def database_prefix(emptied_prefix: str) -> str:
    return emptied_prefix


@pytest.fixture
async def workers(
    mongodb_url: str, database_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[list[PaymentWorker]]:
    # The speed of the machine must not decide whether an order waits for its retainer or is charged later.
    monkeypatch.setattr(retainer_charger, "BUSY_RETAINER_SECONDS", 120.0)
    clock = MovableClock()
    async with (
        payment_worker(mongodb_url, database_prefix, clock=clock) as one,
        payment_worker(mongodb_url, database_prefix, clock=clock) as other,
    ):
        yield [one, other]
        await assert_books_agree(one)


@pytest.fixture
def worker(workers: list[PaymentWorker]) -> PaymentWorker:
    return workers[0]


async def retainer(worker: PaymentWorker, amount: int, currency: str = "USD") -> str:
    """Open a retainer that holds that many minor units."""
    retainer_id = new_id()

    async def work(unit: UnitOfWork) -> None:
        fields = {"clientId": "u1", "retainerType": "general"}
        worker.ledger.open(chart_of_accounts.retainer(retainer_id), AccountKind.RETAINER, currency, fields, unit)
        await worker.ledger.post(journal_entries.retainer_opened(retainer_id, amount, currency), unit)

    await worker.transactions.run("retainer.opened", work)
    return retainer_id


async def set_status(worker: PaymentWorker, retainer_id: str, status: str) -> None:
    async def work(unit: UnitOfWork) -> None:
        await worker.ledger.set_status(chart_of_accounts.retainer(retainer_id), status, unit)

    await worker.transactions.run("retainer.status", work)


async def balance(worker: PaymentWorker, retainer_id: str) -> int:
    return int((await worker.ledger.get_visible(chart_of_accounts.retainer(retainer_id)))["balance"])


def order(retainer_id: str | None, amount: int = 1000, **changes: Any) -> OrderCreated:
    instruction = PaymentInstruction(method="retainer", retainer_id=retainer_id)
    return order_created(amount=amount, payment=instruction, **changes)


async def entries(worker: PaymentWorker, order_id: str) -> list[str]:
    """Return the operations that the journal records for an order, in order of time."""
    cursor = worker.database["entries"].find({"reference.orderId": order_id}).sort("at")
    return [entry["operation"] async for entry in cursor]


async def assert_books_agree(worker: PaymentWorker) -> None:
    """Check that entries sum to zero, balances match their postings, and payments of orders have their entries."""
    sums: Counter[str] = Counter()
    async for entry in worker.database["entries"].find():
        assert sum(posting["amount"] for posting in entry["postings"]) == 0
        for posting in entry["postings"]:
            sums[posting["account"]] += posting["amount"]
    async for account in worker.database["accounts"].find():
        assert account["balance"] == -sums[account["_id"]] >= 0
    expected = {"PROCESSED": ["order.paid"], "REFUNDED": ["order.paid", "order.refunded"]}
    async for payment in worker.database["payments"].find({"amount": {"$gt": 0}, "retainerId": {"$exists": True}}):
        assert sorted(await entries(worker, payment["_id"])) == expected.get(payment["status"], [])


def kinds(messages: list[Message]) -> Counter[str]:
    return Counter(message.routing_key for message in messages)


async def test_an_order_is_paid_and_its_entry_is_the_transaction(worker: PaymentWorker) -> None:
    retainer_id = await retainer(worker, 2500)
    one = order(retainer_id, 1000)
    (answer,) = await worker.charge(one)
    entry = await worker.database["entries"].find_one({"reference.orderId": one.order_id})
    assert entry is not None
    assert answer == PaymentProcessed(order_id=one.order_id, transaction_id=entry["_id"])
    assert entry["postings"][0]["account"] == f"retainer:{retainer_id}"
    assert await balance(worker, retainer_id) == 1500
    assert await worker.gateway_record(one.order_id) is None, "the card gateway is not involved"


async def test_ten_orders_at_once_on_two_workers_for_money_that_is_enough_for_one(
    workers: list[PaymentWorker],
) -> None:
    retainer_id = await retainer(workers[0], 100_000)
    orders = [order(retainer_id, 80_000) for _ in range(10)]
    answers = await asyncio.gather(*(workers[number % 2].charge(one) for number, one in enumerate(orders)))
    assert kinds([answer for batch in answers for answer in batch]) == {"payment.processed": 1, "payment.failed": 9}
    assert await balance(workers[0], retainer_id) == 20_000
    reasons = {answer.reason for batch in answers for answer in batch if isinstance(answer, PaymentFailed)}
    assert reasons == {f"Insufficient balance: Retainer {retainer_id} holds less than 800 USD"}


async def test_a_batch_is_first_come_first_served_and_skips_orders_that_exceed_the_balance(
    worker: PaymentWorker,
) -> None:
    retainer_id = await retainer(worker, 1000)
    batch = [order(retainer_id, amount) for amount in (600, 500, 400, 1)]
    assert [answer.routing_key for answer in await worker.charge(*batch)] == [
        "payment.processed",
        "payment.failed",
        "payment.processed",
        "payment.failed",
    ]
    assert await balance(worker, retainer_id) == 0


async def test_cards_and_retainers_in_one_batch(worker: PaymentWorker) -> None:
    retainer_id = await retainer(worker, 1000)
    card, prepaid = order_created("tok_ok"), order(retainer_id)
    answers = {answer.order_id: answer.routing_key for answer in await worker.charge(card, prepaid)}  # type: ignore[attr-defined]
    assert answers == {card.order_id: "payment.processed", prepaid.order_id: "payment.processed"}
    assert await worker.held() == {card.order_id}


async def test_the_same_orders_on_all_workers_at_once_are_charged_once(workers: list[PaymentWorker]) -> None:
    retainer_id = await retainer(workers[0], 10_000)
    orders = [order(retainer_id, 1000) for _ in range(6)]
    answers = await asyncio.gather(*(worker.charge(*orders) for worker in workers * 4))
    assert all(batch == answers[0] for batch in answers)
    assert await balance(workers[0], retainer_id) == 4000


async def test_a_refund_puts_the_money_back_once(workers: list[PaymentWorker]) -> None:
    retainer_id = await retainer(workers[0], 1000)
    one = order(retainer_id)
    await workers[0].charge(one)
    answers = await asyncio.gather(*(worker.refund(one.order_id) for worker in workers * 3))
    assert all(batch == [PaymentRefunded(order_id=one.order_id, status="REFUNDED")] for batch in answers)
    assert await balance(workers[0], retainer_id) == 1000
    assert await workers[0].charge(one) == [PaymentRefunded(order_id=one.order_id, status="REFUNDED")]
    assert await balance(workers[0], retainer_id) == 1000


async def test_an_order_that_a_retainer_has_paid_is_answered_from_its_record(worker: PaymentWorker) -> None:
    retainer_id = await retainer(worker, 1000)
    paid, new = order(retainer_id, 100), order(retainer_id, 100)
    before = counted("repeats_answered_total", operation="payment.charge")
    (first,) = await worker.charge(paid)
    assert first in await worker.charge(paid, new)
    assert await balance(worker, retainer_id) == 800
    assert counted("repeats_answered_total", operation="payment.charge") == before + 1


async def test_a_refund_that_overtakes_its_order_leaves_a_tombstone(worker: PaymentWorker) -> None:
    retainer_id = await retainer(worker, 1000)
    one = order(retainer_id)
    voided = [PaymentRefunded(order_id=one.order_id, status="VOIDED")]
    assert await worker.refund(one.order_id) == voided
    assert await worker.charge(one) == voided
    assert await balance(worker, retainer_id) == 1000


async def test_a_refund_that_meets_its_order_leaves_nothing_taken(workers: list[PaymentWorker]) -> None:
    """In either order: nothing is charged, or it is refunded."""
    retainer_id = await retainer(workers[0], 100_000)
    orders = [order(retainer_id, 100) for _ in range(30)]
    takes = [workers[0].charge(one) for one in orders]
    refunds = [workers[1].refund(one.order_id) for one in orders]
    await asyncio.gather(*takes, *refunds)
    statuses = {(await workers[0].payment(one.order_id)).status for one in orders}
    assert statuses <= {PaymentStatus.VOIDED, PaymentStatus.REFUNDED}
    assert await balance(workers[0], retainer_id) == 100_000


async def test_a_busy_retainer_delays_no_other_order_and_its_orders_are_charged_later(
    workers: list[PaymentWorker], monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, other = workers
    busy, free = await retainer(worker, 2500), await retainer(worker, 1000)
    waits, refunded, repeated = order(busy), order(busy), order(busy)
    card, prepaid = order_created("tok_ok"), order(free)
    async with held(other, busy):
        monkeypatch.setattr(retainer_charger, "BUSY_RETAINER_SECONDS", 1.0)
        answers = await worker.charge(waits, refunded, repeated, card, prepaid)
        assert {answer.order_id for answer in answers} == {card.order_id, prepaid.order_id}  # type: ignore[attr-defined]
        before = counted("repeats_answered_total", operation="payment.charge")
        assert await worker.charge(repeated) == []
        assert counted("repeats_answered_total", operation="payment.charge") == before
        assert await worker.refund(refunded.order_id) == []
        assert (await worker.payment(waits.order_id)).status is PaymentStatus.PENDING
    monkeypatch.setattr(retainer_charger, "BUSY_RETAINER_SECONDS", 120.0)
    await eventually(lambda: _all_decided(worker, waits, refunded, repeated), 60, "the payments to be decided")
    statuses = [(await worker.payment(one.order_id)).status for one in (waits, refunded, repeated)]
    assert statuses == [PaymentStatus.PROCESSED, PaymentStatus.VOIDED, PaymentStatus.PROCESSED]
    assert await balance(worker, busy) == 500
    assert kinds(worker.outbox.sent) == {"payment.processed": 2, "payment.refunded": 1}


async def _all_decided(worker: PaymentWorker, *orders: OrderCreated) -> bool:
    worker.clock.advance(60)  # a payment whose retainer is busy again waits for its next look-up
    await worker.reconciler.look_up_due()
    return all([(await worker.payment(one.order_id)).status is not PaymentStatus.PENDING for one in orders])


@asynccontextmanager
async def held(worker: PaymentWorker, retainer_id: str) -> AsyncIterator[None]:
    """Keep a transaction of another process open that has written the retainer."""
    client = worker.database.client
    async with client.start_session() as session, await session.start_transaction():
        await worker.database["accounts"].update_one(
            {"_id": f"retainer:{retainer_id}"}, {"$inc": {"touched": 1}}, session=session
        )
        yield
        await session.abort_transaction()


async def test_what_cannot_be_paid_is_refused_with_the_reason(worker: PaymentWorker) -> None:
    inactive, foreign = await retainer(worker, 1000), await retainer(worker, 1000, "EUR")
    await set_status(worker, inactive, "inactive")
    for one, reason, code in (
        (order("nobody"), "Retainer nobody does not exist", "retainer_unavailable"),
        (order(inactive), f"Retainer {inactive} is inactive", "retainer_unavailable"),
        (order(foreign), f"Retainer {foreign} is kept in EUR, not in USD", "retainer_currency"),
        (order(None), "No retainer is named to pay from", "retainer_unavailable"),
    ):
        refused = [PaymentFailed(order_id=one.order_id, reason=reason, code=code)]
        assert await worker.charge(one) == refused
        assert await worker.charge(one) == refused
        assert await worker.refund(one.order_id) == [PaymentRefunded(order_id=one.order_id, status="VOIDED")]


async def test_money_is_refunded_to_a_retainer_that_is_inactive_now(worker: PaymentWorker) -> None:
    retainer_id = await retainer(worker, 1000)
    one = order(retainer_id)
    await worker.charge(one)
    await set_status(worker, retainer_id, "inactive")
    assert await worker.refund(one.order_id) == [PaymentRefunded(order_id=one.order_id, status="REFUNDED")]
    assert await balance(worker, retainer_id) == 1000


async def test_an_order_that_costs_nothing_changes_no_books(worker: PaymentWorker) -> None:
    retainer_id = await retainer(worker, 1000)
    free = order(retainer_id, 0)
    assert await worker.charge(free) == [PaymentProcessed(order_id=free.order_id, transaction_id="no-charge")]
    assert await worker.refund(free.order_id) == [PaymentRefunded(order_id=free.order_id, status="REFUNDED")]
    assert await entries(worker, free.order_id) == []


async def test_each_order_keeps_its_own_trace_in_a_transaction_that_it_shares(
    worker: PaymentWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch: ContextVar[str] = ContextVar("batch")
    monkeypatch.setattr(tracing, "of_order", lambda order_id: f"{batch.get()}: {order_id}")
    retainer_id = await retainer(worker, 10_000)

    async def charged(in_batch: str) -> bool:
        batch.set(in_batch)
        (payment,) = await worker.retainers.charge([order(retainer_id)])
        return payment.traceparent == f"{in_batch}: {payment.order_id}"

    async with turn_taken(worker.transactions, *references([chart_of_accounts.retainer(retainer_id)])):
        running = [asyncio.create_task(charged(in_batch)) for in_batch in ("one", "two")]
        await asyncio.sleep(0)
    assert await asyncio.gather(*running) == [True, True]
