"""What the clients do over a network that fails: what is sent again, what is not, and what the caller learns."""

import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import httpx
import pytest
import stamina

from ordersaga_client import (
    ConfigurationError,
    ConflictError,
    Item,
    NewOrder,
    NewRefund,
    NoAnswerError,
    NotFoundError,
    ProblemError,
    RateLimitedError,
    Retries,
    UnavailableError,
    UnreadableAnswerError,
    calls,
    errors,
)
from ordersaga_client.connection import failure
from tests.support.both_clients import Kind, call
from tests.support.scripted_server import RESET, LateReset, ScriptedServer, answer, scripted, stream
from tests.unit.test_client_models import ANSWER

NEW = NewOrder(user_id="u1", items=[Item(product_id="p1", quantity=2, price=Decimal("9.99"))])
PLACED = answer(202, ANSWER)
CUT = PLACED[:-20]
BUSY = answer(503, {"detail": "away"}, Retry_After="0")
PROXY = b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 6\r\nConnection: close\r\n\r\n<html>"
both = pytest.mark.parametrize("kind", ["sync", "async"])


@pytest.fixture
def hurried() -> Iterator[None]:
    """No pauses between attempts, of which there are four."""
    with stamina.set_testing(True, attempts=4):
        yield


def at(server: ScriptedServer, **options: Any) -> dict[str, Any]:
    return {"url": server.url, "webhooks_url": server.url, "api_key": "osk_test", **options}


@both
@pytest.mark.usefixtures("hurried")
async def test_an_order_is_sent_again_under_the_same_key_until_it_is_answered(kind: Kind) -> None:
    with scripted([RESET, BUSY, CUT, PLACED]) as server:
        placed = await call(kind, "orders.place", NEW, wait=7, client=at(server))
    assert placed.order_id == "o1"
    assert len(server.requests) == 4
    assert len({(r.headers["idempotency-key"], r.body) for r in server.requests}) == 1
    assert len({r.headers["x-request-id"] for r in server.requests}) == 4
    first = server.requests[0]
    assert first.line == "POST /orders HTTP/1.1"
    assert (first.headers["prefer"], first.headers["authorization"]) == ("wait=7", "Bearer osk_test")
    assert json.loads(first.body)["totalAmount"] == 19.98


@both
async def test_the_wait_of_the_service_does_not_use_up_the_time_for_repeats(kind: Kind) -> None:
    with scripted([LateReset(0.4), PLACED]) as server:
        client = at(server, timeout=0.2, retries=Retries(timeout=0.1))
        await call(kind, "orders.place", NEW, wait=1, client=client)
    assert len(server.requests) == 2


@both
async def test_each_order_has_a_key_of_its_own_unless_one_is_given(kind: Kind) -> None:
    with scripted([PLACED] * 3) as server:
        await call(kind, "orders.place", NEW, client=at(server))
        await call(kind, "orders.place", NEW, client=at(server))
        await call(kind, "orders.place", NEW, idempotency_key="cart-17", client=at(server))
    keys = [request.headers["idempotency-key"] for request in server.requests]
    assert len(set(keys)) == 3
    assert keys[2] == "cart-17"


@both
@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize("failure", [RESET, CUT, BUSY, PROXY])
async def test_what_is_not_repeatable_is_sent_once(kind: Kind, failure: bytes) -> None:
    with scripted([failure, PLACED]) as server:
        with pytest.raises((NoAnswerError, UnavailableError)) as raised:
            await call(kind, "orders.cancel", "o1", client=at(server))
        assert len(server.requests) == 1
    assert getattr(raised.value, "sent", True)


@both
@pytest.mark.usefixtures("hurried")
async def test_a_request_that_was_not_sent_is_tried_again_whatever_it_is(kind: Kind) -> None:
    with scripted([]) as server:
        pass  # and now nothing listens there
    with pytest.raises(NoAnswerError, match="POST /orders/o1/cancel got no answer") as raised:
        await call(kind, "orders.cancel", "o1", client=at(server))
    assert not raised.value.sent
    assert raised.value.request_id


