"""Parts of payments are refunded once and never beyond what was paid: cards with crashes and races, and retainers."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from payment_service import parts
from payment_service.gateways.simulated import PART_REFUSED
from payment_service.ledger import chart_of_accounts
from payment_service.lifecycle import PartStatus, Payment, PaymentStatus
from shared.contracts import Message, PartRefunded, PartRefundFailed, PaymentRefunded, RefundPart
from shared.contracts.orders import PaymentInstruction
from shared.errors import PoisonError
from shared.failpoints import PART_RECORDED, PART_SENT, SimulatedCrashError
from tests.integration.test_retainer_payments import retainer, set_status
from tests.support.payment_workers import MovableClock, PaymentWorker, order_created, payment_worker

pytestmark = pytest.mark.both_databases


@pytest.fixture
def database_prefix(emptied_prefix: str) -> str:
    return emptied_prefix


@pytest.fixture
def clock() -> MovableClock:
    return MovableClock()


@pytest.fixture
async def workers(mongodb_url: str, database_prefix: str, clock: MovableClock) -> AsyncIterator[list[PaymentWorker]]:
    async with (
        payment_worker(mongodb_url, database_prefix, clock=clock) as one,
        payment_worker(mongodb_url, database_prefix, clock=clock) as other,
    ):
        yield [one, other]


@pytest.fixture
def worker(workers: list[PaymentWorker]) -> PaymentWorker:
    return workers[0]


async def paid(worker: PaymentWorker, token: str = "tok_ok", amount: int = 10_000) -> str:
    """Charge an order and return its id."""
    order = order_created(token, amount)
    await worker.charge(order)
    return order.order_id


async def prepaid(worker: PaymentWorker, retainer_id: str, amount: int = 10_000) -> str:
    order = order_created(
        amount=amount, payment=PaymentInstruction(method="retainer", token=None, retainer_id=retainer_id)
    )
    await worker.charge(order)
    return order.order_id


async def at_gateway(worker: PaymentWorker, order_id: str) -> int:
    """Return what the gateway has refunded in parts."""
    record = await worker.gateway_record(order_id) or {}
    return sum(part["amount"] for part in record.get("parts", ()))


async def entries(worker: PaymentWorker, order_id: str) -> list[tuple[str, int]]:
    """Return the ledger's entries about the order: the operation, and what the retainer got."""
    found = worker.database["entries"].find({"reference.orderId": order_id}).sort("at")
    return [
        (entry["operation"], -sum(p["amount"] for p in entry["postings"] if p["account"].startswith("retainer:")))
        async for entry in found
    ]


async def balance(worker: PaymentWorker, retainer_id: str) -> int:
    account = await worker.ledger.get_visible(chart_of_accounts.retainer(retainer_id))
    return int(account["balance"])


def agree(payment: Payment, returned: int) -> None:
    assert parts.returned(payment) == returned
    assert parts.left(payment) >= 0


def yes(order_id: str, refund_id: str) -> Message:
    return PartRefunded(order_id=order_id, refund_id=refund_id)


async def test_a_part_is_returned_once_however_often_it_is_asked_for(workers: list[PaymentWorker]) -> None:
    order_id = await paid(workers[0])
    for worker in (*workers, workers[0]):
        assert await worker.refund_part(order_id, "r1", 6000) == [yes(order_id, "r1")]
    assert await at_gateway(workers[0], order_id) == 6000
    payment = await workers[0].payment(order_id)
    agree(payment, 6000)
    assert payment.status is PaymentStatus.PROCESSED


async def test_a_part_that_is_asked_for_many_times_at_once_is_recorded_once(workers: list[PaymentWorker]) -> None:
    order_id = await paid(workers[0])
    answers = await asyncio.gather(*(worker.refund_part(order_id, "r1", 1000) for worker in workers * 5))
    assert answers == [[yes(order_id, "r1")]] * 10
    assert len((await workers[0].payment(order_id)).parts) == 1
    assert await at_gateway(workers[0], order_id) == 1000


async def test_more_than_is_left_is_refused(worker: PaymentWorker) -> None:
    order_id = await paid(worker)
    await worker.refund_part(order_id, "r1", 6000)
    (answer,) = await worker.refund_part(order_id, "r2", 4001)
    assert isinstance(answer, PartRefundFailed)
    assert answer.reason == "40 USD of the payment is left, not 40.01 USD"
    assert await worker.refund_part(order_id, "r3", 4000) == [yes(order_id, "r3")]
    agree(await worker.payment(order_id), 10_000)


