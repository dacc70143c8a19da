"""Retries and dead letters: where they go, what they keep, and that they always fit."""

import random
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from shared import topology
from shared.bus import Delivery
from shared.bus.amqp.frames import write_headers
from shared.bus.failures import (
    NEWER_ORDER_WAITS,
    after_failure,
    dead_letter,
    failed_attempts,
    fitting,
    next_level,
    returned_from,
    waits,
)
from shared.errors import NewerOrderError, PoisonError, UnknownTypeError, UnknownValueError
from tests.support.seeds import seeded

NOW = datetime(2026, 5, 1, 12, 0, 0, 123456, tzinfo=UTC)
LATER = NOW + timedelta(minutes=5)


def delivery(**changed: Any) -> Delivery:
    values: dict[str, Any] = {
        "body": b'{"orderId":"o1"}',
        "queue": topology.PAYMENT_INBOX,
        "exchange": topology.EXCHANGE,
        "routing_key": "payment.refund",
        "type": "payment.refund",
        "correlation_id": "o1",
        "message_id": "m1",
        "redelivered": False,
        "headers": {},
        "receipt": None,
    }
    return Delivery(**(values | changed))


def raised(error: Exception) -> Exception:
    """Return the error with a traceback, as if raised."""
    try:
        raise error  # noqa: TRY301
    except Exception as caught:  # noqa: BLE001
        return caught


def test_a_message_passes_every_retry_level_and_is_then_dead_lettered() -> None:
    current = delivery()
    for attempt, level in enumerate(topology.retry_queues(topology.PAYMENT_INBOX), 1):
        retry = after_failure(current, raised(KeyError("x")), NOW)
        assert (retry.exchange, retry.routing_key) == (level, "payment.refund")
        assert (retry.body, retry.type) == (current.body, "payment.refund")
        assert (retry.correlation_id, retry.message_id) == ("o1", "m1")
        assert (retry.headers["x-attempts"], retry.headers["x-retry-level"]) == (attempt, level)
        current = delivery(exchange="", routing_key=topology.PAYMENT_INBOX, headers=retry.headers)

    dead = after_failure(current, raised(KeyError("x")), LATER)

    assert (dead.exchange, dead.routing_key) == (topology.DEAD_LETTERS, "payment.refund")
    assert dead.headers["x-attempts"] == 5
    assert dead.headers["x-first-failed-at"] == "2026-05-01T12:00:00.123Z"
    assert dead.headers["x-failed-at"] == "2026-05-01T12:05:00.123Z"


def test_a_message_of_an_unknown_type_is_retried_on_the_slowest_level_only() -> None:
    current, slowest = delivery(routing_key="order.frobnicated", type=None), "payment.retry.2m"
    for _ in topology.RETRY_LADDER:
        retry = after_failure(current, raised(UnknownTypeError("x")), NOW)
        assert (retry.exchange, retry.type) == (slowest, "order.frobnicated")
        current = delivery(exchange="", routing_key=topology.PAYMENT_INBOX, type=retry.type, headers=retry.headers)
    dead = after_failure(current, raised(UnknownTypeError("x")), NOW)
    assert (dead.exchange, dead.type) == (topology.DEAD_LETTERS, "order.frobnicated")


def test_a_value_that_is_not_known_waits_like_a_type_that_is_not_known() -> None:
    levels = [
        next_level(delivery(headers={"x-attempts": attempts}), UnknownValueError("x"), topology.RETRY_LADDER)
        for attempts in range(5)
    ]
    assert levels == [topology.RETRY_LADDER[-1]] * 4 + [None]


def test_a_message_of_a_newer_order_climbs_the_ladder_and_waits_there_for_most_of_an_hour() -> None:
    waited, current = 0, delivery()
    while (level := next_level(current, NewerOrderError("x"), topology.RETRY_LADDER)) is not None:
        assert level is topology.RETRY_LADDER[min(waits(current.headers), 3)]
        waited += level.milliseconds
        retry = after_failure(current, raised(NewerOrderError("x")), NOW)
        current = delivery(exchange="", routing_key=topology.PAYMENT_INBOX, headers=retry.headers)
    assert waits(current.headers) == NEWER_ORDER_WAITS
    assert failed_attempts(current.headers) == 0, "an error after that is retried as usual"
    assert 50 * 60_000 < waited < 60 * 60_000