@both
@pytest.mark.usefixtures("hurried")
async def test_a_limit_of_requests_is_waited_for_whatever_the_request_is(kind: Kind) -> None:
    with scripted([answer(429, {"detail": "You may send 600"}, Retry_After="0"), PLACED]) as server:
        await call(kind, "orders.cancel", "o1", "changed my mind", client=at(server))
    assert len(server.requests) == 2
    assert json.loads(server.requests[1].body) == {"reason": "changed my mind"}


@both
async def test_the_time_that_the_service_names_is_waited(kind: Kind) -> None:
    with scripted([answer(503, {"detail": "away"}, Retry_After="1"), PLACED]) as server:
        began = time.monotonic()
        await call(kind, "orders.get", "o1", client=at(server))
    assert time.monotonic() - began >= 1


@both
@pytest.mark.usefixtures("hurried")
async def test_the_last_failure_is_raised(kind: Kind) -> None:
    with scripted([BUSY] * 4) as server, pytest.raises(UnavailableError, match="503 away"):
        await call(kind, "orders.get", "o1", client=at(server))
    assert len(server.requests) == 4


@both
@pytest.mark.parametrize(
    ("status", "error"), [(404, NotFoundError), (409, ConflictError), (429, RateLimitedError), (500, ProblemError)]
)
async def test_what_a_repeat_does_not_change_is_raised_at_once(kind: Kind, status: int, error: type[Exception]) -> None:
    with scripted([answer(status, {"detail": "no"}, X_Request_Id="r1"), PLACED]) as server:
        with pytest.raises(error) as raised:
            await call(kind, "orders.place", NEW, client=at(server))
        assert len(server.requests) == 1
    assert isinstance(raised.value, ProblemError)
    assert raised.value.request_id == "r1"


@both
async def test_an_answer_of_something_else_is_an_error_of_ours(kind: Kind) -> None:
    script = [answer(200, {"hello": "world"})]
    with scripted(script) as server, pytest.raises(UnreadableAnswerError, match="GET /orders/o1"):
        await call(kind, "orders.get", "o1", client=at(server))


