"""The console's pages over real servers and records: their content, what they refuse, and outages."""

import asyncio
import re
import time
import uuid
from collections import defaultdict
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import httpx
import orjson
import pytest
from fastapi import FastAPI, Response

from operations.actions import list_actions, record_action
from operations.audit import runner
from operations.audit.report import Report
from operations.audit.runs import INTERRUPTED
from operations.console import ConsoleDependencies, outages
from operations.console.audit import Auditor
from operations.console.outages import Check
from operations.console.overview import DeadLetterCache
from operations.console.upstream import Health
from operations.dead_letters.filters import Filters
from operations.dead_letters.records import LetterRecords
from operations.dead_letters.service import DeadLetterService
from operations.impact.ranking import RankedPage
from operations.impact.reading import ImpactReader
from order_service.order_number import order_number
from order_service.orders import NewRecord, Orders
from shared.access.middleware import API_BESIDE_PAGES
from shared.access.permissions import Role
from shared.clock import utc_now
from shared.database import Document
from tests.support.access import KEYS, bearer
from tests.support.builders import an_order as an_order_of_the_saga
from tests.support.consoles import (
    BY_ADMIN,
    NO_SERVICES,
    a_letter,
    act_on_group,
    an_app,
    console_dependencies,
    hidden,
    pages_of,
    record_letters,
    serve,
)
from tests.support.eventually import eventually
from tests.support.routes import routes_of
from tests.support.world import World, populate

HOSTILE = '<script>alert("1")</script>'
ESCAPED = "&lt;script&gt;alert(&#34;1&#34;)&lt;/script&gt;"
REASON = {"why": "because"}
SECTIONS = ("/", "/orders", "/inventory", "/packages", "/webhooks", "/audit", "/incidents", "/dead-letters", "/actions")
PAGES = (
    *SECTIONS,
    "/slots",
    "/jobs",
    "/notifications",
    "/dead-letters/list",
    "/dead-letters/replays",
    "/locks?package=p",
    "/overview",
)


@pytest.fixture
def database_prefix(emptied_prefix: str) -> str:
    return emptied_prefix


@pytest.fixture
async def dependencies(mongodb_url: str, amqp_url: str, database_prefix: str) -> AsyncIterator[ConsoleDependencies]:
    async with console_dependencies(mongodb_url, amqp_url, database_prefix) as found:
        yield found


@pytest.fixture
async def pages(dependencies: ConsoleDependencies) -> AsyncIterator[httpx.AsyncClient]:
    async with pages_of(dependencies) as client:
        yield client


async def text_of(pages: httpx.AsyncClient, path: str, status: int = 200) -> str:
    response = await pages.get(path)
    assert response.status_code == status, (path, response.text)
    return response.text


def an_order(order_id: str, **changes: Any) -> Document:
    at = utc_now()
    order = {
        "_id": order_id,
        "userId": "u1",
        "items": [{"productId": "p1", "quantity": 1, "price": 1000}],
        "totalAmount": 1000,
        "currency": "USD",
        "status": "PENDING",
        "stockStatus": "PENDING",
        "paymentStatus": "PENDING",
        "settled": False,
        "createdAt": at,
        "updatedAt": at,
        "deadline": at + timedelta(minutes=5),
        "history": [{"at": at, "event": "order.created", "status": "PENDING"}],
    }
    return order | changes


# --- Content. ---


async def test_every_page_of_every_order_of_the_world(
    dependencies: ConsoleDependencies, pages: httpx.AsyncClient
) -> None:
    world = World(dependencies.client, dependencies.prefix, dependencies.mongodb_url, dependencies.amqp_url)
    populate(world)
    statuses = {order["_id"]: order["status"] for order in world.records["orders"]}
    await world.store()
    for path in PAGES:
        await text_of(pages, path)
    for order_id, status in statuses.items():
        assert f">{status}</span>" in await text_of(pages, f"/orders/{order_id}")
        await text_of(pages, f"/orders/{order_id}/timeline")


async def test_an_empty_stack_is_not_an_error(pages: httpx.AsyncClient) -> None:
    for path in PAGES:
        await text_of(pages, path)
    assert "No open dead letters" in await text_of(pages, "/")
    for path in ("/orders/none", "/orders/none/do/cancel", "/orders/none/do/eat", "/static/none", "/nothing/here"):
        response = await pages.get(path)
        assert response.status_code == 404, path
    for path in ("letters/none", "groups/none", "replays/none", "letters/none/body", "letters/none/edit"):
        await text_of(pages, f"/dead-letters/{path}", 404)


async def test_an_order_shows_its_timeline_and_its_open_steps(
    dependencies: ConsoleDependencies, pages: httpx.AsyncClient
) -> None:
    at = utc_now() - timedelta(minutes=2)
    history = [
        {"at": at, "event": "order.created", "status": "PENDING"},
        {"at": at + timedelta(milliseconds=31), "event": "payment.processed", "status": "PENDING"},
    ]
    await dependencies.orders.insert_one(an_order("o1", createdAt=at, history=history, paymentStatus="PROCESSED"))
    await record_letters(dependencies, a_letter("o1", "no price", ago=timedelta(minutes=1)))
    text = await text_of(pages, "/orders/o1")
    assert "Waiting for" in text
    assert "stock: Reserving" in text
    assert "order.created dead-lettered" in text
    letter = (await DeadLetterService(dependencies.operations).page(Filters(order_id="o1"))).items[0]["_id"]
    assert f'href="/dead-letters/letters/{letter}"' in text
    assert "31 ms" in text
    assert 'hx-get="/orders/o1/timeline"' in text


async def test_the_page_of_a_settled_order_does_not_refresh(
    dependencies: ConsoleDependencies, pages: httpx.AsyncClient
) -> None:
    await dependencies.orders.insert_one(an_order("o1", status="CONFIRMED", settled=True))
    assert 'id="live" hx-get' not in await text_of(pages, "/orders/o1")


async def test_orders_are_found_by_id_user_status_and_reason(
    dependencies: ConsoleDependencies, pages: httpx.AsyncClient
) -> None:
    await dependencies.orders.insert_many(
        [
            an_order("aa-1", userId="u1"),
            an_order("aa-2", userId="u2", status="CANCELLED", failureReason="Insufficient stock", settled=True),
            an_order("bb-1", userId="u2", status="FAILED", failureReason="Insufficient patience"),
        ]
    )

    async def found(**asked: str) -> set[str]:
        response = await pages.get("/orders", params=asked)
        assert response.status_code == 200
        return set(re.findall(r'href="/orders/([ab]+-\d)"', response.text))

    assert await found() == {"aa-1", "aa-2", "bb-1"}
    assert await found(id="aa-") == {"aa-1", "aa-2"}
    assert await found(user="u2") == {"aa-2", "bb-1"}
    assert await found(status="FAILED") == {"bb-1"}
    assert await found(reason="Insufficient") == {"aa-2", "bb-1"}
    assert await found(reason="Insufficient s") == {"aa-2"}
    assert await found(open="1") == {"aa-1", "bb-1"}
    assert await found(user="u2", open="1") == {"bb-1"}
    assert await found(id=".*") == set()
    exact = await pages.get("/orders", params={"id": "aa-1"})
    assert (exact.status_code, exact.headers["location"]) == (303, "/orders/aa-1")


