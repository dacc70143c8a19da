"""The order service over HTTP: accepted requests, refused ones, and their answers. One process, real servers."""

import asyncio
import json
import time
from base64 import b64encode
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import pytest

from order_service.rpc.generated.orders_pb2 import OrderStatus
from order_service.rpc.messages import order_message
from order_service.saga import SAGA_VERSION
from order_service.views import show
from shared.access.permissions import Role
from shared.cursors import write_cursor
from shared.release import VERSION
from tests.support.access import KEYS, bearer
from tests.support.builders import connected, order_body
from tests.support.eventually import eventually
from tests.support.processes import Stack, run_stack
from tests.support.servers import delete_topology


@pytest.fixture
def database_prefix(emptied_prefix: str) -> str:
    return emptied_prefix


@pytest.fixture(scope="module")
async def stack(servers: Any) -> AsyncIterator[Stack]:
    settings: dict[str, Any] = {"saga_timeout_seconds": 60, "approval_amount": "1000.50"}
    async with run_stack(servers.mongodb_url, servers.amqp_url, "t-order-api", **settings) as running:
        await running.start("order")
        yield running
    # No other service was running: those that start here later must not find the messages about these orders.
    await delete_topology(servers.amqp_url)


async def post(stack: Stack, body: Any, **headers: str) -> Any:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return await stack.client.post(
        f"{stack.url('order')}/orders", content=content, headers={"content-type": "application/json", **headers}
    )


