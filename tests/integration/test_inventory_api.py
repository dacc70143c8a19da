"""The inventory service over HTTP."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from inventory_service.api import create_router
from shared.http import add_routes, create_app
from tests.support.access import ADMIN, key_authenticator
from tests.support.inventory_worker import Gate, Worker, inventory_database, order, refused, reserved


@pytest.fixture
def database_prefix(emptied_prefix: str) -> str:
    return emptied_prefix


@pytest.fixture
async def worker(mongodb_url: str, database_prefix: str) -> AsyncIterator[Worker]:
    async with inventory_database(mongodb_url, database_prefix) as db:
        yield Worker(db)


@pytest.fixture
async def http(worker: Worker) -> AsyncIterator[httpx.AsyncClient]:
    async def nothing_is_down() -> dict[str, str]:
        return {}

    app = create_app("inventory", "", nothing_is_down, authenticator=key_authenticator())
    add_routes(app.router, create_router(worker.stock_items, worker.reservations))
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost", headers=ADMIN) as client:
        yield client


def stock(product_id: str, quantity: int | None, reserved: int) -> dict[str, Any]:
    counts = {"quantity": quantity, "reserved": reserved, "shipped": 0}
    return {"productId": product_id, "name": None, "onSale": True, **counts}


async def test_setting_the_quantity_creates_the_product_as_goods(http: httpx.AsyncClient) -> None:
    created = await http.put("/inventory/p1", json={"quantity": 5})
    assert (created.status_code, created.json()) == (
        201,
        stock("p1", 5, 0),
    )

    again = await http.put("/inventory/p1", json={"quantity": 7})
    assert (again.status_code, again.json()["quantity"]) == (200, 7)
    assert (await http.get("/products/p1")).json()["kind"] == "goods"


async def test_stock_shows_what_is_free_and_what_is_held(http: httpx.AsyncClient, worker: Worker) -> None:
    await http.put("/inventory/p1", json={"quantity": 5})
    await worker.reserve(order("o", {"p1": 2}))

    assert (await http.get("/inventory/p1")).json() == stock("p1", 3, 2)
    restocked = await http.post("/inventory/p1/restock", json={"quantity": 4})
    assert (restocked.status_code, restocked.json()) == (
        200,
        stock("p1", 7, 2),
    )
    for repeated in (None, "true"):
        restocked = await http.post("/inventory/p1/restock", json={"quantity": 4}, headers={"Idempotency-Key": "d-7"})
        assert (restocked.status_code, restocked.json()) == (200, stock("p1", 11, 2))
        assert restocked.headers.get("Idempotent-Replayed") == repeated
    other = await http.post("/inventory/p1/restock", json={"quantity": 5}, headers={"Idempotency-Key": "d-7"})
    assert (other.status_code, other.json()["errors"][0]["field"]) == (422, "Idempotency-Key")
    reset = await http.put("/inventory/p1", json={"quantity": 1})
    assert (reset.status_code, reset.json()) == (200, stock("p1", 1, 2))


async def test_a_product_is_created_shown_and_updated(http: httpx.AsyncClient) -> None:
    body = {"kind": "vps", "name": "Small", "price": 19.99, "package": "103.181.9", "packageId": "17", "ram": 4}

    created = await http.put("/products/v1", json=body)
    assert created.status_code == 201
    assert {key: created.json()[key] for key in body} == body
    assert (await http.get("/products/v1")).json() == created.json()

    again = await http.put("/products/v1", json={"kind": "vps", "package": "103.181.10"})
    assert again.status_code == 200
    assert (again.json()["name"], again.json()["price"]) == (None, None)
    assert (await http.get("/inventory/v1")).json() == stock("v1", None, 0)


async def test_reservations_are_shown_as_they_were_decided(http: httpx.AsyncClient, worker: Worker) -> None:
    await http.put("/inventory/p1", json={"quantity": 1})
    await worker.reserve(order("kept", {"p1": 1}, price=19.99), order("refused", {"p1": 1}))
    await worker.release("early")

    assert (await http.get("/reservations/kept")).json() == {
        "orderId": "kept",
        "status": "RESERVED",
        "items": [{"productId": "p1", "quantity": 1, "price": 19.99}],
        "failureReason": None,
        "slot": None,
        "hold": None,
    }
    refused = (await http.get("/reservations/refused")).json()
    assert (refused["status"], refused["failureReason"]) == ("FAILED", "Insufficient stock for p1: asked 1, free 0")
    assert (await http.get("/reservations/early")).json()["status"] == "RELEASED"


@pytest.mark.parametrize("path", ["/products", "/inventory"])
async def test_lists_come_in_pages(http: httpx.AsyncClient, path: str) -> None:
    for number in range(5):
        await http.put(f"/inventory/p{number}", json={"quantity": number})

    seen: list[str] = []
    cursor: str | None = None
    for _ in range(10):
        page = (await http.get(path, params={"limit": 2} | ({"cursor": cursor} if cursor else {}))).json()
        seen += [item["productId"] for item in page["items"]]
        cursor = page["nextCursor"]
        if cursor is None:
            break

    assert seen == [f"p{number}" for number in range(5)]


@pytest.mark.parametrize(
    "path",
    ["/products/p9", "/inventory/p9", "/reservations/o9", "/products/%24where", "/reservations/%7B%22%24gt%22%3A1%7D"],
)
async def test_what_is_unknown_is_not_found(http: httpx.AsyncClient, path: str) -> None:
    answer = await http.get(path)

    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("product_id", ["slot:abc", "slot:1893456000", "slot:", "%2E", "%2E%2E"])
async def test_ids_of_slots_and_ids_without_a_url_are_not_products(http: httpx.AsyncClient, product_id: str) -> None:
    answers = [
        await http.put(f"/inventory/{product_id}", json={"quantity": 1}),
        await http.post(f"/inventory/{product_id}/restock", json={"quantity": 1}),
        await http.put(f"/products/{product_id}", json={"kind": "goods"}),
        await http.get(f"/products/{product_id}"),
    ]

    for answer in answers:
        assert answer.status_code == 422, answer.text
        assert answer.json()["errors"][0]["field"] == "productId"
        assert ("delivery slots" if product_id.startswith("slot:") else "slash") in answer.json()["detail"]
    assert (await http.get("/products")).json()["items"] == []


async def test_a_package_without_a_url_is_refused(http: httpx.AsyncClient) -> None:
    answer = await http.put("/products/v1", json={"kind": "vps", "package": "a/b"})

    assert answer.json()["errors"][0]["field"] == "package"


async def test_restocking_an_unknown_product_is_not_found(http: httpx.AsyncClient) -> None:
    assert (await http.post("/inventory/p9/restock", json={"quantity": 1})).status_code == 404


async def test_servers_have_no_quantity_and_kinds_do_not_change(http: httpx.AsyncClient) -> None:
    await http.put("/products/v1", json={"kind": "vps", "package": "basic"})
    await http.put("/inventory/p1", json={"quantity": 5})

    refusals = [
        await http.put("/inventory/v1", json={"quantity": 5}),
        await http.post("/inventory/v1/restock", json={"quantity": 5}),
        await http.put("/products/v1", json={"kind": "goods"}),
        await http.put("/products/p1", json={"kind": "vps", "package": "basic"}),
    ]

    assert [answer.status_code for answer in refusals] == [409] * 4
    assert (await http.get("/inventory/p1")).json()["quantity"] == 5


async def test_restocking_beyond_the_limit_is_a_conflict(http: httpx.AsyncClient) -> None:
    await http.put("/inventory/p1", json={"quantity": 10**12})

    answer = await http.post("/inventory/p1/restock", json={"quantity": 1})

    assert answer.status_code == 409
    assert (await http.get("/inventory/p1")).json()["quantity"] == 10**12


INVALID: list[tuple[str, str, Any, str]] = [
    ("PUT", "/inventory/p", {}, "quantity"),
    ("PUT", "/inventory/p", {"quantity": -1}, "quantity"),
    ("PUT", "/inventory/p", {"quantity": 1.5}, "quantity"),
    ("PUT", "/inventory/p", {"quantity": True}, "quantity"),
    ("PUT", "/inventory/p", {"quantity": "5"}, "quantity"),
    ("PUT", "/inventory/p", {"quantity": {"$gt": ""}}, "quantity"),
    ("PUT", "/inventory/p", {"quantity": 10**12 + 1}, "quantity"),
    ("PUT", "/inventory/p", {"quantity": 10**30}, "quantity"),
    ("PUT", "/inventory/p", {"quantity": 1, "supplied": 5}, "supplied"),
    ("PUT", "/inventory/p", [], "body"),
    ("PUT", "/inventory/p", None, "body"),
    ("POST", "/inventory/p/restock", {"quantity": 0}, "quantity"),
    ("PUT", "/inventory/" + "x" * 129, {"quantity": 1}, "productId"),
    ("PUT", "/inventory/a%00b", {"quantity": 1}, "productId"),
    ("PUT", "/inventory/a%0A", {"quantity": 1}, "productId"),
    ("PUT", "/products/p", {}, "kind"),
    ("PUT", "/products/p", {"kind": "boat"}, "kind"),
    ("PUT", "/products/p", {"kind": ["goods"]}, "kind"),
    ("PUT", "/products/p", {"kind": "goods", "price": -1}, "price"),
    ("PUT", "/products/p", {"kind": "goods", "price": 1.999}, "price"),
    ("PUT", "/products/p", {"kind": "goods", "price": 1e300}, "price"),
    ("PUT", "/products/p", {"kind": "goods", "name": {"$ne": 1}}, "name"),
    ("PUT", "/products/p", {"kind": "goods", "ram": 4}, "ram"),
    ("PUT", "/products/p", {"kind": "vps"}, "package"),
    ("PUT", "/products/p", {"kind": "vps", "package": "x", "ram": 0}, "ram"),
    ("PUT", "/products/p", {"kind": "vps", "package": ""}, "package"),
    ("GET", "/products?limit=0", None, "limit"),
    ("GET", "/inventory?limit=101", None, "limit"),
    ("GET", "/inventory?cursor=nonsense", None, "cursor"),
    ("GET", "/inventory?cursor=W3siJGd0IjoiIn1d", None, "cursor"),
    ("GET", "/products/" + "x" * 129, None, "productId"),
    ("GET", "/reservations/" + "x" * 201, None, "orderId"),
]


@pytest.mark.parametrize(("method", "path", "body", "field"), INVALID)
async def test_what_is_invalid_says_which_field(
    http: httpx.AsyncClient, method: str, path: str, body: Any, field: str
) -> None:
    answer = await http.request(method, path, **({"json": body} if method != "GET" else {}))

    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    assert field in [error["field"] for error in answer.json()["errors"]]
    assert (await http.get("/products")).json()["items"] == []


@pytest.mark.parametrize(
    "body",
    [b"{", b"\xff\xfe", b'{"quantity": NaN}', b'{"quantity": 1', b"[" * 100_000, '{"quantity": 1}'.encode("utf-16")],
)
async def test_what_is_not_json_is_a_client_error(http: httpx.AsyncClient, body: bytes) -> None:
    answer = await http.put("/inventory/p", content=body, headers={"content-type": "application/json"})

    assert answer.status_code == 400
    assert answer.headers["content-type"] == "application/problem+json"
    headers = {"content-type": "application/json"}
    too_much = await http.put("/inventory/p", content=b'{"quantity": 1e999}', headers=headers)
    assert too_much.status_code == 422


async def test_names_are_stored_as_they_are_given(http: httpx.AsyncClient) -> None:
    name = "$quantity"  # the value of another field if MongoDB read it as an expression

    answer = await http.put("/products/%24p.1", json={"kind": "goods", "name": name})

    assert (answer.status_code, answer.json()["name"], answer.json()["productId"]) == (201, name, "$p.1")
    assert (await http.put("/inventory/%24p.1", json={"quantity": 3})).json()["quantity"] == 3
    assert (await http.get("/products/%24p.1")).json()["name"] == name


async def test_the_description_of_the_api_names_every_answer(http: httpx.AsyncClient) -> None:
    described = (await http.get("/openapi.json")).json()

    assert {"ProductView", "StockView", "StockPage", "ReservationView"} <= described["components"]["schemas"].keys()
    assert {"/products/{product_id}", "/inventory/{product_id}/restock", "/reservations/{order_id}"} <= set(
        described["paths"]
    )


# --- Off sale. ---


async def test_a_product_off_sale_is_refused_to_new_orders_and_orders_in_flight_go_on(
    http: httpx.AsyncClient, worker: Worker
) -> None:
    await http.put("/products/p1", json={"kind": "goods", "name": "Pizza"})
    await http.put("/inventory/p1", json={"quantity": 5})
    await worker.reserve(order("before", {"p1": 2}))
    off = await http.patch("/products/p1", json={"onSale": False, "reason": "recalled"})
    assert (off.status_code, off.json()["onSale"], off.json()["offSaleReason"]) == (200, False, "recalled")
    (shown,) = (await http.get("/inventory")).json()["items"]
    assert (shown["name"], shown["onSale"]) == ("Pizza", False)

    assert refused(await worker.reserve(order("after", {"p1": 1}))) == {"after": "Product p1 is not on sale"}
    assert reserved(await worker.reserve(order("before", {"p1": 2}))) == {"before"}
    await worker.ship("before")
    await http.put("/products/p1", json={"kind": "goods", "name": "Pizza Margherita"})
    assert (await http.get("/products/p1")).json()["onSale"] is False

    on = (await http.patch("/products/p1", json={"onSale": True})).json()
    assert (on["onSale"], on["offSaleReason"]) == (True, None)
    assert reserved(await worker.reserve(order("again", {"p1": 1}))) == {"again"}
    for body in ({"onSale": True, "reason": "x"}, {}, {"onSale": "no"}):
        assert (await http.patch("/products/p1", json=body)).status_code == 422
    assert (await http.patch("/products/unknown", json={"onSale": False})).status_code == 404


async def test_an_order_that_is_being_decided_sees_that_its_product_has_gone_off_sale(
    http: httpx.AsyncClient, worker: Worker
) -> None:
    await http.put("/inventory/p1", json={"quantity": 5})
    gate = Gate(worker.stock_items, "write")
    deciding = asyncio.create_task(worker.reserve(order("o", {"p1": 1})))
    await gate.reached()
    await http.patch("/products/p1", json={"onSale": False})
    gate.open()
    assert refused(await deciding) == {"o": "Product p1 is not on sale"}
    assert (await http.get("/inventory/p1")).json()["quantity"] == 5
