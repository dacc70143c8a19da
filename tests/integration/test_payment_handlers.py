"""Charging and refunding over a real database: the normal path, redelivery, and unknown outcomes."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from structlog.testing import capture_logs

from payment_service.gateways.port import Charged, ChargeRequest, Declined
from payment_service.gateways.simulated import SimulatedGateway
from payment_service.lifecycle import FREE, PaymentStatus
from shared.clock import utc_now
from shared.contracts import PaymentFailed, PaymentProcessed, PaymentRefunded
from shared.failpoints import PAYMENT_PENDING, SimulatedCrashError
from tests.support.builders import new_id
from tests.support.monitoring import counted
from tests.support.payment_workers import MovableClock, PaymentWorker, kinds, order_created, payment_worker
from tests.support.tasks import end_tasks


@pytest.fixture
def database_prefix(emptied_prefix: str) -> str:
    return emptied_prefix


@pytest.fixture
def clock() -> MovableClock:
    return MovableClock()


@pytest.fixture(params=["pymongo", "motor", "memory"])
async def worker(
    request: pytest.FixtureRequest, mongodb_url: str, database_prefix: str, clock: MovableClock
) -> AsyncIterator[PaymentWorker]:
    async with payment_worker(mongodb_url, database_prefix, clock=clock, driver=request.param) as worker:
        yield worker


async def test_an_order_is_charged_and_answered_with_the_gateways_transaction(worker: PaymentWorker) -> None:
    order = order_created(amount=1999)
    answers = await worker.charge(order)
    payment, record = await worker.payment(order.order_id), await worker.gateway_record(order.order_id)
    assert record is not None
    assert answers == [PaymentProcessed(order_id=order.order_id, transaction_id=record["chargeId"])]
    assert (payment.status, payment.amount, payment.user_id) == (PaymentStatus.PROCESSED, 1999, "u1")
    assert (record["amount"], record["currency"], record["attempts"]) == (1999, "USD", 1)


async def test_a_declined_card_fails_the_payment_with_a_reason(worker: PaymentWorker) -> None:
    order = order_created("tok_declined")
    expected = [PaymentFailed(order_id=order.order_id, reason="The card was declined", code="card_declined")]
    assert await worker.charge(order) == expected
    assert await worker.charge(order) == expected
    assert await worker.held() == set()


async def test_a_batch_answers_each_order_once_and_for_itself(worker: PaymentWorker) -> None:
    orders = [order_created("tok_declined" if number % 3 == 0 else "tok_ok") for number in range(200)]
    repeated = [*orders, orders[0], orders[1]]
    answers = await worker.charge(*repeated)
    assert len(answers) == 200
    declined = {answer.correlation_id for answer in answers if isinstance(answer, PaymentFailed)}
    assert declined == {order.order_id for order in orders[::3]}
    assert await worker.held() == {order.order_id for order in orders} - declined


async def test_a_redelivery_repeats_the_answer_and_charges_nothing(worker: PaymentWorker) -> None:
    order, before = order_created(), counted("repeats_answered_total", operation="payment.charge")
    first = await worker.charge(order)
    assert counted("repeats_answered_total", operation="payment.charge") == before
    with capture_logs() as logs:
        assert await worker.charge(order) == first
    assert counted("repeats_answered_total", operation="payment.charge") == before + 1
    assert [line["order_ids"] for line in logs if "already processed" in line["event"]] == [[order.order_id]]
    record = await worker.gateway_record(order.order_id)
    assert record is not None
    assert record["attempts"] == 1


async def test_a_redelivery_after_a_crash_is_charged_and_is_no_repeat(worker: PaymentWorker) -> None:
    """The crash came after the record and before the call of the gateway."""
    order, before = order_created(), counted("repeats_answered_total", operation="payment.charge")
    worker.crash_at = PAYMENT_PENDING
    with pytest.raises(SimulatedCrashError):
        await worker.charge(order)
    assert kinds(await worker.charge(order)) == ["payment.processed"]
    assert counted("repeats_answered_total", operation="payment.charge") == before


async def test_a_redelivery_with_another_amount_follows_the_record(worker: PaymentWorker) -> None:
    order = order_created(amount=1000)
    first = await worker.charge(order)
    changed = order_created(amount=5000, order_id=order.order_id)
    assert await worker.charge(changed) == first
    assert (await worker.payment(order.order_id)).amount == 1000


async def test_a_free_order_never_reaches_the_gateway_not_even_for_its_refund(worker: PaymentWorker) -> None:
    order = order_created(amount=0)
    assert await worker.charge(order) == [PaymentProcessed(order_id=order.order_id, transaction_id=FREE)]
    assert await worker.refund(order.order_id) == [PaymentRefunded(order_id=order.order_id, status="REFUNDED")]
    assert await worker.gateway_record(order.order_id) is None


# --- Refunds ---


async def test_a_refund_returns_the_money_once(worker: PaymentWorker) -> None:
    order = order_created()
    await worker.charge(order)
    expected = [PaymentRefunded(order_id=order.order_id, status="REFUNDED")]
    assert await worker.refund(order.order_id) == expected
    record = await worker.gateway_record(order.order_id)
    assert await worker.refund(order.order_id) == expected
    assert await worker.charge(order) == expected
    assert await worker.gateway_record(order.order_id) == record
    assert await worker.held() == set()


async def test_a_refund_that_overtakes_its_order_leaves_a_tombstone(worker: PaymentWorker) -> None:
    order = order_created()
    expected = [PaymentRefunded(order_id=order.order_id, status="VOIDED")]
    assert await worker.refund(order.order_id) == expected
    assert await worker.charge(order) == expected
    assert await worker.refund(order.order_id) == expected
    assert await worker.gateway_record(order.order_id) is None
    assert (await worker.payment(order.order_id)).status is PaymentStatus.VOIDED


async def test_the_refund_of_a_declined_payment_is_answered_and_the_record_stays(worker: PaymentWorker) -> None:
    order = order_created("tok_declined")
    await worker.charge(order)
    assert await worker.refund(order.order_id) == [PaymentRefunded(order_id=order.order_id, status="VOIDED")]
    assert (await worker.payment(order.order_id)).status is PaymentStatus.FAILED


async def test_a_batch_of_refunds_answers_each_once(worker: PaymentWorker) -> None:
    orders = [order_created("tok_ok" if number % 2 else "tok_declined") for number in range(50)]
    await worker.charge(*orders)
    ids = [order.order_id for order in orders]
    unknown = [new_id() for _ in range(20)]
    answers = await worker.refund(*ids, *unknown, *ids)
    assert sorted(answer.correlation_id for answer in answers) == sorted([*ids, *unknown])
    refunded = {answer.correlation_id for answer in answers if answer.status == "REFUNDED"}  # type: ignore[attr-defined]
    assert refunded == set(ids[1::2])
    assert await worker.held() == set()


# --- Unknown outcomes ---


async def test_a_lost_answer_is_looked_up_and_published_by_the_reconciler(
    worker: PaymentWorker, clock: MovableClock
) -> None:
    order = order_created("tok_timeout")
    assert await worker.charge(order) == []
    payment = await worker.payment(order.order_id)
    assert (payment.status, payment.next_lookup_at is not None) == (PaymentStatus.PENDING, True)
    assert await worker.charge(order) == []

    assert await worker.reconciler.look_up_due() == 0
    clock.advance(1)
    assert await worker.reconciler.look_up_due() == 1
    record = await worker.gateway_record(order.order_id)
    assert record is not None
    assert worker.outbox.sent == [PaymentProcessed(order_id=order.order_id, transaction_id=record["chargeId"])]
    assert record["attempts"] == 1
    payment = await worker.payment(order.order_id)
    assert (payment.status, payment.unpublished, payment.next_lookup_at) == (PaymentStatus.PROCESSED, False, None)
    clock.advance(60)
    assert await worker.reconciler.look_up_due() == 0
    assert await worker.reconciler.publish_unpublished() == 0


async def test_a_charge_that_never_arrived_is_made_by_the_look_up(worker: PaymentWorker, clock: MovableClock) -> None:
    async def fail_first_charge(operation: str, _key: str) -> None:
        if operation == "charge":
            worker.gateway.before = nothing
            raise ConnectionResetError("the line is dead")

    async def nothing(_operation: str, _key: str) -> None:
        return None

    worker.gateway.before = fail_first_charge
    order = order_created()
    assert await worker.charge(order) == []
    assert await worker.held() == set()
    clock.advance(1)
    await worker.reconciler.look_up_due()
    assert kinds(worker.outbox.sent) == ["payment.processed"]
    assert await worker.held() == {order.order_id}


async def test_look_ups_continue_until_the_gateway_answers(worker: PaymentWorker, clock: MovableClock) -> None:
    async def dead(_operation: str, _key: str) -> None:
        raise ConnectionResetError("the line is dead")

    async def alive(_operation: str, _key: str) -> None:
        return None

    worker.gateway.before = dead
    order = order_created()
    await worker.charge(order)
    for pause in (1, 2, 5, 30, 30, 30):
        clock.advance(pause - 0.5)
        assert await worker.reconciler.look_up_due() == 0
        clock.advance(0.5)
        assert await worker.reconciler.look_up_due() == 1
    assert (await worker.payment(order.order_id)).status is PaymentStatus.PENDING
    worker.gateway.before = alive
    clock.advance(30)
    await worker.reconciler.look_up_due()
    assert kinds(worker.outbox.sent) == ["payment.processed"]


async def test_a_refund_of_an_unknown_outcome_is_carried_out_by_the_look_up(
    worker: PaymentWorker, clock: MovableClock
) -> None:
    order = order_created("tok_timeout")
    await worker.charge(order)
    assert await worker.refund(order.order_id) == []
    assert await worker.held() == {order.order_id}
    clock.advance(1)
    await worker.reconciler.look_up_due()
    assert worker.outbox.sent == [PaymentRefunded(order_id=order.order_id, status="REFUNDED")]
    assert await worker.held() == set()
    assert await worker.refund(order.order_id) == worker.outbox.sent


async def test_a_refund_that_the_gateway_does_not_answer_is_tried_again_until_it_does(
    worker: PaymentWorker, clock: MovableClock
) -> None:
    async def lose_refunds(operation: str, _key: str) -> None:
        if operation == "refund":
            raise ConnectionResetError("the line is dead")

    async def lose_nothing(_operation: str, _key: str) -> None:
        return None

    order = order_created()
    await worker.charge(order)
    worker.gateway.before = lose_refunds
    assert await worker.refund(order.order_id) == []
    assert await worker.charge(order) == []
    worker.gateway.before = lose_nothing
    clock.advance(5)
    await worker.reconciler.look_up_due()
    assert worker.outbox.sent == [PaymentRefunded(order_id=order.order_id, status="REFUNDED")]
    assert await worker.held() == set()


async def test_a_call_that_raises_does_not_affect_the_others_of_the_batch(
    worker: PaymentWorker, clock: MovableClock
) -> None:
    orders = [order_created() for _ in range(20)]
    victim = orders[7].order_id

    async def explode(operation: str, key: str) -> None:
        if (operation, key) == ("charge", victim):
            raise RuntimeError("boom")

    worker.gateway.before = explode
    answers = await worker.charge(*orders)
    assert {answer.correlation_id for answer in answers} == {order.order_id for order in orders} - {victim}
    assert kinds(answers) == ["payment.processed"] * 19
    payment = await worker.payment(victim)
    assert (payment.status, payment.next_lookup_at is not None) == (PaymentStatus.PENDING, True)


async def test_a_gateway_that_hangs_for_one_order_delays_the_others_no_longer_than_the_timeout(
    mongodb_url: str, database_prefix: str, clock: MovableClock
) -> None:
    async with payment_worker(mongodb_url, database_prefix, clock=clock, timeout_seconds=0.2) as worker:
        orders = [order_created() for _ in range(3)]

        class AtOnce(SimulatedGateway):
            """Answers at once, so that the speed of the database does not decide which charge is in time."""

            async def charge(self, request: ChargeRequest) -> Charged | Declined:
                return Charged(f"ch_{request.key}")

        async def hang(operation: str, key: str) -> None:
            if (operation, key) == ("charge", orders[0].order_id):
                await asyncio.Event().wait()

        worker.gateway.inner = AtOnce(worker.database["unused"], failure_rate=0.0, clock=clock)
        worker.gateway.before = hang
        async with asyncio.timeout(60):
            answers = await worker.charge(*orders)
        assert [answer.correlation_id for answer in answers] == [order.order_id for order in orders[1:]]
        assert (await worker.payment(orders[0].order_id)).next_lookup_at is not None


async def test_a_key_reused_for_another_amount_is_never_recorded_as_paid(
    worker: PaymentWorker, clock: MovableClock
) -> None:
    order = order_created(amount=1000)
    await worker.gateway.inner.charge(order_request(order.order_id, amount=7))
    assert await worker.charge(order) == []
    clock.advance(1)
    await worker.reconciler.look_up_due()
    assert (await worker.payment(order.order_id)).status is PaymentStatus.PENDING
    # The saga gives up, and the charge under the key is refunded.
    assert await worker.refund(order.order_id) == []
    clock.advance(5)
    await worker.reconciler.look_up_due()
    assert kinds(worker.outbox.sent) == ["payment.refunded"]
    assert await worker.held() == set()


def order_request(key: str, amount: int) -> ChargeRequest:
    return ChargeRequest(key, amount, "USD", "tok_ok", utc_now())


# --- Answers that the reconciler publishes ---


async def test_an_answer_looked_up_while_the_broker_is_away_is_published_later(
    worker: PaymentWorker, clock: MovableClock
) -> None:
    order = order_created("tok_timeout")
    await worker.charge(order)
    clock.advance(1)
    worker.outbox.away = True
    with pytest.raises(Exception, match="away"):
        await worker.reconciler.look_up_due()
    assert (await worker.payment(order.order_id)).unpublished
    worker.outbox.away = False
    assert await worker.reconciler.publish_unpublished() == 0
    clock.advance(5)
    assert await worker.reconciler.publish_unpublished() == 1
    assert kinds(worker.outbox.sent) == ["payment.processed"]
    clock.advance(5)
    assert await worker.reconciler.publish_unpublished() == 0


async def test_two_processes_share_the_look_ups_that_are_due(
    mongodb_url: str, database_prefix: str, clock: MovableClock
) -> None:
    async with (
        payment_worker(mongodb_url, database_prefix, clock=clock) as one,
        payment_worker(mongodb_url, database_prefix, clock=clock) as other,
    ):
        orders = [order_created("tok_timeout") for _ in range(60)]
        await one.charge(*orders)
        clock.advance(1)
        await asyncio.gather(one.reconciler.look_up_due(), other.reconciler.look_up_due())
        sent = [answer.correlation_id for answer in (*one.outbox.sent, *other.outbox.sent)]
        assert sorted(sent) == sorted(order.order_id for order in orders)


async def test_the_loop_outlives_errors_and_ends_when_cancelled(worker: PaymentWorker, clock: MovableClock) -> None:
    order = order_created("tok_timeout")
    await worker.charge(order)
    clock.advance(1)
    worker.outbox.failing = True
    running = asyncio.create_task(worker.reconciler.run())
    async with asyncio.timeout(60):
        while not (await worker.payment(order.order_id)).unpublished:
            await asyncio.sleep(0.01)
        worker.outbox.failing = False
        clock.advance(5)
        while not worker.outbox.sent:
            await asyncio.sleep(0.01)
    await end_tasks(running)
    assert running.cancelled()