async def test_an_order_is_found_by_its_number_and_by_its_customer_by_those_who_may_know(
    dependencies: ConsoleDependencies, pages: httpx.AsyncClient
) -> None:
    person = {"customer": {"name": "Ann Smith", "email": "ann@example.org"}, "note": "ring <twice>"}
    first, other = uuid.uuid4().hex, uuid.uuid4().hex
    named = {"personal": person | {"words": ["ann", "smith", "ann@example.org"]}}
    particulars = {"items": [{"name": "Pizza", "options": '{"extras":["olives"]}'}], "shippingAmount": 150}
    await dependencies.orders.insert_many(
        [an_order(first, **named, particulars=particulars), an_order(other, personal={"words": ["bob"]})]
    )

    async def found(**asked: str) -> set[str]:
        response = await pages.get("/orders", params=asked)
        assert response.status_code == 200, response.text
        return set(re.findall(r'href="/orders/([0-9a-f]{32})"', response.text))

    assert await found(customer="Smi") == await found(customer="ann SMITH") == await found(customer="ann@") == {first}
    assert await found(customer="ann bob") == await found(customer=".*") == set()
    number = order_number(first) or ""
    assert (await pages.get("/orders", params={"number": number})).headers["location"] == f"/orders/{first}"
    assert (await pages.get("/orders", params={"number": "12"})).status_code == 422
    text = await text_of(pages, f"/orders/{first}")
    for shown in (number, "Ann Smith", "ann@example.org", "ring &lt;twice&gt;", "Pizza", "olives", "1.5"):
        assert shown in text
    viewer = bearer(KEYS[Role.VIEWER])
    hidden = await pages.get(f"/orders/{first}", headers=viewer)
    assert [text for text in ("Ann", "example.org", "ring") if text in hidden.text] == []
    assert "hidden: needs <code>orders:fulfil</code>" in hidden.text
    assert "Pizza" in hidden.text
    assert "Smith" not in (await pages.get("/orders", headers=viewer)).text
    assert (await pages.get("/orders", params={"customer": "smith"}, headers=viewer)).status_code == 403