@pytest.mark.parametrize(
    ("exchange", "level", "found"),
    [
        (topology.INBOX_EXCHANGE, "payment.retry.2m", "payment.retry.2m"),
        (topology.INBOX_EXCHANGE, "order.retry.2m", None),
        (topology.INBOX_EXCHANGE, "made up", None),
        (topology.INBOX_EXCHANGE, {"$gt": ""}, None),
        (topology.INBOX_EXCHANGE, None, None),
        (topology.EXCHANGE, "payment.retry.2m", None),
    ],
)
def test_a_retry_names_its_level(exchange: str, level: Any, found: str | None) -> None:
    back = delivery(exchange=exchange, routing_key=topology.PAYMENT_INBOX, headers={"x-retry-level": level})
    assert returned_from(back, topology.RETRY_LADDER) == found


def test_a_message_without_type_keeps_the_type_of_its_routing_key_over_a_retry() -> None:
    retry = after_failure(delivery(type=None), raised(ValueError()), NOW)
    assert retry.type == "payment.refund"


def test_a_retry_drops_the_brokers_headers_and_a_dead_letter_keeps_them() -> None:
    headers = {"x-death": [{"count": 1}], "x-first-death-queue": "q", "x-delivery-count": 2, "traceparent": "t"}
    retry = after_failure(delivery(headers=headers), raised(ValueError()), NOW)
    dead = dead_letter(delivery(headers=headers), raised(PoisonError("bad")), NOW)
    assert set(retry.headers) == {"traceparent", "x-attempts", "x-first-failed-at", "x-routing-key", "x-retry-level"}
    assert set(headers) <= set(dead.headers)


def test_a_dead_letter_says_what_why_where_and_when() -> None:
    dead = dead_letter(delivery(headers={"x-attempts": 2}), raised(PoisonError("no such order")), NOW)
    assert dead.mandatory
    assert {name: value for name, value in dead.headers.items() if name != "x-traceback"} == {
        "x-queue": "payment.inbox",
        "x-error-type": "PoisonError",
        "x-error-message": "no such order",
        "x-attempts": 3,
        "x-first-failed-at": "2026-05-01T12:00:00.123Z",
        "x-failed-at": "2026-05-01T12:00:00.123Z",
        "x-routing-key": "payment.refund",
    }
    assert "test_bus_failures.py" in dead.headers["x-traceback"]


def test_a_sender_cannot_forge_our_headers() -> None:
    forged = {"x-queue": "other", "x-error-type": "Nothing", "x-traceback": "", "x-failed-at": "never"}
    dead = dead_letter(delivery(headers=forged), raised(PoisonError("bad")), NOW)
    assert (dead.headers["x-queue"], dead.headers["x-error-type"]) == ("payment.inbox", "PoisonError")


@pytest.mark.parametrize("value", [None, "3", 2.0, True, -1, [], {}])
def test_an_invalid_count_of_attempts_counts_as_zero(value: Any) -> None:
    assert failed_attempts({"x-attempts": value}) == 0
    assert failed_attempts({}) == 0


def hostile_text(rng: random.Random) -> str:
    return rng.choice(["x", "ä", "漢", "\ud800", "\x00", "😀"]) * int(10 ** rng.uniform(0, 4.7))


def hostile_value(rng: random.Random) -> Any:
    text = hostile_text(rng)
    return rng.choice([text, text.encode("utf-8", "replace"), [text, {"a": text}], rng.getrandbits(80), None, 0.1])


@seeded()
def test_a_dead_letter_always_fits_into_a_frame(seed: int) -> None:
    rng = random.Random(seed)
    headers = {hostile_text(rng)[:40]: hostile_value(rng) for _ in range(rng.choice([1, 12, 500]))}
    name, error = hostile_text(rng)[:300], raised(ValueError(hostile_text(rng)))
    dead = dead_letter(delivery(headers=headers, type=name, correlation_id=name, message_id=name), error, NOW)
    assert len(write_headers(dead.headers)) < 120_000
    for text in (dead.type, dead.correlation_id, dead.message_id, dead.routing_key):
        assert len(text.encode("utf-8", "backslashreplace")) <= 255


def test_headers_that_do_not_fit_are_counted_and_small_ones_kept() -> None:
    headers = {"big": "x" * 900, "small": 1, "bigger": "x" * 2000}
    assert fitting(headers, 1200) == {"small": 1, "big": "x" * 900, "x-headers-left-out": 1}
    assert fitting({"a": 1}, 1200) == {"a": 1}