async def test_ten_parts_of_60_of_100_at_once_return_one(workers: list[PaymentWorker]) -> None:
    order_id = await paid(workers[0])
    answers = await asyncio.gather(
        *(workers[number % 2].refund_part(order_id, f"r{number}", 6000) for number in range(10))
    )
    assert sum(isinstance(answer, PartRefunded) for (answer,) in answers) == 1
    assert await at_gateway(workers[0], order_id) == 6000
    agree(await workers[0].payment(order_id), 6000)


async def test_a_part_of_an_order_without_a_payment_is_poison(worker: PaymentWorker) -> None:
    with pytest.raises(PoisonError, match="has no payment"):
        await worker.refund_part("unknown", "r1", 1)


async def test_a_part_of_a_declined_payment_is_refused(worker: PaymentWorker) -> None:
    order_id = await paid(worker, "tok_declined")
    (answer,) = await worker.refund_part(order_id, "r1", 1)
    assert isinstance(answer, PartRefundFailed)
    assert "FAILED" in answer.reason


async def test_a_refusal_of_the_gateway_is_final_and_another_refund_may_succeed(workers: list[PaymentWorker]) -> None:
    order_id = await paid(workers[0], "tok_refund_refused")
    refused = [PartRefundFailed(order_id=order_id, refund_id="r1", reason=PART_REFUSED)]
    assert await workers[0].refund_part(order_id, "r1", 10_000) == refused
    assert await workers[1].refund_part(order_id, "r1", 10_000) == refused
    assert await workers[1].refund_part(order_id, "r2", 10_000) == [yes(order_id, "r2")]
    agree(await workers[0].payment(order_id), 10_000)


async def test_an_unknown_outcome_is_asked_for_again_until_it_is_known(
    workers: list[PaymentWorker], clock: MovableClock
) -> None:
    order_id = await paid(workers[0], "tok_timeout")
    clock.advance(2)
    await workers[0].reconciler.reconcile()  # the charge's answer was lost as well
    assert await workers[0].refund_part(order_id, "r1", 6000) == []
    assert [part.status for part in (await workers[0].payment(order_id)).parts] == [PartStatus.PENDING]
    clock.advance(60)
    await workers[1].reconciler.reconcile()
    assert workers[1].outbox.sent == [yes(order_id, "r1")]
    assert await at_gateway(workers[0], order_id) == 6000
    clock.advance(60)
    await workers[1].reconciler.reconcile()
    payment = await workers[0].payment(order_id)
    agree(payment, 6000)
    assert payment.next_lookup_at is None


async def test_the_money_of_an_unknown_outcome_counts_as_gone(workers: list[PaymentWorker]) -> None:
    order_id = await paid(workers[0])

    async def lose(operation: str, _key: str) -> None:
        if operation == "refund_part":
            raise TimeoutError("no answer")

    workers[0].gateway.before = lose
    assert await workers[0].refund_part(order_id, "r1", 6000) == []
    (answer,) = await workers[1].refund_part(order_id, "r2", 6000)
    assert isinstance(answer, PartRefundFailed)
    assert await workers[1].refund_part(order_id, "r1", 6000) == [yes(order_id, "r1")]
    assert await at_gateway(workers[0], order_id) == 6000


@pytest.mark.parametrize("point", [PART_RECORDED, PART_SENT])
@pytest.mark.parametrize("second", [0, 1], ids=["same worker", "another worker"])
async def test_a_part_that_comes_again_after_a_crash_is_returned_once(
    workers: list[PaymentWorker], point: str, second: int
) -> None:
    order_id = await paid(workers[0])
    workers[0].crash_at = point
    with pytest.raises(SimulatedCrashError):
        await workers[0].refund_part(order_id, "r1", 6000)
    assert await workers[second].refund_part(order_id, "r1", 6000) == [yes(order_id, "r1")]
    assert await at_gateway(workers[0], order_id) == 6000
    agree(await workers[0].payment(order_id), 6000)


@pytest.mark.parametrize("point", [PART_RECORDED, PART_SENT])
async def test_a_whole_refund_between_the_steps_of_a_part(workers: list[PaymentWorker], point: str) -> None:
    order_id = await paid(workers[0])
    workers[0].crash_at = point
    with pytest.raises(SimulatedCrashError):
        await workers[0].refund_part(order_id, "r1", 6000)
    assert await workers[1].refund(order_id) == [PaymentRefunded(order_id=order_id, status="REFUNDED")]
    (answer,) = await workers[0].refund_part(order_id, "r1", 6000)
    # The gateway knows: with the part made first, the whole refund has returned the rest.
    assert isinstance(answer, PartRefunded if point == PART_SENT else PartRefundFailed)
    assert await at_gateway(workers[0], order_id) == (6000 if point == PART_SENT else 0)
    agree(await workers[0].payment(order_id), 6000 if point == PART_SENT else 0)
    assert await workers[0].held() == set()


