"""The work of the batch consumer around its handlers, over RabbitMQ and in memory."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import pytest

from shared import topology
from shared.bus import Bus, Envelope, Handlers
from shared.bus.consumer import Consumer
from shared.bus.metrics import BREAKER_OPEN
from shared.bus.publisher import Publisher, envelope
from shared.contracts import (
    BY_ROUTING_KEY,
    Message,
    OrderCreated,
    PaymentRefunded,
    RefundPayment,
    ReleaseStock,
    StockReleased,
)
from shared.errors import (
    BusUnavailableError,
    DatabaseUnavailableError,
    NewerOrderError,
    PoisonError,
    TransientError,
)
from shared.failpoints import ACKNOWLEDGED, HANDLED, PUBLISHED, SimulatedCrashError
from tests.support.buses import SHORT_LADDER, Harness, open_harness, raw
from tests.support.eventually import eventually

INBOX = topology.PAYMENT_INBOX
ANSWERS = topology.ORDER_INBOX


@pytest.fixture(params=["memory", "rabbitmq"])
async def harness(request: pytest.FixtureRequest, amqp_url: str) -> AsyncIterator[Harness]:
    async with open_harness(request.param, amqp_url) as opened:
        yield opened


class Refunds:
    """A handler that answers every refund, remembers its calls, and fails on request."""

    def __init__(self, fail: Callable[[Sequence[RefundPayment]], Exception | None] = lambda _: None) -> None:
        self.calls: list[list[str]] = []
        self._fail = fail

    async def __call__(self, messages: Sequence[RefundPayment]) -> list[Message]:
        self.calls.append([message.order_id for message in messages])
        failure = self._fail(messages)
        if failure is not None:
            raise failure
        return [PaymentRefunded(order_id=message.order_id, status="REFUNDED") for message in messages]


class Running:
    """Consumers that run for a test."""

    def __init__(self, harness: Harness) -> None:
        self._harness = harness
        self._consumers: list[tuple[Consumer, asyncio.Task[None]]] = []

    async def consumer(
        self,
        handlers: Handlers | Callable[..., Awaitable[Any]],
        queue: str = INBOX,
        bus: Bus | None = None,
        **options: Any,
    ) -> Consumer:
        if not isinstance(handlers, dict):
            handlers = {RefundPayment: handlers}  # type: ignore[dict-item]
        bus = bus or await self._harness.bus(queue)
        consumer = Consumer(bus, queue, handlers, ladder=SHORT_LADDER, **options)
        self._consumers.append((consumer, asyncio.create_task(consumer.run())))
        return consumer

    def task(self) -> asyncio.Task[None]:
        return self._consumers[-1][1]

    async def stop(self) -> None:
        for consumer, task in self._consumers:
            await consumer.stop(within=1.0)
            await asyncio.wait({task})


@pytest.fixture
async def running(harness: Harness) -> AsyncIterator[Running]:
    started = Running(harness)
    yield started
    await started.stop()


def refunds(*order_ids: str) -> list[RefundPayment]:
    return [RefundPayment(order_id=order_id) for order_id in order_ids]


def many(count: int) -> list[str]:
    return [f"o{number:03d}" for number in range(count)]


async def send(harness: Harness, messages: Sequence[Message]) -> None:
    await Publisher(await harness.bus()).send(messages)


async def answered(harness: Harness, count: int) -> list[str]:
    return [str(seen.correlation_id) for seen in await harness.take_from(ANSWERS, count)]


def poison(bad: str) -> Callable[[Sequence[RefundPayment]], Exception | None]:
    return lambda messages: PoisonError("bad") if any(m.order_id == bad for m in messages) else None


async def nothing_left(harness: Harness) -> None:
    """Neither in the inbox nor on the way back to it, also after its consumers are gone."""
    for queue in (INBOX, *topology.retry_queues(INBOX, SHORT_LADDER)):
        await harness.take_from(queue, 0)


async def test_a_paused_consumer_finishes_its_batch_and_takes_no_other(harness: Harness, running: Running) -> None:
    going_on, first = asyncio.Event(), asyncio.Event()
    handled: list[str] = []

    async def slowly(messages: Sequence[RefundPayment]) -> list[Message]:
        first.set()
        await going_on.wait()
        handled.extend(message.order_id for message in messages)
        return [PaymentRefunded(order_id=message.order_id, status="REFUNDED") for message in messages]

    consumer = await running.consumer(slowly, batch_limit=5)
    await send(harness, refunds(*many(20)))
    await asyncio.wait_for(first.wait(), 60)
    await consumer.set_paused(True)
    going_on.set()

    async def acknowledged() -> bool:
        return len(handled) > 0 and consumer._batch_since is None

    await eventually(acknowledged, 60, "the batch to be finished")
    done = len(handled)
    assert done <= 5
    assert consumer.unhealthy_reason is None
    await harness.drop_connections()
    await eventually(lambda: consumer.unhealthy_reason is None, 60)
    assert len(handled) == done

    await consumer.set_paused(False)

    # The broker may not have seen the acknowledgement before the connection was lost: then the batch comes again.
    await eventually(lambda: set(handled) == set(many(20)), 60)


async def test_a_breaker_opens_tests_single_messages_and_closes(harness: Harness, running: Running) -> None:
    broken = True
    handler = Refunds(lambda _: RuntimeError("the disk is full") if broken else None)
    consumer = await running.consumer(handler, batch_limit=10, breaker_batches=3)
    await send(harness, refunds(*many(60)))
    await eventually(lambda: consumer.breaker_reason is not None, 60, "the breaker to open")
    is_open = BREAKER_OPEN.labels(INBOX)._value.get
    assert is_open() == 1
    assert consumer.unhealthy_reason is None, "it is degraded, and not down"

    def tests() -> int:
        return consumer._breaker.tests

    await eventually(lambda: tests() >= 2, 60, "two tests")
    assert all(len(call) == 1 for call in handler.calls[-tests() :]), "a test is one message"
    broken = False
    await eventually(lambda: consumer.breaker_reason is None, 120, "the breaker to close")
    assert is_open() == 0

    assert sorted(await answered(harness, 60)) == many(60)
    await harness.take_from(topology.DEAD_LETTERS, 0)
    await running.stop()
    await nothing_left(harness)


async def test_a_bad_message_among_good_ones_opens_no_breaker(harness: Harness, running: Running) -> None:
    handler = Refunds(lambda messages: RuntimeError("bad") if any(m.order_id == "o003" for m in messages) else None)
    consumer = await running.consumer(handler, batch_limit=10, breaker_batches=3)
    await send(harness, refunds(*many(20)))

    (dead,) = await harness.take_from(topology.DEAD_LETTERS, 1)

    assert dead.correlation_id == "o003"
    assert consumer._breaker.opened_at is None
    await answered(harness, 19)


async def test_a_consumer_can_be_paused_while_its_breaker_is_open(harness: Harness, running: Running) -> None:
    broken = True
    handler = Refunds(lambda _: RuntimeError("the disk is full") if broken else None)
    consumer = await running.consumer(handler, batch_limit=10, breaker_batches=3)
    await send(harness, refunds(*many(30)))
    await eventually(lambda: consumer.breaker_reason is not None, 60, "the breaker to open")
    await consumer.set_paused(True)
    broken = False
    await eventually(lambda: consumer._breaker.test_at < time.monotonic(), 60, "the time of a test")
    assert consumer.breaker_reason is not None

    await consumer.set_paused(False)

    assert sorted(await answered(harness, 30)) == many(30)
    await eventually(lambda: consumer.breaker_reason is None, 60, "the breaker to close")


async def test_what_handlers_return_is_published_in_order_and_the_batch_acknowledged(
    harness: Harness, running: Running
) -> None:
    handler = Refunds()
    await send(harness, refunds(*many(300)))
    await running.consumer(handler)

    answers = await harness.take_from(ANSWERS, 300)

    assert [seen.correlation_id for seen in answers] == many(300)
    assert [(seen.type, seen.routing_key) for seen in answers] == [("payment.refunded", "payment.refunded")] * 300
    assert [seen.body for seen in answers] == [b'{"orderId":"%s","status":"REFUNDED"}' % i.encode() for i in many(300)]
    assert len({seen.message_id for seen in answers}) == 300
    await running.stop()
    await nothing_left(harness)


async def test_a_batch_has_the_waiting_messages_up_to_the_limit(harness: Harness, running: Running) -> None:
    handler, bus = Refunds(), await harness.bus(INBOX)
    await send(harness, refunds(*many(100)))
    await eventually(lambda: harness.arrived(bus) == 100, 60)
    await running.consumer(handler, bus=bus, batch_limit=30)
    await answered(harness, 100)
    assert [len(call) for call in handler.calls] == [30, 30, 30, 10]


async def test_a_message_at_idle_is_handled_at_once(harness: Harness, running: Running) -> None:
    handled = asyncio.Event()

    async def handler(_messages: Sequence[RefundPayment]) -> list[Message]:
        handled.set()
        return []

    await running.consumer(handler)
    sender = Publisher(await harness.bus())

    async def at_once() -> bool:
        handled.clear()
        start = time.monotonic()
        await sender.send(refunds("o1"))
        await handled.wait()
        return time.monotonic() - start < 0.05

    # The broker's disk may be slow for a while; what waits for company is never at once.
    await eventually(at_once, 60, "a message to be handled at once")


@pytest.mark.parametrize("shared_handler", [True, False])
async def test_types_with_one_handler_reach_it_together_in_their_order_and_others_apart(
    harness: Harness, running: Running, shared_handler: bool
) -> None:
    calls: list[list[str]] = []

    def handler() -> Any:
        async def note(messages: Sequence[Message]) -> list[Message]:
            calls.append([f"{message.routing_key} {message.correlation_id}" for message in messages])
            return []

        return note

    created, first = OrderCreated.model_validate_json(ORDER), handler()
    for message in [created, *refunds("a"), created, *refunds("b")]:
        await harness.send_raw(raw(message.to_json(), INBOX, type=message.routing_key))
    bus = await harness.bus(INBOX)
    await eventually(lambda: harness.arrived(bus) == 4, 60)
    await running.consumer({OrderCreated: first, RefundPayment: first if shared_handler else handler()}, bus=bus)

    await eventually(lambda: sum(map(len, calls)) == 4, 60)

    if shared_handler:
        assert calls == [["order.created o1", "payment.refund a", "order.created o1", "payment.refund b"]]
    else:
        assert calls == [["order.created o1", "order.created o1"], ["payment.refund a", "payment.refund b"]]


ORDER = b'{"orderId":"o1","userId":"u1","items":[{"productId":"p1","quantity":1,"price":10}],"totalAmount":10,"x":1}'

POISON = {
    "empty": (b"", "Invalid JSON"),
    "not JSON": (b"{orderId: 1}", "Invalid JSON"),
    "not UTF-8": (b'{"orderId":"\xff\xfe"}', "Invalid JSON"),
    "a lone surrogate": (b'{"orderId":"\\ud800"}', "Invalid JSON"),
    "nested 100,000 deep": (b'{"orderId":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "Invalid JSON"),
    "a list": (b"[]", "Input should be an object"),
    "no order id": (b"{}", "orderId: Field required"),
    "an operator as id": (b'{"orderId":{"$gt":""}}', "orderId: Input should be a valid string (got {'$gt': ''})"),
    "a number as id": (b'{"orderId":7}', "orderId: Input should be a valid string (got 7)"),
    "a path as id": (b'{"orderId":"../etc"}', "(got '../etc')"),
    "a zero byte in the id": (b'{"orderId":"a\\u0000"}', "orderId: String should match pattern"),
    "an id of 200 KB": (b'{"orderId":"' + b"x" * 200_000 + b'"}', "orderId: String should match pattern"),
    "a number of 100,000 digits": (b'{"orderId":' + b"9" * 100_000 + b"}", ""),
    "NaN": (b'{"orderId":"o1","reason":NaN}', "reason: Input should be a valid string (got nan)"),
    "more than 256 KiB": (b'{"orderId":"o1","pad":"' + b"x" * 300_000 + b'"}', "the body has 300025 bytes"),
    "as much as the broker takes": (b"\x00" * topology.MAX_MESSAGE_BYTES, "the body has 1048576 bytes"),
}


@pytest.mark.parametrize("name", POISON)
async def test_a_body_that_cannot_be_a_message_is_dead_lettered_whole_with_the_reason(
    harness: Harness, running: Running, name: str
) -> None:
    body, reason = POISON[name]
    handler = Refunds()
    await running.consumer(handler)
    await harness.send_raw(raw(body, INBOX, type="payment.refund"))

    (dead,) = await harness.take_from(topology.DEAD_LETTERS, 1)

    assert dead.body == body
    assert reason in dead.headers["x-error-message"]
    assert len(dead.headers["x-error-message"]) < 1000
    assert dead.headers["x-error-type"] == "PoisonError"
    assert handler.calls == []
    await running.stop()
    await nothing_left(harness)


@pytest.mark.parametrize(
    ("type_", "reason"),
    [
        ("stock.release", "stock.release is not handled here (payment.inbox)"),
        ("", "the message has no type"),
    ],
)
async def test_a_type_that_is_missing_or_not_handled_here_is_dead_lettered(
    harness: Harness, running: Running, type_: str, reason: str
) -> None:
    await running.consumer(Refunds())
    await harness.send_raw(raw(b'{"orderId":"o1"}', INBOX, type=type_))
    (dead,) = await harness.take_from(topology.DEAD_LETTERS, 1)
    assert dead.headers["x-error-message"] == reason


async def test_a_message_of_an_unknown_type_is_handled_by_a_process_that_is_upgraded_meanwhile(
    harness: Harness, running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop_after_the_first(reached: str) -> None:
        if reached == ACKNOWLEDGED:
            raise SimulatedCrashError(reached)

    handler, bus = Refunds(), await harness.bus(INBOX)
    with monkeypatch.context() as older:
        older.delitem(BY_ROUTING_KEY, "payment.refund")
        await running.consumer(handler, bus=bus, failpoint=stop_after_the_first)
        await send(harness, refunds("o1"))
        with pytest.raises(SimulatedCrashError):
            await running.task()
    await bus.close()
    assert handler.calls == []
    await running.consumer(handler)
    assert await answered(harness, 1) == ["o1"]
    await harness.take_from(topology.DEAD_LETTERS, 0)


async def test_a_message_of_an_unknown_type_is_a_dead_letter_after_its_last_retry(
    harness: Harness, running: Running
) -> None:
    await running.consumer(Refunds())
    await harness.send_raw(raw(b'{"orderId":"o1"}', INBOX, type="no.such"))
    (dead,) = await harness.take_from(topology.DEAD_LETTERS, 1)
    assert (dead.headers["x-error-type"], dead.headers["x-attempts"]) == ("UnknownTypeError", 1 + len(SHORT_LADDER))
    assert dead.headers["x-error-message"] == "unknown message type 'no.such'"


async def test_a_message_with_an_unknown_word_waits_and_is_a_dead_letter_after_its_last_retry(
    harness: Harness, running: Running
) -> None:
    await running.consumer({OrderCreated: Refunds()})
    order = b'{"orderId":"o1","userId":"u1","items":[{"productId":"p","quantity":1,"price":1}],"totalAmount":1%s}'
    await harness.send_raw(raw(order % b',"payment":{"method":"crypto"}', INBOX, type="order.created"))
    (dead,) = await harness.take_from(topology.DEAD_LETTERS, 1)
    assert (dead.headers["x-error-type"], dead.headers["x-attempts"]) == ("UnknownValueError", 1 + len(SHORT_LADDER))
    assert "payment.method: Input should be 'card' or 'retainer' (got 'crypto')" in dead.headers["x-error-message"]


async def test_fields_that_are_not_known_are_ignored(harness: Harness, running: Running) -> None:
    handler = Refunds()
    await running.consumer(handler)
    await harness.send_raw(
        raw(b'{"orderId":"o1","reason":"","method":{"of":"tomorrow"}}', INBOX, type="payment.refund")
    )
    assert await answered(harness, 1) == ["o1"]


async def test_a_message_of_a_newer_order_waits_longer_than_the_ladder_and_alone(
    harness: Harness, running: Running
) -> None:
    attempts = 2 * len(SHORT_LADDER)

    def newer(messages: Sequence[RefundPayment]) -> Exception | None:
        tries = sum(call == ["newer"] for call in handler.calls)
        return NewerOrderError("newer") if "newer" in ids(messages) and tries < attempts else None

    def ids(messages: Sequence[RefundPayment]) -> list[str]:
        return [message.order_id for message in messages]

    handler = Refunds(newer)
    await running.consumer(handler)
    await send(harness, refunds("o1", "newer", "o2"))
    assert sorted(await answered(harness, 3)) == ["newer", "o1", "o2"]
    await harness.take_from(topology.DEAD_LETTERS, 0)


async def test_a_type_that_contradicts_the_routing_key_makes_a_dead_letter_that_names_both(
    harness: Harness, running: Running
) -> None:
    handler = Refunds()
    await running.consumer(handler)
    forged = Envelope(b'{"orderId":"o1"}', topology.EXCHANGE, "order.created", "payment.refund", "o1", "m1")
    await harness.send_raw(forged)

    (dead,) = await harness.take_from(topology.DEAD_LETTERS, 1)

    assert dead.headers["x-error-message"] == "the routing key is 'order.created', but the type is 'payment.refund'"
    assert (dead.type, dead.routing_key, dead.headers["x-routing-key"]) == ("order.created",) * 3
    assert handler.calls == []


async def test_without_a_type_the_routing_key_says_what_a_message_is(harness: Harness, running: Running) -> None:
    await running.consumer(Refunds())
    await harness.send_raw(Envelope(b'{"orderId":"o1"}', topology.EXCHANGE, "payment.refund", "", "", ""))
    assert await answered(harness, 1) == ["o1"]


async def test_a_dead_letter_has_all_that_an_operator_needs(harness: Harness, running: Running) -> None:
    await running.consumer(Refunds(poison("o1")))
    sent = envelope(refunds("o1")[0])
    sent = Envelope(
        sent.body, sent.exchange, sent.routing_key, sent.type, "o1", "m1", headers={"traceparent": "00-a-b-01", "n": 1}
    )
    await harness.send_raw(sent)

    (dead,) = await harness.take_from(topology.DEAD_LETTERS, 1)

    assert (dead.body, dead.type, dead.routing_key) == (sent.body, "payment.refund", "payment.refund")
    assert (dead.correlation_id, dead.message_id) == ("o1", "m1")
    headers = dead.headers
    assert (headers["traceparent"], headers["n"]) == ("00-a-b-01", 1)
    assert (headers["x-queue"], headers["x-routing-key"], headers["x-attempts"]) == (INBOX, "payment.refund", 1)
    assert (headers["x-error-type"], headers["x-error-message"]) == ("PoisonError", "bad")
    assert "in __call__" in headers["x-traceback"]
    assert headers["x-first-failed-at"] == headers["x-failed-at"]
    assert headers["x-failed-at"].endswith("Z")


async def test_one_bad_message_of_a_hundred_is_isolated_and_the_others_go_through(
    harness: Harness, running: Running
) -> None:
    handler, bus = Refunds(poison("o042")), await harness.bus(INBOX)
    await send(harness, refunds(*many(100)))
    await eventually(lambda: harness.arrived(bus) == 100, 60)
    await running.consumer(handler, bus=bus)

    assert sorted(await answered(harness, 99)) == [order for order in many(100) if order != "o042"]
    (dead,) = await harness.take_from(topology.DEAD_LETTERS, 1)

    assert dead.correlation_id == "o042"
    assert len(handler.calls) < 20
    await running.stop()
    await nothing_left(harness)


async def test_an_unexpected_error_passes_every_retry_level_and_ends_as_a_dead_letter(
    harness: Harness, running: Running
) -> None:
    handler = Refunds(lambda messages: KeyError("o1") if messages[0].order_id == "o1" else None)
    await running.consumer(handler)
    await send(harness, refunds("o1"))

    (dead,) = await harness.take_from(topology.DEAD_LETTERS, 1)

    assert handler.calls == [["o1"]] * (1 + len(SHORT_LADDER))
    assert (dead.type, dead.routing_key, dead.correlation_id) == ("payment.refund", "payment.refund", "o1")
    assert (dead.headers["x-attempts"], dead.headers["x-error-type"]) == (4, "KeyError")
    assert dead.headers["x-first-failed-at"] <= dead.headers["x-failed-at"]
    await running.stop()
    await nothing_left(harness)


async def test_a_retry_that_succeeds_leaves_nothing_behind(harness: Harness, running: Running) -> None:
    failures = iter([ValueError("first"), ValueError("second")])
    handler = Refunds(lambda _: next(failures, None))
    await running.consumer(handler)
    await send(harness, refunds("o1"))

    assert await answered(harness, 1) == ["o1"]

    assert handler.calls == [["o1"]] * 3
    await running.stop()
    await nothing_left(harness)
    await harness.take_from(topology.DEAD_LETTERS, 0)


async def test_only_the_bad_message_of_a_batch_is_retried(harness: Harness, running: Running) -> None:
    tries = {"o3": 0}

    def fail(messages: Sequence[RefundPayment]) -> Exception | None:
        if any(message.order_id == "o3" for message in messages):
            tries["o3"] += len(messages) == 1
            return ValueError("not yet") if tries["o3"] < 2 else None
        return None

    await send(harness, refunds("o1", "o2", "o3", "o4"))
    await running.consumer(Refunds(fail))

    answers = await answered(harness, 4)

    assert answers[-1] == "o3"
    assert sorted(answers[:3]) == ["o1", "o2", "o4"]


@pytest.mark.parametrize("hostile", [-5, "many", True, 10**12, [1], None])
async def test_a_hostile_count_of_attempts_costs_at_most_the_retries(
    harness: Harness, running: Running, hostile: Any
) -> None:
    await running.consumer(Refunds(lambda _: ValueError("always")))
    await harness.send_raw(raw(b'{"orderId":"o1"}', INBOX, type="payment.refund", headers={"x-attempts": hostile}))
    (dead,) = await harness.take_from(topology.DEAD_LETTERS, 1)
    assert dead.headers["x-error-type"] == "ValueError"


async def test_headers_of_a_hundred_kilobytes_do_not_keep_a_message_from_the_dead_letters(
    harness: Harness, running: Running
) -> None:
    await running.consumer(Refunds(lambda _: ValueError("x" * 100_000)))
    headers = {"small": "kept", "huge": "y" * 100_000}
    await harness.send_raw(raw(b'{"orderId":"o1"}', INBOX, type="payment.refund", headers=headers))

    (dead,) = await harness.take_from(topology.DEAD_LETTERS, 1)

    assert dead.headers["small"] == "kept"
    assert dead.headers["x-headers-left-out"] == 1
    assert dead.headers["x-queue"] == INBOX


async def test_while_a_server_is_away_nothing_is_lost_and_no_attempt_counts(harness: Harness, running: Running) -> None:
    away = iter([DatabaseUnavailableError("no primary")] * 3)
    handler = Refunds(lambda _: next(away, None))
    await send(harness, refunds("o1", "o2", "o3"))
    consumer = await running.consumer(handler)
    await eventually(lambda: consumer.unhealthy_reason == "waiting: no primary", 60)

    assert await answered(harness, 3) == ["o1", "o2", "o3"]

    assert handler.calls[:4] == [handler.calls[0]] * 4
    await eventually(lambda: consumer.unhealthy_reason is None, 60)
    await running.stop()
    await nothing_left(harness)
    await harness.take_from(topology.DEAD_LETTERS, 0)


async def test_a_drivers_exception_counts_as_what_it_is_mapped_to(harness: Harness, running: Running) -> None:
    errors = iter([ConnectionResetError("driver"), ConnectionResetError("driver")])

    def translate_error(error: Exception) -> Exception:
        return DatabaseUnavailableError(str(error)) if isinstance(error, ConnectionResetError) else error

    handler = Refunds(lambda _: next(errors, None))
    await send(harness, refunds("o1"))  # first: the confirmation may come when the outage is over
    consumer = await running.consumer(handler, translate_error=translate_error)
    await eventually(lambda: consumer.unhealthy_reason == "waiting: driver", 60)
    await answered(harness, 1)
    assert handler.calls == [["o1"]] * 3


async def test_a_batch_whose_connection_is_gone_is_left_to_its_redelivery(harness: Harness, running: Running) -> None:
    failing = True
    handler = Refunds(lambda _: TransientError("away") if failing else None)
    await running.consumer(handler)
    await send(harness, refunds("o1"))
    await eventually(lambda: handler.calls, 60)

    await harness.drop_connections()
    failing = False

    assert await answered(harness, 1) == ["o1"]
    await running.stop()
    await nothing_left(harness)


@pytest.mark.parametrize("point", [HANDLED, PUBLISHED])
async def test_after_a_crash_before_the_acknowledgement_the_same_results_are_published_again(
    harness: Harness, running: Running, point: str
) -> None:
    crashes = iter([point])

    def crash_once(reached: str) -> None:
        if reached == point and next(crashes, None):
            raise SimulatedCrashError(point)

    handler, bus = Refunds(), await harness.bus(INBOX)
    await send(harness, refunds("o1", "o2"))
    await eventually(lambda: harness.arrived(bus) == 2, 60)
    await running.consumer(handler, bus=bus, failpoint=crash_once)
    with pytest.raises(SimulatedCrashError):
        await running.task()
    first = await harness.take_from(ANSWERS, 0 if point == HANDLED else 2)

    await harness.drop_connections()
    await bus.close()  # it would connect again, and take messages that no handler is left for
    await running.consumer(Refunds())

    again = await harness.take_from(ANSWERS, 2)
    assert [seen.correlation_id for seen in again] == ["o1", "o2"]
    assert [seen.body for seen in first] in ([], [seen.body for seen in again])
    await running.stop()
    await nothing_left(harness)


async def test_after_a_crash_after_the_acknowledgement_nothing_returns(harness: Harness, running: Running) -> None:
    def crash(reached: str) -> None:
        if reached == ACKNOWLEDGED:
            raise SimulatedCrashError(reached)

    await send(harness, refunds("o1"))
    await running.consumer(Refunds(), failpoint=crash)
    with pytest.raises(SimulatedCrashError):
        await running.task()
    await answered(harness, 1)
    await harness.drop_connections()
    await nothing_left(harness)


class UnreliableBus:
    """A bus whose calls fail on request, before they do anything."""

    def __init__(self, bus: Bus, **failures: Sequence[Exception]) -> None:
        self._bus = bus
        self._failures = {name: list(errors) for name, errors in failures.items()}

    def __getattr__(self, name: str) -> Any:
        failures = self._failures.get(name)
        if failures:
            raise_now = failures.pop(0)

            async def fail(*_: Any) -> None:
                raise raise_now

            return fail
        return getattr(self._bus, name)


async def test_a_failed_publication_is_repeated_before_the_batch_is_acknowledged(
    harness: Harness, running: Running
) -> None:
    bus = UnreliableBus(await harness.bus(INBOX), publish=[BusUnavailableError("no confirm")] * 2)
    handler = Refunds()
    await running.consumer(handler, bus=bus)
    await send(harness, refunds("o1"))
    assert await answered(harness, 1) == ["o1"]
    assert handler.calls == [["o1"]]


async def test_a_fault_of_the_consumer_itself_is_survived_and_its_batch_comes_again(
    harness: Harness, running: Running
) -> None:
    bus = UnreliableBus(await harness.bus(INBOX), acknowledge=[RuntimeError("a bug")], receive=[RuntimeError("a bug")])
    handler = Refunds()
    await running.consumer(handler, bus=bus)
    await send(harness, refunds("o1"))

    assert await answered(harness, 2) == ["o1", "o1"]

    assert handler.calls == [["o1"], ["o1"]]
    await running.stop()
    await nothing_left(harness)


async def test_a_cancellation_that_escapes_from_a_driver_does_not_end_the_consumer(
    harness: Harness, running: Running
) -> None:
    escaping = iter([asyncio.CancelledError()])

    async def handler(messages: Sequence[RefundPayment]) -> list[Message]:
        for error in escaping:
            raise error
        return await Refunds()(messages)

    await running.consumer(handler)
    await send(harness, refunds("o1"))
    assert await answered(harness, 1) == ["o1"]


async def test_stopping_finishes_the_current_batch_and_takes_no_more(harness: Harness, running: Running) -> None:
    started, go_on, answering = asyncio.Event(), asyncio.Event(), Refunds()

    async def handler(messages: Sequence[RefundPayment]) -> list[Message]:
        started.set()
        await go_on.wait()
        return await answering(messages)

    bus = await harness.bus(INBOX)
    consumer = await running.consumer(handler, bus=bus, batch_limit=2)
    await send(harness, refunds("o1", "o2", "o3", "o4"))
    await started.wait()
    stopping = asyncio.create_task(consumer.stop(within=600))
    await asyncio.sleep(0)
    go_on.set()
    async with asyncio.timeout(60):  # less than it would wait for a batch that does not end
        await stopping

    assert consumer.unhealthy_reason == "the consumer does not run"
    in_hand = [order for call in answering.calls for order in call]
    assert in_hand in (["o1"], ["o1", "o2"])
    assert await answered(harness, len(in_hand)) == in_hand
    await bus.close()
    await harness.take_from(INBOX, 4 - len(in_hand))


async def test_stopping_abandons_a_batch_that_does_not_finish_in_time(harness: Harness, running: Running) -> None:
    started = asyncio.Event()

    async def handler(_messages: Sequence[RefundPayment]) -> list[Message]:
        started.set()
        await asyncio.Event().wait()
        return []

    bus = await harness.bus(INBOX)
    consumer = await running.consumer(handler, bus=bus)
    await send(harness, refunds("o1"))
    await started.wait()
    async with asyncio.timeout(8):  # less than its default wait
        await consumer.stop(within=0.1)
    await bus.close()
    await harness.take_from(INBOX, 1)


async def test_stopping_while_a_server_is_away_does_not_wait_for_it(harness: Harness, running: Running) -> None:
    handler = Refunds(lambda _: TransientError("away"))
    bus = await harness.bus(INBOX)
    consumer = await running.consumer(handler, bus=bus)
    await send(harness, refunds("o1"))
    await eventually(lambda: len(handler.calls) >= 2, 60)
    async with asyncio.timeout(60):  # less than it waits for a batch
        await consumer.stop(within=600)
    await bus.close()
    await harness.take_from(INBOX, 1)


async def test_its_health_says_that_a_batch_does_not_progress(harness: Harness, running: Running) -> None:
    async def handler(_messages: Sequence[RefundPayment]) -> list[Message]:
        await asyncio.Event().wait()
        return []

    consumer = await running.consumer(handler, stalled_after=0.05)
    await send(harness, refunds("o1"))
    await eventually(lambda: "has not been finished" in str(consumer.unhealthy_reason), 60)
    await consumer.stop(within=0.05)


async def test_a_release_is_not_mixed_up_with_a_refund(harness: Harness, running: Running) -> None:
    async def release(messages: Sequence[ReleaseStock]) -> list[Message]:
        return [StockReleased(order_id=message.order_id) for message in messages]

    await running.consumer({ReleaseStock: release}, queue=topology.INVENTORY_INBOX)
    await running.consumer(Refunds())
    await send(harness, [ReleaseStock(order_id="o1"), RefundPayment(order_id="o1")])
    types = [seen.type for seen in await harness.take_from(ANSWERS, 2)]
    assert sorted(map(str, types)) == ["payment.refunded", "stock.released"]