async def test_pages_of_orders_have_each_order_once(
    dependencies: ConsoleDependencies, pages: httpx.AsyncClient
) -> None:
    at = utc_now()
    # Several with the same time, so that a page ends among them.
    await dependencies.orders.insert_many(
        [an_order(f"o{n:03}", createdAt=at - timedelta(seconds=n // 7)) for n in range(120)]
    )
    seen: list[str] = []
    address: str | None = "/orders"
    while address:
        text = await text_of(pages, address)
        seen += re.findall(r'href="/orders/(o\d+)"', text)
        more = re.search(r'href="([^"]+)" rel="next"', text)
        address = more[1].replace("&amp;", "&") if more else None
    assert sorted(seen) == [f"o{n:03}" for n in range(120)]


async def test_the_overview_shows_figures_queues_and_low_packages(
    dependencies: ConsoleDependencies, pages: httpx.AsyncClient
) -> None:
    at = utc_now() - timedelta(seconds=5)
    done = {"status": "CONFIRMED", "settled": True, "completedAt": at + timedelta(milliseconds=40), "createdAt": at}
    failed = an_order("f1", status="FAILED", failureReason="no server")
    await dependencies.orders.insert_many([an_order("o1", **done), an_order("o2"), failed])
    await dependencies.packages.insert_one(
        {"_id": "103.181.9", "name": "103.181.9.x", "ipv4": 2, "low": True, "checkedAt": at}
    )
    await record_letters(
        dependencies, *(a_letter(f"d{n}", f"Unknown product p{n}") for n in range(3)), a_letter("e1", "other")
    )
    text = await text_of(pages, "/")
    for shown in ("40 ms", "50.0 %", "no server", "103.181.9.x", "2 left", "1 pending", "Unknown product"):
        assert shown in text, shown
    assert len(re.findall(r'class="group-link"', text)) == 2
    assert text.count("not ready") == len(NO_SERVICES)
    assert "ordersaga.dead-letters" in text


async def test_the_longer_it_takes_to_count_dead_letters_the_less_often_they_are_counted(
    dependencies: ConsoleDependencies, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock of the test's own, on which a count takes half a second."""
    clock = [1000.0]
    impacts = ImpactReader(dependencies.client, dependencies.prefix)
    cache = DeadLetterCache(DeadLetterService(dependencies.operations), impacts, lambda: clock[0])
    groups = cache._service.group_page

    async def slowly(*asked: Any, **options: Any) -> Any:
        clock[0] += 0.5
        return await groups(*asked, **options)

    monkeypatch.setattr(cache._service, "group_page", slowly)
    assert (await cache.read())[0] == RankedPage([], 0)
    await record_letters(dependencies, a_letter("o1"))
    clock[0] = 1009.9
    assert (await cache.read())[0] == RankedPage([], 0)
    clock[0] = 1010.0
    found, _ = await cache.read()
    assert isinstance(found, RankedPage)
    assert [group.total for group, _ in found.items] == [1]


# --- Hostile input. ---


async def test_recorded_text_is_never_markup(dependencies: ConsoleDependencies, pages: httpx.AsyncClient) -> None:
    item = {"productId": HOSTILE, "quantity": 1, "price": 1000}
    names = {"userId": HOSTILE, "failureReason": HOSTILE, "items": [item]}
    history = [{"at": utc_now(), "event": HOSTILE, "status": "FAILED", "message": HOSTILE}]
    await dependencies.orders.insert_one(an_order("o1", status="FAILED", history=history, **names))
    await dependencies.packages.insert_one({"_id": "p", "name": HOSTILE, "ipv4": 0, "low": True})
    await record_letters(
        dependencies, a_letter("o1", HOSTILE, body=f"<b>{HOSTILE}".encode()), a_letter("o2", HOSTILE, body=b'"<i>"')
    )
    letters = DeadLetterService(dependencies.operations)
    (group, *_) = await letters.groups()
    await letters.add_note(group.fingerprint, HOSTILE, by=HOSTILE)
    letter = (await letters.page(Filters(order_id="o1"))).items[0]["_id"]
    await record_action(dependencies.operations, by=HOSTILE, why=HOSTILE, action=HOSTILE, subject="o1", outcome=HOSTILE)
    shown = [
        *PAGES,
        f"/dead-letters/groups/{group.fingerprint}",
        f"/dead-letters/letters/{letter}",
        f"/dead-letters/letters/{letter}/edit",
        "/orders/o1",
        f"/orders?user={HOSTILE}&reason={HOSTILE}",
        f"/actions?subject={HOSTILE}",
        f"/dead-letters/list?text={HOSTILE}",
        f"/locks?package={HOSTILE}",
    ]
    for path in shown:
        text = await text_of(pages, path)
        assert HOSTILE not in text, path
        assert "<script>" not in text
        assert "<b>" not in text
    assert ESCAPED in await text_of(pages, "/orders/o1")
    assert ESCAPED in await text_of(pages, f"/dead-letters/letters/{letter}")
    body = await pages.get(f"/dead-letters/letters/{letter}/body")
    assert body.content == f"<b>{HOSTILE}".encode()
    assert body.headers["content-type"] == "application/octet-stream"
    assert body.headers["content-disposition"].startswith("attachment")


async def test_pages_comply_with_their_security_policy(
    dependencies: ConsoleDependencies, pages: httpx.AsyncClient
) -> None:
    await dependencies.orders.insert_one(an_order("o1", status="FAILED"))
    for path in (*PAGES, "/orders/o1", "/orders/o1/do/refund", "/orders/none"):
        response = await pages.get(path)
        policy = response.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert response.headers["x-frame-options"] == "DENY"
        assert response.headers["cache-control"] == "no-store"
        assert not re.search(r"<script(?![^>]* src=)|<style|\sstyle=|\son\w+=|javascript:", response.text), path
        assert not re.search(r"(?:src|href|action)=\"(?:https?:)?//", response.text), path


async def test_posts_from_other_sites_change_nothing(
    dependencies: ConsoleDependencies, pages: httpx.AsyncClient
) -> None:
    await dependencies.orders.insert_one(an_order("o1"))
    await record_letters(dependencies, a_letter("o1"))
    letter = (await DeadLetterService(dependencies.operations).page(Filters())).items[0]
    values = {
        "order_id": "o1",
        "name": "cancel",
        "letter_id": letter["_id"],
        "fingerprint": letter["fingerprint"],
        "replay_id": "r1",
        "approval_id": "a1",
        "product_id": "p1",
        "package": "103.181.9",
        "webhook_id": "w1",
        "delivery_id": "e1",
        "bulk_id": "b1",
        "service": "payment",
        "what": "pause",
    }
    app: FastAPI = an_app(dependencies)
    named = defaultdict(lambda: "x1", values)
    posts = [route.path.format_map(named) for route in routes_of(app) if "POST" in (route.methods or ())]
    of_the_api = [post for post in posts if post.startswith(API_BESIDE_PAGES)]
    assert len(of_the_api) >= 11
    for post in of_the_api:
        # A browser never sends the credentials of programs by itself; see test_operations_api.py.
        assert (await pages.post(post, headers={"Sec-Fetch-Site": "cross-site"})).status_code == 403, post
    of_pages = sorted(set(posts) - set(of_the_api))
    assert len(of_pages) >= 11
    for post in of_pages:
        for site in ({"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "none"}):
            response = await pages.post(
                post, data=REASON | {"text": "t", "status": "resolved", "body": "{}"}, headers=site
            )
            assert response.status_code == 403, post
            assert "another site" in response.text
    assert (await list_actions(dependencies.operations)).items == []
    (kept,) = (await DeadLetterService(dependencies.operations).page(Filters(status=("dead",)))).items
    assert kept["_id"] == letter["_id"]


async def test_an_unknown_host_name_gets_no_page(dependencies: ConsoleDependencies) -> None:
    transport = httpx.ASGITransport(an_app(dependencies))
    async with httpx.AsyncClient(transport=transport, base_url="http://evil.example") as client:
        for path in (*SECTIONS, "/static/console.css", "/metrics", "/openapi.json"):
            response = await client.get(path)
            assert response.status_code == 421
            assert "ORDERSAGA_HTTP_NAMES" in response.text


async def test_a_link_on_another_site_opens_a_page_and_nothing_else(pages: httpx.AsyncClient) -> None:
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    assert (await pages.get("/actions", headers=link)).status_code == 200
    assert (await pages.get("/actions", headers=link | {"Sec-Fetch-Dest": "iframe"})).status_code == 403
    assert (await pages.get("/actions", headers={"Sec-Fetch-Site": "same-site"})).status_code == 403
    assert (await pages.post("/audit", headers=link)).status_code == 403


async def test_the_console_has_a_page_about_the_api_for_programs(pages: httpx.AsyncClient) -> None:
    assert (await pages.get("/docs")).status_code == 200
    described = (await pages.get("/openapi.json")).json()["paths"]
    assert {path for path in described if not path.startswith(API_BESIDE_PAGES)} == {
        "/healthz",
        "/readyz",
        "/metrics",
        "/me",
    }


async def test_a_form_needs_a_reason(dependencies: ConsoleDependencies, pages: httpx.AsyncClient) -> None:
    await dependencies.orders.insert_one(an_order("o1"))
    for data in ({}, {"why": "  "}, {"why": "x" * 501}):
        response = await pages.post("/orders/o1/do/cancel", data=data)
        assert response.status_code == 422, data
        assert "Invalid input" in response.text
    assert (await list_actions(dependencies.operations)).items == []


async def test_a_form_in_another_charset_is_refused_unread(
    dependencies: ConsoleDependencies, pages: httpx.AsyncClient
) -> None:
    await record_letters(dependencies, a_letter("o1"))
    letter = (await DeadLetterService(dependencies.operations).page(Filters())).items[0]["_id"]
    content = b'--b\r\nContent-Disposition: form-data; name="body"\r\n\r\n' + b"\xff" * 200_000 + b"\r\n--b--\r\n"
    headers = {"Content-Type": "multipart/form-data; boundary=b; charset=punycode"}
    started = time.process_time()
    refused = await pages.post(f"/dead-letters/letters/{letter}/edit", content=content, headers=headers)
    assert time.process_time() - started < 5
    assert refused.status_code == 415
    assert "only utf-8 is accepted" in refused.text
    many = await pages.post("/locks", data={f"f{number}": "1" for number in range(100)})
    assert many.status_code == 422
    large = await pages.post("/locks", data={"why": "x" * 220_000})
    assert large.status_code == 413
    for answer in (refused, many, large):
        assert "text/html" in answer.headers["content-type"]


# --- Outages. ---


async def test_unavailable_services_are_shown_as_such(pages: httpx.AsyncClient) -> None:
    for path, count in (("/inventory", 1), ("/slots", 1), ("/packages", 2)):
        assert (await text_of(pages, path)).count("Not available") == count
    answer = await pages.post("/locks", data=REASON | {"package": "103.181.9"})
    assert answer.status_code == 503
    assert "Not done" in answer.text
    log = await text_of(pages, "/actions")
    assert "lock.clear" in log
    assert "not done: the provisioning service: it cannot be reached" in log


async def test_without_mongodb_and_rabbitmq_every_page_is_still_a_page(database_prefix: str) -> None:
    # Shorter time limits, to keep the test short.
    away = "mongodb://127.0.0.1:9/?directConnection=true&serverSelectionTimeoutMS=500"
    async with (
        console_dependencies(away, "amqp://guest:guest@127.0.0.1:9/", database_prefix) as dependencies,
        pages_of(dependencies) as pages,
    ):
        paths = [
            *PAGES,
            "/orders/o1",
            "/dead-letters/letters/l1",
            "/dead-letters/groups/g1",
            "/dead-letters/replays/r1",
        ]
        responses = await asyncio.gather(*(pages.get(path) for path in paths))
        for path, response in zip(paths, responses, strict=True):
            assert response.status_code in (200, 503), (path, response.text)
        shown = dict(zip(paths, (response.text for response in responses), strict=True))
        assert "RabbitMQ does not answer" in shown["/"]
        assert "A server is not responding" in shown["/orders/o1"]
        for path in ("/", "/orders", "/actions", "/dead-letters"):
            assert "Not available" in shown[path], path
        acted = await pages.post("/dead-letters/letters/l1/replay", data=REASON)
        assert acted.status_code == 503


async def test_only_the_first_page_of_staff_waits_for_the_check_of_what_is_away(
    dependencies: ConsoleDependencies, monkeypatch: pytest.MonkeyPatch
) -> None:
    checks: list[asyncio.Event] = []

    async def check(_: ConsoleDependencies) -> Check:
        """Take until the test lets it end, the first two times; find an outage that is named after that."""
        number = min(len(checks) + 1, 2)
        if len(checks) < number:
            checks.append(asyncio.Event())
        await checks[number - 1].wait()
        return Check({}, {f"check-{number}": Health("it refuses connections")})

    monkeypatch.setattr(outages, "check", check)
    monkeypatch.setattr(outages, "FRESH_SECONDS", -1.0)
    async with pages_of(dependencies) as pages, asyncio.timeout(60):
        anonymous = await pages.get("/sign-in", headers={"Authorization": ""})
        assert (anonymous.status_code, checks) == (200, [])
        first = asyncio.create_task(pages.get("/orders"))
        await eventually(lambda: bool(checks), 60, "the first check")
        assert not first.done()
        checks[0].set()
        assert "check-1" in (await first).text
        assert "check-1" in await text_of(pages, "/orders")
        await eventually(lambda: len(checks) == 2, 60, "the check in the background")
        checks[1].set()

        async def is_renewed() -> bool:
            return "check-2" in await text_of(pages, "/orders")

        await eventually(is_renewed, 60, "the result of the check in the background")


# --- Inventory, packages. ---

SLOTS = [
    {"slotId": "slot:1769850000", "start": "2026-01-31T09:00:00Z", "end": "2026-01-31T09:15:00Z", "capacity": 100000},
    {"slotId": "slot:1769850900", "start": "2026-01-31T09:15:00Z", "end": "2026-01-31T09:30:00Z", "capacity": 100000},
]


def a_service() -> FastAPI:
    """The routes of inventory and provisioning that the console uses, as in the contract."""
    app = FastAPI()
    deleted: list[str] = []

    @app.get("/inventory")
    async def inventory(limit: int, cursor: str | None = None) -> dict[str, Any]:
        items = [
            {"productId": HOSTILE, "quantity": 6, "reserved": 4},
            {"productId": "v", "quantity": None, "reserved": 1},
        ]
        last = [{"productId": "last", "quantity": 0, "reserved": 0}]
        return {"items": last if cursor else items, "nextCursor": None if cursor else "more&more"}

    @app.get("/slots")
    async def slots() -> dict[str, Any]:
        loads = [SLOTS[0] | {"load": 95000.25, "disabled": False}, SLOTS[1] | {"load": 0, "disabled": True}]
        return {"items": loads, "nextCursor": None}

    @app.get("/slots/{slot_id}/orders")
    async def in_slot(slot_id: str) -> dict[str, Any]:
        at = {"slotStart": "2026-01-31T09:00:00Z", "visibleAt": "2026-01-31T08:30:00Z", "itemsCount": 3}
        lines = [{"productId": HOSTILE, "quantity": 2, "price": 1}]
        late = {"orderId": "late-order", "status": "RESERVED", "items": lines, **at}
        return {"items": [late, late | {"orderId": "gone", "status": "SHIPPED", "items": []}], "nextCursor": None}

    @app.get("/packages")
    async def packages() -> dict[str, Any]:
        lock = {"orderId": "o1", "acquiredAt": "2026-01-31T09:00:00Z", "expiresAt": "2026-01-31T09:02:00Z"}
        package = {"packageId": "1", "name": "103.181.9.x", "status": "active", "ipv4": 3, "low": True, "lock": lock}
        return {"items": [package], "nextCursor": None}

    @app.get("/locks")
    async def locks() -> dict[str, Any]:
        times = dict.fromkeys(("acquiredAt", "expiresAt", "progressAt"), "2026-01-31T09:00:00Z")
        held = {"package": "103.181.9", "orderId": "o1", **times}
        return {"items": [] if deleted else [held], "nextCursor": None}

    @app.delete("/locks/{package}")
    async def clear(package: str) -> dict[str, str]:
        deleted.append(package)
        return {"package": package}

    return app


async def test_stock_is_bars_and_a_slot_has_its_orders(mongodb_url: str, amqp_url: str, database_prefix: str) -> None:
    async with (
        serve(a_service()) as url,
        console_dependencies(mongodb_url, amqp_url, database_prefix, NO_SERVICES | {"inventory": url}) as dependencies,
        pages_of(dependencies) as pages,
    ):
        text = await text_of(pages, "/inventory")
        assert ESCAPED in text
        assert '<rect class="free" width="60.00"' in text
        assert '<rect class="held" x="60.00" width="40.00"' in text
        assert 'href="/inventory?cursor=more%26more"' in text
        kitchen = await text_of(pages, f"/slots/{SLOTS[0]['slotId']}")
        assert "95,000.25 of 100,000" in kitchen
        assert f"2 &times; {ESCAPED}" in kitchen
        assert re.findall(r'<span class="tag[^"]*">([^<]+)</span>', kitchen) == ["past", "late", "delivered"]
        assert "3 of another system" in kitchen
        assert "last" in await text_of(pages, "/inventory?cursor=more%26more")


async def test_a_product_and_a_package_are_taken_off_sale_for_a_reason(
    mongodb_url: str, amqp_url: str, database_prefix: str
) -> None:
    app, asked = a_service(), []

    @app.get("/products/{product_id}")
    async def product(product_id: str) -> dict[str, Any]:
        return {"productId": product_id, "onSale": True}

    @app.patch("/products/{product_id}")
    async def switch_product(product_id: str, body: dict[str, Any]) -> dict[str, Any]:
        asked.append((product_id, body))
        return body

    @app.patch("/packages/{package}")
    async def switch_package(package: str, body: dict[str, Any]) -> dict[str, Any]:
        asked.append((package, body))
        return body

    async with (
        serve(app) as url,
        console_dependencies(
            mongodb_url, amqp_url, database_prefix, NO_SERVICES | {"inventory": url, "provisioning": url}
        ) as dependencies,
        pages_of(dependencies) as pages,
    ):
        inventory = await text_of(pages, "/inventory")
        assert 'href="/products/v/sale"' in inventory
        assert 'href="/products/v/restock"' not in inventory  # its units are not counted
        assert "Take v off sale" in await text_of(pages, "/products/v/sale")
        assert 'href="/packages/103.181.9.x/sale"' in await text_of(pages, "/packages")
        assert "Put 103.181.9.x back on sale" in await text_of(pages, "/packages/103.181.9.x/sale?disabled=true")
        for address in ("/products/v/sale", "/packages/103.181.9.x/sale"):
            for on_sale in ("false", "true"):
                answer = await pages.post(address, data=REASON | {"on_sale": on_sale})
                assert answer.status_code == 303, answer.text
        assert asked == [
            ("v", {"onSale": False, "reason": "because"}),
            ("v", {"onSale": True}),
            ("103.181.9.x", {"disabled": True, "reason": "because"}),
            ("103.181.9.x", {"disabled": False}),
        ]
        entries = (await list_actions(dependencies.operations)).items
        assert {entry["outcome"] for entry in entries} == {"started", "off sale", "on sale", "disabled", "enabled"}
        refused = await pages.post("/products/v/sale", data={"on_sale": "false"})
        assert refused.status_code == 422
        viewer = bearer(KEYS[Role.VIEWER])
        for form in ("/sale", "/restock"):
            assert form not in (await pages.get("/inventory", headers=viewer)).text
            assert (await pages.get(f"/products/v{form}", headers=viewer)).status_code == 403


async def test_any_response_of_a_service_can_be_shown(mongodb_url: str, amqp_url: str, database_prefix: str) -> None:
    app = FastAPI()

    @app.get("/inventory")
    async def inventory() -> Response:
        return Response(b'{"items": [{"productId": "p\\ud800", "quantity": 1}]}', media_type="application/json")

    async with (
        serve(app) as url,
        console_dependencies(mongodb_url, amqp_url, database_prefix, NO_SERVICES | {"inventory": url}) as dependencies,
        pages_of(dependencies) as pages,
    ):
        assert "p\\ud800" in await text_of(pages, "/inventory")


async def test_a_lock_is_cleared_for_a_reason(mongodb_url: str, amqp_url: str, database_prefix: str) -> None:
    async with (
        serve(a_service()) as url,
        console_dependencies(
            mongodb_url, amqp_url, database_prefix, NO_SERVICES | {"provisioning": url}
        ) as dependencies,
        pages_of(dependencies) as pages,
    ):
        text = await text_of(pages, "/packages")
        assert 'href="/locks?package=103.181.9"' in text
        assert "low</span>" in text
        assert "Clear the lock" in await text_of(pages, "/locks?package=103.181.9")
        answer = await pages.post("/locks", data=REASON | {"package": "103.181.9"})
        assert answer.status_code == 303
        assert "No locks are held" in await text_of(pages, "/packages")
        entries = (await list_actions(dependencies.operations)).items
        assert {(entry["action"], entry["subject"]) for entry in entries} == {("lock.clear", "103.181.9")}
        assert sorted(entry["outcome"] for entry in entries) == ["cleared", "started"]


async def test_packages_and_locks_have_pages_of_their_own(
    mongodb_url: str, amqp_url: str, database_prefix: str
) -> None:
    app = FastAPI()

    @app.get("/packages")
    async def packages(cursor: str | None = None) -> dict[str, Any]:
        package = {"packageId": "1", "name": "second" if cursor else "first", "status": "active", "ipv4": 3}
        return {"items": [package], "nextCursor": None if cursor else "p&1", "total": 2}

    @app.get("/locks")
    async def locks(cursor: str | None = None) -> dict[str, Any]:
        return {"items": [], "nextCursor": None if cursor else "l1"}

    async with (
        serve(app) as url,
        console_dependencies(
            mongodb_url, amqp_url, database_prefix, NO_SERVICES | {"provisioning": url}
        ) as dependencies,
        pages_of(dependencies) as pages,
    ):
        first = await text_of(pages, "/packages")
        assert "2 packages; 1 on this page" in first
        assert "how many there are is not known" in first  # an older service does not count its locks
        assert 'href="/packages?locks=l1"' in first
        more = await text_of(pages, "/packages?cursor=p%261&locks=l1")
        assert "second" in more
        assert 'href="/packages?locks=l1">First page' in more
        assert 'href="/packages?cursor=p%261">First page' in more

    async with (
        console_dependencies(mongodb_url, amqp_url, database_prefix) as dependencies,
        pages_of(dependencies) as pages,
    ):
        await dependencies.packages.insert_many([{"_id": f"10.0.{number:02}", "ipv4": 1} for number in range(51)])
        known = await text_of(pages, "/packages")
        assert "packages 1 to 50 of 51" in known
        assert "10.0.50" not in known
        assert "10.0.50" in await text_of(pages, "/packages?seen=2")


async def test_an_action_is_logged_before_the_service_is_asked(
    mongodb_url: str, amqp_url: str, database_prefix: str
) -> None:
    seen: list[list[str]] = []

    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        seen.append([entry["outcome"] for entry in (await list_actions(acting.operations)).items])
        writer.close()

    server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with (
        server,
        console_dependencies(mongodb_url, amqp_url, database_prefix, NO_SERVICES | {"provisioning": url}) as acting,
        pages_of(acting) as pages,
    ):
        answer = await pages.post("/locks", data=REASON | {"package": "103.181.9"})
        assert answer.status_code == 503
        assert "Outcome unknown" in answer.text
        outcomes = sorted(entry["outcome"] for entry in (await list_actions(acting.operations)).items)
    assert seen == [["started"]]
    assert outcomes[0].startswith("outcome unknown: the provisioning service: it closed the connection")
    assert outcomes[1] == "started"


# --- Audit, actions. ---


@pytest.mark.usefixtures("clean_broker")
async def test_an_audit_runs_in_the_background_and_is_logged(
    dependencies: ConsoleDependencies, pages: httpx.AsyncClient
) -> None:
    world = World(dependencies.client, dependencies.prefix, dependencies.mongodb_url, dependencies.amqp_url)
    populate(world)
    next(product for product in world.records["products"] if product["_id"] == "p1")["quantity"] = 3
    await world.store()
    answer = await pages.post("/audit")
    assert answer.status_code == 303

    async def is_logged() -> bool:
        return bool((await list_actions(dependencies.operations)).items)

    await eventually(is_logged, 60, "the audit to be in the log")
    text = await text_of(pages, "/audit/result")
    assert "The books do not balance" in text
    assert "product p1" in text
    assert "<strong>Fix:</strong> The counts of the product or the slot do not add up" in text
    (entry,) = (await list_actions(dependencies.operations)).items
    assert (entry["by"], entry["action"], entry["outcome"]) == (BY_ADMIN, "audit", "1 violation")


async def test_one_audit_runs_at_a_time_over_all_processes(dependencies: ConsoleDependencies) -> None:
    first, second = Auditor(dependencies), Auditor(dependencies)

    async def is_over() -> bool:
        return await dependencies.audit_runs.current() is None

    run = await first.start("op-1")
    assert run is not None
    assert await second.start("op-2") is None
    await eventually(is_over, 60, "the audit to end")
    assert await second.start("op-2") not in (None, run)
    await eventually(is_over, 60, "the audit to end")

    async def both_are_logged() -> bool:
        return len((await list_actions(dependencies.operations)).items) == 2

    await eventually(both_are_logged, 60, "the audits to be in the log")
    assert [entry["by"] for entry in (await list_actions(dependencies.operations)).items] == ["op-2", "op-1"]


async def test_a_console_that_stops_records_that_its_audit_was_interrupted(
    dependencies: ConsoleDependencies, monkeypatch: pytest.MonkeyPatch
) -> None:
    auditing = asyncio.Event()

    async def never_ends(*_: object, **__: object) -> Report:
        auditing.set()
        await asyncio.Event().wait()
        raise AssertionError

    monkeypatch.setattr(runner, "audit", never_ends)
    assert await Auditor(dependencies).start("op-1") is not None
    await asyncio.wait_for(auditing.wait(), 60)
    await dependencies.end_background_work()
    last = await dependencies.audit_runs.last()
    assert last is not None
    assert (last["status"], last["by"], last["why"]) == (INTERRUPTED, "op-1", "its process was stopped")
    assert await dependencies.audit_runs.current() is None


async def test_the_log_of_actions_is_paged_and_searched(
    dependencies: ConsoleDependencies, pages: httpx.AsyncClient
) -> None:
    for number in range(60):
        subject = "order-7" if number % 20 == 0 else f"s{number}"
        await record_action(
            dependencies.operations,
            by="op-1",
            why=f"why-{number}.",
            action="order.cancel",
            subject=subject,
            outcome="accepted",
        )
    first = await text_of(pages, "/actions")
    more = re.search(r'href="([^"]+)" rel="next"', first)
    assert more
    second = await text_of(pages, more[1].replace("&amp;", "&"))
    assert sorted(re.findall(r"why-(\d+)\.", first + second), key=int) == [str(n) for n in range(60)]
    assert re.findall(r"why-(\d+)\.", await text_of(pages, "/actions?subject=order-7")) == ["40", "20", "0"]
    await text_of(pages, "/actions?cursor=nonsense", 422)
    await text_of(pages, "/orders?cursor=nonsense", 422)


# --- Dead letters. ---


async def test_from_the_overview_to_the_cause_and_the_replay_in_two_clicks(
    dependencies: ConsoleDependencies, pages: httpx.AsyncClient
) -> None:
    await record_letters(
        dependencies, *(a_letter(f"d{n}", f"Unknown product p{n}") for n in range(12)), a_letter("e", "other")
    )
    overview = await text_of(pages, "/")
    (address,) = re.findall(r'class="group-link" href="([^"]+)"><span class="count bad">12<', overview)
    group = await text_of(pages, address)
    assert "Traceback (most recent call last)" in group
    assert "Poison: Unknown product p" in group
    assert "/dead-letters/many/replay?matching=1&amp;status=dead&amp;group=" in group
    answer = await act_on_group(pages, "replay", address.rpartition("/")[2], **REASON, rate="50")
    assert answer.status_code == 303
    text = await text_of(pages, answer.headers["location"])
    assert "0 of 12" in text
    assert 'id="live" hx-get' in text
    assert "at most 50 per second" in text
    replay = await DeadLetterService(dependencies.operations).replay(answer.headers["location"].rpartition("/")[2])
    assert replay
    assert (replay["by"], replay["why"], replay["rate"], replay["total"]) == (BY_ADMIN, "because", 50, 12)
    assert "Failed again" in text
    stopped = await pages.post(f"{answer.headers['location']}/cancel", data=REASON)
    assert stopped.status_code == 303
    await text_of(pages, "/dead-letters/replays")


async def test_groups_are_paged_and_counted(
    dependencies: ConsoleDependencies, pages: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("operations.console.letter_groups.GROUPS", 4)
    names = [f"{letter}-kind-of-error" for letter in "abcdefghij"]
    await record_letters(dependencies, *(a_letter(f"o{n}", name) for n, name in enumerate(names)))
    overview = await text_of(pages, "/")
    assert "8 of 10 groups, sorted by harm." in overview
    seen: list[str] = []
    address = "/dead-letters?status=new"
    for shown in ("1 to 4", "5 to 8", "9 to 10"):
        text = await text_of(pages, address)
        assert f"Groups {shown} of 10" in text
        seen += re.findall(r">Poison: (\w-kind-of-error)<", text)
        older = re.search(r'href="([^"]+)" rel="next"', text)
        address = older[1].replace("&amp;", "&") if older else ""
    assert address == ""
    assert sorted(seen) == names
    assert "No matching groups" in await text_of(pages, "/dead-letters?status=resolved")
    assert "only 10 groups" in await text_of(pages, "/dead-letters?page=9")
    await text_of(pages, "/dead-letters?page=0", 422)


async def test_the_page_of_a_replay_tells_what_became_of_its_messages(
    dependencies: ConsoleDependencies, pages: httpx.AsyncClient
) -> None:
    await record_letters(dependencies, *(a_letter(f"d{n}") for n in range(6)))
    letters = DeadLetterService(dependencies.operations)
    (group,) = await letters.groups()
    replay = await letters.start_replay(Filters(group=group.fingerprint), by="op-1", why="fixed")
    at = utc_now()
    over = {"$set": {"status": "done", "doneAt": at, "published": 6}}
    await dependencies.operations["replays"].update_one({"_id": replay}, over)
    last = {"replay": replay, "by": "op-1", "at": at}
    await dependencies.operations["dead_letter_groups"].update_one({}, {"$set": {"lastReplay": last}})
    address = f"/dead-letters/replays/{replay}"

    async def shown(*outcomes: str) -> tuple[str, str]:
        """Return the replay's page, and the group's, when the letters have these outcomes."""
        for number, outcome in enumerate(outcomes):
            entry: Document = {"replay": replay, "group": group.fingerprint, "outcome": outcome}
            entry |= {"at": at, "outcomeAt": at, "messageId": f"r{number}", "by": "op-1", "why": ""}
            old = entry | {"replay": "another", "outcome": "dead"}
            changed = {"replays": [old, entry], "status": outcome}
            await dependencies.operations["dead_letters"].update_one({"orderId": f"d{number}"}, {"$set": changed})
        texts = [await text_of(pages, path) for path in (address, f"/dead-letters/groups/{group.fingerprint}")]
        return " ".join(texts[0].split()), " ".join(texts[1].split())

    page, of_group = await shown("handled", "handled", "handled", "dead", "dead", "pending")
    for title, number in (("Handled", 3), ("Failed again", 2), ("Not known yet", 1)):
        assert re.search(rf'<h2>{title}</h2><p class="figure"><a href="[^"]+">{number}</a></p>', page), title
    assert 'tag-failed-again">failed again</span>' in page
    assert "2 messages failed again" in page
    assert 'id="live" hx-get' in page
    assert re.search(
        r"replayed</a> by <strong>op-1</strong> <time [^>]+>[^<]+</time>, "
        r'<strong class="bad">2 failed again, 1 not known yet, 3 handled</strong>',
        of_group,
    )
    (link,) = re.findall(r'href="([^"]+)">the letters and why', page)
    failed = await text_of(pages, link.replace("&amp;", "&"))
    assert set(re.findall(r'href="/orders/(d\d)"', failed)) == {"d3", "d4"}
    await text_of(pages, f"/dead-letters/list?replay={replay}&outcome=strange", 422)

    page, _ = await shown(*["handled"] * 5, "pending")
    assert 'tag-not-known-yet">not known yet</span>' in page
    assert not re.search(r"notice good|tag-(done|handled|good)", page)
    long_ago = {"$set": {"doneAt": at - timedelta(hours=1)}}
    await dependencies.operations["replays"].update_one({"_id": replay}, long_ago)
    assert "every 30s" in await text_of(pages, address)

    page, of_group = await shown(*["handled"] * 6)
    assert 'tag-handled">handled</span>' in page
    assert "notice good" in page
    assert 'id="live" hx-get' not in page
    assert "6 handled" in of_group
    assert "6 handled" in await text_of(pages, "/dead-letters/replays")


async def test_a_group_is_replayed_carefully_unless_that_is_unchecked(
    dependencies: ConsoleDependencies, pages: httpx.AsyncClient
) -> None:
    await record_letters(dependencies, *(a_letter(f"d{n}") for n in range(3)))
    letters = DeadLetterService(dependencies.operations)
    (group,) = await letters.groups()
    selected = f"matching=1&status=dead&group={group.fingerprint}"
    asked = await text_of(pages, f"/dead-letters/many/replay?{selected}")
    assert '<input name="careful" type="checkbox" value="true" checked>' in asked
    answer = await act_on_group(pages, "replay", group.fingerprint, **REASON, careful="true")
    started = answer.headers["location"]
    text = await text_of(pages, started)
    assert "0 of 3</span>\n published, carefully" in text
    assert "Stop the replay" in text
    (listed,) = await letters.replays()
    assert listed["status"] == "careful"

    why = {"letter": "l1", "error": {"type": "KeyError", "message": "no <card>"}}
    over = {"status": "stopped", "stopped": why, "doneAt": utc_now(), "published": 1}
    await dependencies.operations["replays"].update_one({}, {"$set": over})
    text = await text_of(pages, started)
    assert "l1 failed again: KeyError: no &lt;card&gt;" in text
    assert "Stop the replay" not in text
    at_once = (await act_on_group(pages, "replay", group.fingerprint, **REASON)).headers["location"]
    assert "carefully" not in await text_of(pages, at_once)


async def test_what_a_replay_would_do_is_shown_before_it_is_done(
    dependencies: ConsoleDependencies, pages: httpx.AsyncClient
) -> None:
    orders = Orders(dependencies.client[f"{dependencies.prefix}_orders"]["orders"])
    await orders.insert([NewRecord(an_order_of_the_saga(order_id=f"d{n}")) for n in range(3)])
    refused = [
        a_letter(
            f"d{n}", queue="order.inbox", routing_key="payment.failed", body=b'{"orderId":"d%d","reason":"no"}' % n
        )
        for n in range(4)
    ]
    await record_letters(dependencies, *refused)
    letters = DeadLetterService(dependencies.operations)
    (group,) = await letters.groups()
    text = await text_of(pages, f"/dead-letters/groups/{group.fingerprint}/preview")
    cancelled = "PENDING → CANCELLED, sends order.cancelled and stock.release"
    assert f'<td class="num">3</td><td class="break">{cancelled}</td>' in text
    assert '<strong class="bad">fails again: PoisonError: payment.failed for order d3, which does not exist' in text

    letter = (await letters.page(Filters(order_id="d1"))).items[0]["_id"]
    address = f"/dead-letters/letters/{letter}"
    assert f"A replay now: {cancelled}" in await text_of(pages, address)
    edited = await pages.post(f"{address}/edit/preview", data={"body": '{"orderId":"d1","reason":"other"}'})
    assert f"A replay with this body: {cancelled}" in edited.text
    assert "<ins>&#34;other&#34;</ins>" in edited.text
    wrong = await pages.post(f"{address}/edit/preview", data={"body": '{"orderId":"d2","reason":"other"}'})
    assert wrong.status_code == 422
    assert "must stay &#39;d1&#39;" in wrong.text
    assert await letters.replays() == []
    assert (await pages.post("/dead-letters/letters/none/edit/preview", data={"body": "{}"})).status_code == 404
    await text_of(pages, "/dead-letters/groups/none/preview", 404)


async def test_a_group_has_a_status_and_notes(dependencies: ConsoleDependencies, pages: httpx.AsyncClient) -> None:
    await record_letters(dependencies, a_letter("d1"))
    (group,) = await DeadLetterService(dependencies.operations).groups()
    address = f"/dead-letters/groups/{group.fingerprint}"
    for post, data in (("status", {"status": "acknowledged"}), ("notes", {"text": "a product without a price"})):
        assert (await pages.post(f"{address}/{post}", data=data)).status_code == 303
    text = await text_of(pages, address)
    assert "a product without a price" in text
    assert "acknowledged</span>" in text
    assert "d1" in await text_of(pages, "/dead-letters/list")
    assert (await pages.post(f"{address}/status", data={"status": "gone"})).status_code == 422
    assert (await pages.post(f"{address}/notes", data={"text": ""})).status_code == 422
    assert (await pages.post(f"{address}/notes", data={"text": " "})).status_code == 422
    assert (await pages.post("/dead-letters/groups/none/notes", data={"text": "t"})).status_code == 404
    assert group.fingerprint in await text_of(pages, "/dead-letters?status=acknowledged")
    assert group.fingerprint not in await text_of(pages, "/dead-letters?status=new")


async def test_letters_are_found_by_their_fields(dependencies: ConsoleDependencies, pages: httpx.AsyncClient) -> None:
    await record_letters(
        dependencies,
        a_letter("first", "no price here"),
        a_letter("second", "late", queue="payment.inbox", ago=timedelta(days=2)),
        a_letter("third", "late", routing_key="stock.release", body=b"\xff\xfe\x00not json"),
    )

    async def found(**asked: str) -> set[str]:
        response = await pages.get("/dead-letters/list", params=asked)
        assert response.status_code == 200
        return set(re.findall(r'href="/orders/(\w+)"', response.text))

    assert await found() == {"first", "second", "third"}
    assert await found(service="payment") == {"second"}
    assert await found(type="stock.release") == {"third"}
    assert await found(error="Poison") == {"first", "second", "third"}
    assert await found(text="price") == {"first"}
    assert await found(order="third") == {"third"}
    assert await found(span="24h") == {"first", "third"}
    assert await found(status="discarded") == set()
    await text_of(pages, "/dead-letters/list?status=strange", 422)
    await text_of(pages, "/dead-letters/list?span=1y", 422)
    await text_of(pages, "/dead-letters/list?cursor=nonsense", 422)


GOOD = {
    "orderId": "d1",
    "userId": "u1",
    "items": [{"productId": "p1", "quantity": 1, "price": 10}],
    "totalAmount": 10,
    "currency": "USD",
    "payment": {"method": "card"},
    "delivery": {},
}


async def test_an_edit_is_checked_and_then_replayed(
    dependencies: ConsoleDependencies, pages: httpx.AsyncClient
) -> None:
    await record_letters(dependencies, a_letter("d1"))
    letters = DeadLetterService(dependencies.operations)
    letter = (await letters.page(Filters())).items[0]["_id"]
    address = f"/dead-letters/letters/{letter}/edit"
    form = await text_of(pages, address)
    assert "&#34;userId&#34;: &#34;u1&#34;" in form
    assert '<label>orderId (locked) <input value="d1" readonly></label>' in form
    assert "&#34;orderId&#34;" not in form
    wrong = orjson.dumps(GOOD | {"items": [{"productId": "<p>", "quantity": 0, "price": 10}]}).decode()
    refused = await pages.post(address, data=REASON | {"body": wrong})
    assert refused.status_code == 422
    assert "<code>items[0].quantity</code>" in refused.text
    assert "&lt;p&gt;" in refused.text
    assert "aria-invalid" in refused.text
    nothing = await pages.post(address, data=REASON | {"body": "{"})
    assert "<code>body</code> is not JSON" in nothing.text
    other = await pages.post(address, data=REASON | {"body": orjson.dumps(GOOD | {"orderId": "d2"}).decode()})
    assert other.status_code == 422
    assert "<code>orderId</code> is &#39;d2&#39; and must stay &#39;d1&#39;" in other.text
    assert (await letters.replays()) == []
    sent = orjson.dumps(GOOD, option=orjson.OPT_INDENT_2).replace(b"\n", b"\r\n").decode()
    shown = await pages.post(address, data=REASON | {"body": sent})
    assert shown.status_code == 200, "what changes is shown before it is sent"
    assert '<code>/totalAmount</code></td><td class="break">—</td><td class="break"><ins>10</ins>' in shown.text
    assert (await letters.replays()) == []
    seen = {"seen": hidden(shown.text)["seen"]}
    changed = await pages.post(address, data=REASON | seen | {"body": sent.replace('"u1"', '"u2"')})
    assert (changed.status_code, "<ins>&#34;u2&#34;</ins>" in changed.text) == (200, True)
    accepted = await pages.post(address, data=REASON | seen | {"body": sent})
    assert accepted.status_code == 303
    (listed,) = await letters.replays()
    replay = await letters.replay(listed["_id"])
    assert replay is not None
    assert replay["edited"] == orjson.dumps(GOOD, option=orjson.OPT_INDENT_2)


async def test_what_a_letter_is_about_is_locked_until_its_new_value_is_typed(
    dependencies: ConsoleDependencies, pages: httpx.AsyncClient
) -> None:
    await record_letters(dependencies, a_letter("d1"))
    letters = DeadLetterService(dependencies.operations)
    letter = (await letters.page(Filters())).items[0]["_id"]
    address = f"/dead-letters/letters/{letter}/edit"
    without = orjson.dumps({name: value for name, value in GOOD.items() if name != "orderId"}).decode()
    kept = await pages.post(f"{address}/preview", data={"body": without})
    assert kept.status_code == 200
    assert "<code>/orderId</code>" not in kept.text
    untyped = await pages.post(f"{address}/preview", data={"body": without, "identity": "orderId", "value": " "})
    assert (untyped.status_code, "type its new value to unlock it" in untyped.text) == (422, True)
    unknown = await pages.post(f"{address}/preview", data={"body": without, "identity": "userId", "value": "u"})
    assert unknown.status_code == 422
    unlocked = REASON | {"body": without, "identity": "orderId", "value": "d2"}
    shown = await pages.post(address, data=unlocked)
    assert '<del>&#34;d1&#34;</del></td><td class="break"><ins>&#34;d2&#34;</ins>' in shown.text
    sent = await pages.post(address, data=unlocked | {"seen": hidden(shown.text)["seen"]})
    assert sent.status_code == 303
    (entry,) = (await list_actions(dependencies.operations)).items
    assert "orderId d1 → d2" in entry["outcome"]


async def test_a_lone_surrogate_is_not_an_error(dependencies: ConsoleDependencies, pages: httpx.AsyncClient) -> None:
    await record_letters(dependencies, a_letter("half", body=b'{"orderId":"\\ud800"}'))
    (letter,) = (await DeadLetterService(dependencies.operations).page(Filters())).items
    page = f"/dead-letters/letters/{letter['_id']}"
    for path in (page, f"{page}/edit", f"/dead-letters/groups/{letter['fingerprint']}"):
        assert "&#34;orderId&#34;: &#34;\\ud800&#34;" in await text_of(pages, path)


async def test_a_body_that_does_not_fit_a_form_is_not_edited_in_one(
    dependencies: ConsoleDependencies, pages: httpx.AsyncClient
) -> None:
    big = b'{"orderId": "big", "x": "' + b"y" * (5 * 1024 * 1024) + b'"}'
    await record_letters(dependencies, a_letter("bytes", body=b"\xff\x00" * 10), a_letter("big", body=big))
    for letter in (await DeadLetterService(dependencies.operations).page(Filters())).items:
        text = await text_of(pages, f"/dead-letters/letters/{letter['_id']}")
        assert "Edit and replay" not in text
        assert len(text) < 250_000
        await text_of(pages, f"/dead-letters/letters/{letter['_id']}/edit", 409)
        body = await pages.get(f"/dead-letters/letters/{letter['_id']}/body")
        assert len(body.content) in (20, len(big))


async def test_a_big_body_is_not_loaded_for_a_page(dependencies: ConsoleDependencies, pages: httpx.AsyncClient) -> None:
    big = b'{"orderId": "big", "x": "' + b"y" * (2 * 1024 * 1024) + b'"}'
    await record_letters(dependencies, a_letter("big", body=big))
    (letter,) = (await DeadLetterService(dependencies.operations).page(Filters())).items
    # Reading the pieces of the body fails from now on.
    await dependencies.operations["dead_letter_bodies"].drop()
    page = f"/dead-letters/letters/{letter['_id']}"
    text = await text_of(pages, page)
    assert "Only the beginning of 2.0 MiB is shown" in text
    assert f"ordersaga dead-letters export {letter['_id']}" in text
    assert "&#34;orderId&#34;: &#34;big&#34;" in text
    await text_of(pages, f"/dead-letters/groups/{letter['fingerprint']}")
    await text_of(pages, f"{page}/edit", 409)


async def test_a_group_keeps_a_hundred_notes(dependencies: ConsoleDependencies, pages: httpx.AsyncClient) -> None:
    await record_letters(dependencies, a_letter("d1"))
    (group,) = await DeadLetterService(dependencies.operations).groups()
    notes = [{"at": utc_now(), "by": "op-1", "text": str(number)} for number in range(99)]
    await dependencies.operations["dead_letter_groups"].update_one(
        {"_id": group.fingerprint}, {"$set": {"notes": notes}}
    )
    address = f"/dead-letters/groups/{group.fingerprint}/notes"
    assert (await pages.post(address, data={"text": "the last one"})).status_code == 303
    refused = await pages.post(address, data={"text": "one more"})
    assert refused.status_code == 409
    assert "already has 100 notes, the maximum" in refused.text


async def test_letters_are_discarded_for_a_reason_and_kept(
    dependencies: ConsoleDependencies, pages: httpx.AsyncClient
) -> None:
    await record_letters(dependencies, a_letter("d1", "one"), a_letter("d2", "two"), a_letter("d3", "two"))
    letters = DeadLetterService(dependencies.operations)
    ids = {letter["orderId"]: letter for letter in (await letters.page(Filters())).items}
    assert (await pages.post(f"/dead-letters/letters/{ids['d1']['_id']}/discard", data=REASON)).status_code == 303
    group = ids["d2"]["fingerprint"]
    discarded = await act_on_group(pages, "discard", group, **REASON)
    assert discarded.headers["location"] == f"/dead-letters/groups/{group}"
    assert await letters.counts() == {"dead": 0, "replaying": 0, "pending": 0, "handled": 0, "discarded": 3}
    text = await text_of(pages, f"/dead-letters/letters/{ids['d1']['_id']}")
    assert f"Discarded by {BY_ADMIN}" in text
    assert "Replay</button>" not in text
    refused = await pages.post(f"/dead-letters/letters/{ids['d1']['_id']}/replay", data=REASON)
    assert refused.status_code == 409
    assert (await act_on_group(pages, "replay", group, **REASON)).status_code == 409


async def test_a_foreign_letter_is_marked_and_left_out_of_the_replay_of_its_group(
    dependencies: ConsoleDependencies, pages: httpx.AsyncClient
) -> None:
    service = DeadLetterService(dependencies.operations)
    await service.prepare()
    sent = [replace(a_letter(user, queue="payment.inbox"), user_id=user) for user in ("payment", "inventory")]
    await LetterRecords(dependencies.operations).record(sent, utc_now(), "operations")
    items = (await service.page(Filters())).items
    foreign = next(letter for letter in items if letter["foreign"])
    page = await text_of(pages, f"/dead-letters/letters/{foreign['_id']}")
    assert "it was sent as inventory, who has no right to send order.created to payment.inbox" in page
    assert "tag-foreign" in await text_of(pages, "/dead-letters/list")
    group = f"/dead-letters/groups/{foreign['fingerprint']}"
    left_out = "1 foreign letter, whose sender has no right to send such a message, is left out"
    assert left_out in await text_of(pages, group)
    answer = await act_on_group(pages, "replay", foreign["fingerprint"], **REASON)
    assert answer.status_code == 303
    (started,) = await service.replays()
    assert started["total"] == 1