async def test_parts_and_a_whole_refund_at_once_return_no_more_than_was_paid(workers: list[PaymentWorker]) -> None:
    orders = [await paid(workers[0]) for _ in range(20)]
    await asyncio.gather(
        *(workers[0].refund_part(order_id, "r1", 6000) for order_id in orders),
        *(workers[1].refund(order_id) for order_id in orders),
        *(workers[1].refund_part(order_id, "r2", 6000) for order_id in orders),
    )
    for order_id in orders:
        payment = await workers[0].payment(order_id)
        assert payment.status is PaymentStatus.REFUNDED
        assert all(part.status is not PartStatus.PENDING for part in payment.parts)
        agree(payment, await at_gateway(workers[0], order_id))
    assert await workers[0].held() == set()


async def test_a_part_goes_back_to_the_retainer_with_one_entry(workers: list[PaymentWorker]) -> None:
    retainer_id = await retainer(workers[0], 10_000)
    order_id = await prepaid(workers[0], retainer_id)
    answers = await asyncio.gather(*(worker.refund_part(order_id, "r1", 6000) for worker in workers * 3))
    assert answers == [[yes(order_id, "r1")]] * 6
    assert await balance(workers[0], retainer_id) == 6000
    assert await entries(workers[0], order_id) == [("order.paid", -10_000), ("order.part_refunded", 6000)]
    (part,) = (await workers[0].payment(order_id)).parts
    entry = await workers[0].database["entries"].find_one({"_id": part.entry_id})
    assert entry is not None
    assert entry["reference"]["refundId"] == "r1"


async def test_ten_parts_of_60_of_100_to_a_retainer_at_once_return_one(workers: list[PaymentWorker]) -> None:
    retainer_id = await retainer(workers[0], 10_000)
    order_id = await prepaid(workers[0], retainer_id)
    answers = await asyncio.gather(
        *(workers[number % 2].refund_part(order_id, f"r{number}", 6000) for number in range(10))
    )
    assert sum(isinstance(answer, PartRefunded) for (answer,) in answers) == 1
    assert await balance(workers[0], retainer_id) == 6000


@pytest.mark.parametrize("part_first", [True, False, None], ids=["part first", "whole first", "at once"])
async def test_a_part_and_a_whole_refund_to_a_retainer(workers: list[PaymentWorker], part_first: bool | None) -> None:
    retainer_id = await retainer(workers[0], 10_000)
    order_id = await prepaid(workers[0], retainer_id)
    part, whole = workers[0].refund_part(order_id, "r1", 6000), workers[1].refund(order_id)
    if part_first is None:
        await asyncio.gather(part, whole)
    else:
        for call in (part, whole) if part_first else (whole, part):
            await call
    assert await balance(workers[0], retainer_id) == 10_000
    made = dict(await entries(workers[0], order_id))
    agree(await workers[0].payment(order_id), made.get("order.part_refunded", 0))


async def test_a_part_goes_back_to_a_retainer_that_is_inactive(worker: PaymentWorker) -> None:
    retainer_id = await retainer(worker, 10_000)
    order_id = await prepaid(worker, retainer_id)
    await set_status(worker, retainer_id, "suspended")
    assert await worker.refund_part(order_id, "r1", 6000) == [yes(order_id, "r1")]
    assert await balance(worker, retainer_id) == 6000


async def test_a_part_that_the_ledger_refuses_is_recorded_as_failed(worker: PaymentWorker) -> None:
    retainer_id = await retainer(worker, 10_000)
    order_id = await prepaid(worker, retainer_id)
    await worker.database["accounts"].delete_one({"_id": chart_of_accounts.retainer(retainer_id)})
    for _ in range(2):
        (answer,) = await worker.refund_part(order_id, "r1", 6000)
        assert isinstance(answer, PartRefundFailed)
        assert "does not exist" in answer.reason
    assert await entries(worker, order_id) == [("order.paid", -10_000)]


async def test_one_batch_may_hold_several_refunds(worker: PaymentWorker) -> None:
    one, other = await paid(worker), await paid(worker)
    requests = [
        RefundPart(order_id=order_id, refund_id=refund_id, amount=5000)
        for order_id, refund_id in ((one, "r1"), (one, "r2"), (other, "r1"), (one, "r1"), (one, "r3"))
    ]
    answers = await worker.refund_parts(*requests)
    assert answers[:2] == [yes(one, "r1"), yes(one, "r2")]
    assert isinstance(answers[2], PartRefundFailed)
    assert answers[3:] == [yes(other, "r1")]
    agree(await worker.payment(one), 10_000)