def assert_problem(response: Any, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = response.json()
    assert problem["status"] == status
    assert problem["type"]
    assert problem["title"]
    assert problem["detail"]
    return problem


async def test_an_order_is_accepted_and_found_again(stack: Stack) -> None:
    body = {
        "userId": "u7",
        "items": [
            {"productId": "p1", "quantity": 2, "price": 19.99},
            {"productId": "p2", "quantity": 1, "price": 0.02},
        ],
        "totalAmount": 40,
        "currency": "EUR",
        "payment": {"method": "card", "token": "tok_ok"},
        "delivery": {"slot": "auto"},
    }
    response = await post(stack, body)
    assert response.status_code == 202
    placed = response.json()
    assert response.headers["location"] == f"/orders/{placed['orderId']}"
    found = await stack.order(placed["orderId"])
    assert found == placed
    assert found["items"] == body["items"]
    assert found["totalAmount"] == 40
    assert found["status"] == found["stockStatus"] == found["paymentStatus"] == "PENDING"
    assert found["settled"] is False
    assert [(entry["event"], entry["status"]) for entry in found["history"]] == [("order.created", "PENDING")]
    assert "tok_ok" not in response.text


async def test_the_singular_path_places_orders_too(stack: Stack) -> None:
    response = await stack.client.post(f"{stack.url('order')}/order", json=order_body())
    assert response.status_code == 202


async def test_lists_are_filtered_and_sorted(stack: Stack) -> None:
    user = f"lists-{time.monotonic_ns()}"
    placed = [(await post(stack, order_body(userId=user))).json() for _ in range(3)]
    ids = [order["orderId"] for order in placed]
    assert (await stack.client.post(f"{stack.url('order')}/orders/{ids[1]}/cancel")).status_code == 202

    async def listed(**parameters: Any) -> list[str]:
        answer = await stack.client.get(f"{stack.url('order')}/orders", params={"userId": user, **parameters})
        assert answer.status_code == 200, answer.text
        return [order["orderId"] for order in answer.json()["items"]]

    times = [order["createdAt"] for order in placed]
    assert times == sorted(times)
    both = await listed(status=["PENDING", "CANCELLED"], sort="createdAt")
    assert (sorted(both), both[::-1]) == (sorted(ids), await listed(sort="-createdAt"))
    assert await listed(status=["CANCELLED", "FAILED"]) == [ids[1]]
    assert await listed(failureReason="Cancelled by the client") == [ids[1]]
    assert await listed(failureReason="Cancelled by the client", orderNumber=placed[0]["orderNumber"]) == []
    assert await listed(createdTo=times[0]) == []
    assert ids[2] in await listed(createdFrom=times[2])
    assert sorted(await listed(createdFrom=times[0], createdTo="9999-12-31T23:59:59Z")) == sorted(ids)


@pytest.mark.parametrize(
    ("parameter", "value"),
    [
        ("status", "LOST"),
        ("sort", "updatedAt"),
        ("createdFrom", "yesterday"),
        ("createdFrom", "2026-01-31T09:30:00"),
        ("createdFrom", "2026"),
        ("createdTo", "1700000000.5"),
        ("createdTo", "0001-01-01T00:00:00+14:00"),
        ("failureReason", "a" * 1001),
    ],
)
async def test_a_list_refuses_filters_that_make_no_sense(stack: Stack, parameter: str, value: str) -> None:
    answer = await stack.client.get(f"{stack.url('order')}/orders", params={parameter: value})
    assert assert_problem(answer, 422)["errors"][0]["field"].startswith(parameter)


@pytest.mark.parametrize("kind", ["application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "text/plain"])
@pytest.mark.parametrize("path", ["/orders", "/orders/o1/cancel", "/orders/o1/deliver", "/orders/o1/retry"])
async def test_a_form_is_no_request(stack: Stack, path: str, kind: str) -> None:
    answer = await stack.client.post(
        f"{stack.url('order')}{path}", content=b"userId=u1", headers={"Content-Type": kind}
    )
    assert "application/json" in assert_problem(answer, 415)["detail"]
    assert answer.headers["accept"] == "application/json"


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PUT", "/orders", "GET, HEAD, POST"),
        ("GET", "/order", "POST"),
        ("DELETE", "/orders/o1", "GET, HEAD"),
        ("GET", "/orders/o1/cancel", "POST"),
        ("OPTIONS", "/orders", "GET, HEAD, POST"),
        ("DELETE", "/orders/o1/refunds", "GET, HEAD, POST"),
        ("POST", "/orders/failures", "GET, HEAD"),
        ("POST", "/readyz", "GET, HEAD"),
    ],
)
async def test_a_method_that_is_not_allowed_names_all_that_are(
    stack: Stack, method: str, path: str, allowed: str
) -> None:
    answer = await stack.client.request(method, f"{stack.url('order')}{path}")
    assert_problem(answer, 405)
    assert answer.headers["allow"] == allowed


@pytest.mark.parametrize(
    ("price", "caller", "acts_for", "status"),
    [
        (1000.50, Role.OPERATOR, None, 403),
        (1000.50, Role.OPERATOR, "anna;operator", 403),
        (1000.50, Role.ADMIN, None, 403),
        (1000.50, Role.ADMIN, "anna;viewer", 403),
        (1000.50, Role.ADMIN, "anna;operator", 202),
        (1000.50, Role.CLIENT, None, 202),
        (1000.49, Role.OPERATOR, None, 202),
    ],
)
async def test_staff_cancels_a_large_order_only_through_the_console(
    stack: Stack, price: float, caller: Role, acts_for: str | None, status: int
) -> None:
    body = order_body(items=[LINE | {"price": price}], totalAmount=price)
    orders = f"{stack.url('order')}/orders"
    order_id = (await stack.client.post(orders, json=body, headers=bearer(KEYS[Role.CLIENT]))).json()["orderId"]
    headers = bearer(KEYS[caller]) | ({"Ordersaga-Acts-For": acts_for} if acts_for else {})
    answer = await stack.client.post(f"{orders}/{order_id}/cancel", headers=headers)
    assert answer.status_code == status, answer.text
    assert (await stack.order(order_id))["status"] == ("CANCELLED" if status == 202 else "PENDING")
    if "viewer" not in (acts_for or "") and status == 403:
        assert "where a second person approves" in assert_problem(answer, 403)["detail"]


LINE = {"productId": "p1", "quantity": 1, "price": 10}
REFUSED: list[tuple[str, dict[str, Any], str, str]] = [
    ("no items", {"items": []}, "items", "at least 1 entry"),
    ("quantity zero", {"items": [{**LINE, "quantity": 0}]}, "items[0].quantity", "must be at least 1"),
    ("quantity negative", {"items": [{**LINE, "quantity": -1}]}, "items[0].quantity", "must be at least 1"),
    ("quantity a fraction", {"items": [{**LINE, "quantity": 1.5}]}, "items[0].quantity", "must be a whole number"),
    ("quantity a text", {"items": [{**LINE, "quantity": "1"}]}, "items[0].quantity", "must be a whole number"),
    ("quantity true", {"items": [{**LINE, "quantity": True}]}, "items[0].quantity", "must be a whole number"),
    ("quantity huge", {"items": [{**LINE, "quantity": 10**30}]}, "items[0].quantity", "must be at most 1000000"),
    ("negative price", {"items": [{**LINE, "price": -1}], "totalAmount": -1}, "items[0].price", "must be at least 0"),
    ("three decimals", {"items": [{**LINE, "price": 9.999}]}, "items[0].price", "at most two decimals"),
    ("price a text", {"items": [{**LINE, "price": "10"}]}, "items[0].price", "must be a number"),
    ("price huge", {"items": [{**LINE, "price": 1e300}]}, "items[0].price", "at most 1000000000000"),
    ("a product twice", {"items": [LINE, LINE], "totalAmount": 20}, "items", "product p1 is listed twice"),
    ("a wrong sum", {"totalAmount": 11}, "totalAmount", "is 11, but the items add up to 10"),
    ("a slot as product", {"items": [{**LINE, "productId": "slot:abc"}]}, "items[0].productId", "delivery slots"),
    ("a product with a slash", {"items": [{**LINE, "productId": "a/b"}]}, "items[0].productId", "a slash"),
    ("a product called ..", {"items": [{**LINE, "productId": ".."}]}, "items[0].productId", "a slash"),
    ("unknown field", {"coupon": "x"}, "coupon", "not a known field"),
    ("101 items", {"items": [{**LINE, "productId": f"p{n}"} for n in range(101)]}, "items", "at most 100 entries"),
    ("an operator as user", {"userId": {"$gt": ""}}, "userId", "must be a string"),
    (
        "an operator as product",
        {"items": [{**LINE, "productId": {"$ne": None}}]},
        "items[0].productId",
        "must be a string",
    ),
    ("an empty user", {"userId": ""}, "userId", "1 to 128 characters, and no control characters"),
    ("control characters", {"userId": "a\x00b"}, "userId", "1 to 128 characters, and no control characters"),
    ("a lower-case currency", {"currency": "usd"}, "currency", "code of a currency in capitals, such as USD"),
    (
        "half a yen",
        {"items": [{**LINE, "price": 10.5}], "totalAmount": 10.5, "currency": "JPY"},
        "currency",
        "JPY has no decimals, but items[0].price is 10.5",
    ),
    ("an unknown method", {"payment": {"method": "cash"}}, "payment.method", "'card' or 'retainer'"),
    (
        "a retainer without id",
        {"payment": {"method": "retainer"}},
        "payment.retainerId",
        "is required when method is retainer",
    ),
    ("an impossible slot", {"delivery": {"slot": "tomorrow"}}, "delivery.slot", "must be auto, or the id of a slot"),
]


@pytest.mark.parametrize(("changes", "field", "message"), [case[1:] for case in REFUSED], ids=[c[0] for c in REFUSED])
async def test_what_is_wrong_is_named(stack: Stack, changes: dict[str, Any], field: str, message: str) -> None:
    problem = assert_problem(await post(stack, order_body(**changes)), 422)
    assert any(e["field"] == field and message in e["message"] for e in problem["errors"]), problem["errors"]


@pytest.mark.parametrize("missing", ["userId", "items", "totalAmount"])
async def test_a_missing_field_is_named(stack: Stack, missing: str) -> None:
    body = order_body()
    del body[missing]
    problem = assert_problem(await post(stack, body), 422)
    assert {"field": missing, "message": "is required"} in problem["errors"]


HOSTILE: dict[str, tuple[bytes, int]] = {
    "not JSON": (b"{", 400),
    "not text": (b"\xff\xfe\x00", 400),
    "UTF-16": (json.dumps(order_body()).encode("utf-16"), 400),
    "deep nesting": (b"[" * 100_000, 400),
    "deep objects": (b'{"a":' * 50_000 + b"1" + b"}" * 50_000, 413),
    "a number of 100,000 digits": (b'{"userId":"u","items":[],"totalAmount":' + b"1" * 100_000 + b"}", 400),
    "NaN": (b'{"userId":"u","items":[{"productId":"p","quantity":1,"price":NaN}],"totalAmount":1}', 400),
    "infinity": (b'{"userId":"u","items":[{"productId":"p","quantity":1,"price":Infinity}],"totalAmount":1}', 400),
    "an array": (b"[]", 422),
    "null": (b"null", 422),
    "nothing": (b"", 422),
    "a lone surrogate": (b'{"userId":"\\ud800","items":[],"totalAmount":0}', 400),
    "too large": (b'{"userId":"' + b"x" * 300_000 + b'"}', 413),
}


@pytest.mark.parametrize("name", HOSTILE)
async def test_hostile_bodies_are_refused_with_a_reason(stack: Stack, name: str) -> None:
    body, status = HOSTILE[name]
    assert_problem(await post(stack, body), status)


async def test_a_body_without_declared_length_is_limited_too(stack: Stack) -> None:
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(60):
            yield b"x" * 10_000

    response = await stack.client.post(
        f"{stack.url('order')}/orders", content=endless(), headers={"content-type": "application/json"}
    )
    assert_problem(response, 413)


async def test_unknown_orders_and_paths_are_not_found(stack: Stack) -> None:
    url = stack.url("order")
    for path in ("/orders/nobody", "/orders/%24gt", "/orders/nobody/events", "/nowhere"):
        assert_problem(await stack.client.get(url + path), 404)
    for verb in ("cancel", "retry", "refund"):
        assert_problem(await stack.client.post(f"{url}/orders/nobody/{verb}"), 404)
    assert_problem(await stack.client.delete(f"{url}/orders"), 405)


async def test_twenty_same_posts_with_one_key_are_one_order(stack: Stack, unique_id: str) -> None:
    key = {"Idempotency-Key": unique_id}
    responses = await asyncio.gather(*(post(stack, order_body(userId=unique_id), **key) for _ in range(20)))
    assert {response.status_code for response in responses} == {202}
    assert len({response.json()["orderId"] for response in responses}) == 1
    listed = (await stack.client.get(f"{stack.url('order')}/orders", params={"userId": unique_id})).json()
    assert len(listed["items"]) == 1
    later = await post(stack, order_body(userId=unique_id), **key)
    assert later.json()["orderId"] == responses[0].json()["orderId"]


async def test_a_key_with_another_body_is_refused(stack: Stack, unique_id: str) -> None:
    first = await post(stack, order_body(), **{"Idempotency-Key": unique_id})
    assert first.status_code == 202
    problem = assert_problem(await post(stack, order_body(userId="u2"), **{"Idempotency-Key": unique_id}), 422)
    assert "another body" in problem["detail"]
    assert_problem(await post(stack, order_body(), **{"Idempotency-Key": "k" * 256}), 422)


async def test_orders_are_listed_in_pages(stack: Stack, unique_id: str) -> None:
    placed = [await stack.place(userId=unique_id) for _ in range(7)]
    url, seen, cursor = f"{stack.url('order')}/orders", [], None
    while True:
        parameters: dict[str, Any] = {"userId": unique_id, "limit": 3, **({"cursor": cursor} if cursor else {})}
        page = (await stack.client.get(url, params=parameters)).json()
        seen += [order["orderId"] for order in page["items"]]
        cursor = page["nextCursor"]
        if cursor is None:
            break
    assert sorted(seen) == sorted(placed)
    assert_problem(await stack.client.get(url, params={"cursor": "nonsense"}), 422)
    assert_problem(await stack.client.get(url, params={"cursor": "WzEsMl0"}), 422)
    assert_problem(
        await stack.client.get(url, params={"cursor": b64encode(b"[1" + b"0" * 30 + b',"x"]').decode()}), 422
    )
    assert_problem(await stack.client.get(url, params={"cursor": write_cursor([10**18, "x"])}), 422)
    assert_problem(await stack.client.get(url, params={"limit": 0}), 422)
    for path in ("/orders", "/orders/failures"):
        problem = assert_problem(await stack.client.get(stack.url("order") + path, params={"limit": 101}), 422)
        assert "limit: must be at most 100" in problem["detail"]
    assert_problem(await stack.client.get(url, params={"include": "history"}), 422)
    assert_problem(await stack.client.get(url, params={"status": "LOST"}), 422)


@pytest.mark.parametrize("sort", ["-createdAt", "createdAt"])
async def test_a_list_stays_whole_while_orders_are_placed(stack: Stack, unique_id: str, sort: str) -> None:
    placed = [await stack.place(userId=unique_id) for _ in range(7)]
    later: list[str] = []
    asked: dict[str, Any] = {"userId": unique_id, "limit": 3, "sort": sort}
    seen: list[str] = []
    for number in range(3):  # as many pages as the first orders need
        page = (await stack.client.get(f"{stack.url('order')}/orders", params=asked)).json()
        seen += [order["orderId"] for order in page["items"]]
        asked["cursor"] = page["nextCursor"]
        if number < 2:
            later.append(await stack.place(userId=unique_id))
    if sort == "createdAt":
        assert seen == [*placed, *later]
    else:
        assert seen == placed[::-1], "what is placed meanwhile comes before the first page"


async def test_a_list_has_no_histories_and_items_only_if_asked_for(stack: Stack, unique_id: str) -> None:
    order = await stack.order(await stack.place(userId=unique_id))
    url = f"{stack.url('order')}/orders"
    (listed,) = (await stack.client.get(url, params={"userId": unique_id})).json()["items"]
    assert listed == {name: value for name, value in order.items() if name not in ("items", "history")}
    (whole,) = (await stack.client.get(url, params={"userId": unique_id, "include": "items"})).json()["items"]
    assert whole == listed | {"items": order["items"]}


async def test_cancelling_is_answered_with_the_cancelled_order(stack: Stack) -> None:
    order_id = await stack.place()
    url = f"{stack.url('order')}/orders/{order_id}"
    response = await stack.client.post(f"{url}/cancel", json={"reason": "changed my mind"})
    assert response.status_code == 202
    order = response.json()
    assert (order["status"], order["failureReason"]) == ("CANCELLED", "changed my mind")
    assert order["cancelledAt"]
    assert order["settled"] is False
    problem = assert_problem(await stack.client.post(f"{url}/retry"), 409)
    assert "CANCELLED" in problem["detail"]
    for verb in ("cancel", "refund"):
        again = await stack.client.post(f"{url}/{verb}")
        assert (again.status_code, again.json()) == (202, order), "it only sends again what is not answered yet"
    failures = (await stack.client.get(f"{stack.url('order')}/orders/failures")).json()
    assert any(row["reason"] == "changed my mind" and row["count"] >= 1 for row in failures["items"])
    assert_problem(await stack.client.post(f"{url}/cancel", json={"reason": 7}), 422)


async def test_a_request_about_an_order_of_a_newer_saga_is_for_a_newer_process(stack: Stack) -> None:
    order_id = await stack.place()
    async with connected(stack.mongodb_url, f"{stack.database_prefix}_orders") as database:
        document = await database["orders"].find_one_and_update({"_id": order_id}, {"$inc": {"sagaVersion": 1}})
    assert document is not None
    assert document["sagaVersion"] == SAGA_VERSION
    response = await stack.client.post(f"{stack.url('order')}/orders/{order_id}/cancel")
    problem = assert_problem(response, 503)
    assert problem["detail"] == (
        f"order {order_id} began under version {SAGA_VERSION + 1} of the saga, this process knows {SAGA_VERSION}; "
        "try again"
    )
    assert response.headers["retry-after"] == "1"
    assert (await stack.order(order_id))["status"] == "PENDING"


async def test_an_order_in_a_status_that_only_a_newer_release_knows_is_shown(stack: Stack) -> None:
    order_id = await stack.place()
    async with connected(stack.mongodb_url, f"{stack.database_prefix}_orders") as database:
        newer = {"$set": {"sagaVersion": SAGA_VERSION + 1, "status": "PACKED"}, "$unset": {"stockStatus": ""}}
        await database["orders"].update_one({"_id": order_id}, newer, bypass_document_validation=True)
        document = await database["orders"].find_one({"_id": order_id})
    shown = await stack.order(order_id)
    assert (shown["status"], shown["stockStatus"]) == ("PACKED", None)
    assert document is not None
    assert order_message(show(document, personal=True)).status == OrderStatus.ORDER_STATUS_UNSPECIFIED


async def test_health_readiness_metrics_and_description(stack: Stack) -> None:
    url = stack.url("order")
    alive = (await stack.client.get(f"{url}/healthz")).json()
    assert datetime.fromisoformat(alive.pop("startedAt")) < datetime.now(UTC)
    assert alive == {"status": "ok", "version": VERSION}

    async def ready() -> Any:
        return (await stack.client.get(f"{url}/readyz")).json() == {"status": "ready"}

    await eventually(ready, 60, "the service to be ready")  # it is not while MongoDB takes two seconds to answer
    metrics = (await stack.client.get(f"{url}/metrics")).text
    assert 'http_requests_total{method="GET",route="/healthz",status="200"}' in metrics
    assert f'ordersaga_build_info{{version="{VERSION}"}} 1.0' in metrics
    assert "/orders/{order_id}" in (await stack.client.get(f"{url}/openapi.json")).json()["paths"]
    assert (await stack.client.get(f"{url}/docs")).status_code == 200