@pytest.mark.parametrize("missing", ["orders", "webhooks"])
@both
async def test_a_service_whose_url_is_not_known_is_named(
    kind: Kind, missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("ORDERSAGA_ORDER_URL", "ORDERSAGA_NOTIFICATION_URL"):
        monkeypatch.delenv(variable, raising=False)
    variable = {"orders": "ORDERSAGA_ORDER_URL", "webhooks": "ORDERSAGA_NOTIFICATION_URL"}[missing]
    with pytest.raises(ConfigurationError, match=variable):
        await call(kind, f"{missing}.get", "o1", client={})


@pytest.mark.parametrize("url", ["127.0.0.1:3008", "localhost:3008", "ftp://localhost", "http://", "http://a:b"])
@both
async def test_a_url_that_is_not_one_of_http_is_refused_at_once(kind: Kind, url: str) -> None:
    began = time.monotonic()
    with pytest.raises(ConfigurationError, match=f"^url is '{url}'"):
        await call(kind, "orders.place", NEW, client={"url": url})
    assert time.monotonic() - began < 1


@pytest.mark.parametrize("method", ["get", "follow"])
@both
async def test_an_answer_that_cannot_be_decoded_is_an_error_of_ours(kind: Kind, method: str) -> None:
    for status in (200, 503):
        script = [answer(status, {"a": "b"}, Content_Encoding="gzip"), PLACED]
        with scripted(script) as server:
            with pytest.raises(UnreadableAnswerError, match="GET /orders/o1"):
                await call(kind, f"orders.{method}", "o1", client=at(server))
            assert len(server.requests) == 1


@both
async def test_what_is_not_given_comes_from_the_environment(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    with scripted([PLACED]) as server:
        monkeypatch.setenv("ORDERSAGA_ORDER_URL", f"{server.url}/")
        monkeypatch.setenv("ORDERSAGA_API_KEY", "osk_environment")
        await call(kind, "orders.get", "o1", client={})
    assert server.requests[0].headers["authorization"] == "Bearer osk_environment"
    assert server.requests[0].line == "GET /orders/o1 HTTP/1.1"


@both
async def test_a_function_gives_the_key_of_each_request(kind: Kind) -> None:
    keys = iter(["first", "second"])
    with scripted([answer(503, {}, Retry_After="0"), PLACED]) as server:
        await call(kind, "orders.get", "o1", client=at(server, api_key=lambda: next(keys)))
    assert [request.headers["authorization"] for request in server.requests] == ["Bearer first", "Bearer second"]


@both
async def test_all_pages_are_read(kind: Kind) -> None:
    pages = [
        answer(200, {"items": [{**ANSWER, "orderId": f"o{number}"}], "nextCursor": cursor})
        for number, cursor in enumerate(["a", "b", None])
    ]
    with scripted(pages) as server:
        found = await call(kind, "orders.iterate", status="CONFIRMED", client=at(server))
    assert [each.order_id for each in found] == ["o0", "o1", "o2"]
    assert [request.line.split()[1] for request in server.requests] == [
        "/orders?status=CONFIRMED&limit=100",
        "/orders?status=CONFIRMED&limit=100&cursor=a",
        "/orders?status=CONFIRMED&limit=100&cursor=b",
    ]


@both
@pytest.mark.usefixtures("hurried")
async def test_a_broken_stream_goes_on_after_the_last_event(kind: Kind) -> None:
    def event(number: int, name: str, **data: Any) -> str:
        return f"id: {number}\nevent: {name}\ndata: {json.dumps(data)}\n\n"

    at_time = {"at": "2026-11-21T11:00:00.000Z"}
    script = [
        stream("retry: 10\n", event(1, "order.created", status="PENDING", **at_time)),
        RESET,
        answer(503, {}, Retry_After="0"),
        stream(": still here\n\n"),
        stream(event(2, "order.confirmed", status="CONFIRMED", **at_time)),
        answer(204),
    ]
    with scripted(script) as server:
        events = await call(kind, "orders.follow", "o1", client=at(server))
    assert [(e.event_id, e.event, e.status) for e in events] == [
        ("1", "order.created", "PENDING"),
        ("2", "order.confirmed", "CONFIRMED"),
    ]
    assert [r.headers.get("last-event-id") for r in server.requests] == [None, "1", "1", "1", "1", "2"]


@both
async def test_settled_is_the_last_event(kind: Kind) -> None:
    events = ('id: 7\nevent: refunded\ndata: {"message": "a\u2028b"}\n\n', "id: 8\nevent: settled\ndata: {}\n\n")
    with scripted([stream(*events)]) as server:
        found = await call(kind, "orders.follow", "o1", after="6", client=at(server))
    assert [(e.event, e.message) for e in found] == [("refunded", "a\u2028b"), ("settled", None)]
    assert server.requests[0].headers["last-event-id"] == "6"


@both
async def test_an_order_that_does_not_exist_cannot_be_followed(kind: Kind) -> None:
    script = [answer(404, {"detail": "Order o1 does not exist"})]
    with scripted(script) as server, pytest.raises(NotFoundError, match="does not exist"):
        await call(kind, "orders.follow", "o1", client=at(server))


@both
async def test_webhooks_are_managed(kind: Kind) -> None:
    webhook = {"id": "w1", "url": "https://example.org/hook", "events": ["order.*"], "enabled": True}
    delivery = {"id": "d1", "status": "RESTING", "webhookId": "w1", "type": "order.failed"}
    script = [
        answer(201, {**webhook, "secret": "whsec_c2VjcmV0"}),
        answer(200, {"items": [webhook], "nextCursor": None}),
        answer(200, {**webhook, "enabled": False}),
        answer(200, {"items": [delivery], "nextCursor": None}),
        answer(202, delivery),
        answer(202, {"redelivered": 3}),
        answer(204),
    ]
    with scripted(script) as server:
        client = at(server)
        made = await call(kind, "webhooks.create", webhook["url"], ["order.*"], client=client)
        listed = await call(kind, "webhooks.iterate", client=client)
        changed = await call(kind, "webhooks.update", "w1", enabled=False, client=client)
        deliveries = await call(kind, "webhooks.deliveries", "w1", "FAILED", client=client)
        await call(kind, "webhooks.redeliver", "w1", "d1", client=client)
        again = await call(kind, "webhooks.redeliver_failed", "w1", datetime(2026, 11, 21, tzinfo=UTC), client=client)
        await call(kind, "webhooks.delete", "w1", client=client)
    assert made.secret == "whsec_c2VjcmV0"
    assert "whsec" not in repr(made)
    assert again == 3
    assert (listed[0].secret, changed.enabled, deliveries[0].status) == (None, False, "RESTING")
    assert [request.line.rsplit(" ", 1)[0] for request in server.requests] == [
        "POST /webhooks",
        "GET /webhooks?limit=100",
        "PATCH /webhooks/w1",
        "GET /webhooks/w1/deliveries?status=FAILED&limit=100",
        "POST /webhooks/w1/deliveries/d1/redeliver",
        "POST /webhooks/w1/redeliver",
        "DELETE /webhooks/w1",
    ]
    assert json.loads(server.requests[0].body) == {"url": webhook["url"], "events": ["order.*"]}
    assert json.loads(server.requests[2].body) == {"enabled": False}
    assert json.loads(server.requests[5].body) == {"since": "2026-11-21T00:00:00Z"}


@both
async def test_one_attempt_means_no_repeat(kind: Kind) -> None:
    with scripted([BUSY, PLACED]) as server:
        with pytest.raises(UnavailableError):
            await call(kind, "orders.get", "o1", client=at(server, retries=Retries(attempts=1)))
        assert len(server.requests) == 1


PLACE, CANCEL = calls.place_order(NEW), calls.cancel_order("o1")


@pytest.mark.parametrize(
    ("request_", "error", "decision"),
    [
        (PLACE, NoAnswerError("", sent=True), True),
        (CANCEL, NoAnswerError("", sent=True), False),
        (CANCEL, NoAnswerError("", sent=False), True),
        (PLACE, errors.problem(503, {}, {}), True),
        (PLACE, errors.problem(503, {}, {"retry-after": "3"}), 3.0),
        (PLACE, errors.problem(503, {}, {"retry-after": "31"}), False),
        (CANCEL, errors.problem(503, {}, {"retry-after": "3"}), False),
        (CANCEL, errors.problem(429, {}, {"retry-after": "3"}), 3.0),
        (PLACE, errors.problem(429, {}, {}), False),
        (PLACE, errors.problem(409, {}, {"retry-after": "3"}), False),
        (PLACE, errors.problem(500, {}, {}), False),
        (calls.refund_order("o1", NewRefund(amount=Decimal(1))), NoAnswerError("", sent=True), True),
        (calls.rotate_webhook("w1"), NoAnswerError("", sent=True), False),
        (calls.create_webhook("https://example.org", ["*"]), NoAnswerError("", sent=True), False),
    ],
)
def test_what_is_sent_again(request_: calls.Call[Any], error: Exception, decision: bool | float) -> None:
    decided = Retries(timeout=30).decide(request_)(error)
    assert (decided, type(decided)) == (decision, type(decision))


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (httpx.UnsupportedProtocol(""), ConfigurationError),  # as after a redirect
        (httpx.TooManyRedirects(""), UnreadableAnswerError),
        (httpx.DecodingError(""), UnreadableAnswerError),
        (httpx.ReadTimeout(""), NoAnswerError),
    ],
)
def test_every_error_of_a_request_becomes_one_of_ours(error: httpx.RequestError, expected: type[Exception]) -> None:
    error.request = httpx.Request("GET", "http://localhost/orders/o1", headers={"X-Request-Id": "r1"})
    assert type(failure(error)) is expected
