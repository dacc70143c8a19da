"""Stock and delivery slots on the console and in the operations API, over a real inventory service."""

import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import httpx
import pytest

from inventory_service.api import create_router
from inventory_service.slots_api import create_slots_router
from inventory_service.stock import Description, Kind
from inventory_service.timetable import slot_id
from operations.actions import list_actions
from operations.console import ConsoleDependencies
from shared.access.permissions import Role
from shared.http import add_routes, create_app
from tests.support.access import KEYS, bearer, key_authenticator
from tests.support.consoles import BY_ADMIN, NO_SERVICES, console_dependencies, hidden, pages_of, serve
from tests.support.inventory_worker import HandClock, Worker, inventory_database

NOW = datetime(2026, 6, 3, 9, 50, tzinfo=UTC)
WHY = {"why": "delivery note 4711"}
REASON = {"reason": "delivery note 4711"}
TEN = NOW.replace(hour=10, minute=0)


@pytest.fixture
async def worker(mongodb_url: str, database_prefix: str) -> AsyncIterator[Worker]:
    async with inventory_database(mongodb_url, database_prefix) as db:
        yield Worker(db, clock=HandClock(NOW))


@pytest.fixture
async def dependencies(
    mongodb_url: str, amqp_url: str, database_prefix: str, worker: Worker
) -> AsyncIterator[ConsoleDependencies]:
    async def nothing_is_down() -> dict[str, str]:
        return {}

    app = create_app("inventory", "", nothing_is_down, authenticator=key_authenticator())
    add_routes(
        app.router, create_slots_router(worker.rules, worker.slots, worker.assigner, worker.reservations, lambda: NOW)
    )
    add_routes(app.router, create_router(worker.stock_items, worker.reservations))
    async with (
        serve(app) as url,
        console_dependencies(
            mongodb_url, amqp_url, database_prefix, NO_SERVICES | {"inventory": url}, clock=lambda: NOW
        ) as found,
    ):
        yield found


@pytest.fixture
async def pages(dependencies: ConsoleDependencies) -> AsyncIterator[httpx.AsyncClient]:
    async with pages_of(dependencies) as client:
        yield client


async def logged(dependencies: ConsoleDependencies, subject: str) -> list[tuple[str, str, str]]:
    """What the log says about a subject, the newest first, without what was started."""
    entries = (await list_actions(dependencies.operations, subject=subject)).items
    return [(entry["by"], entry["why"], entry["outcome"]) for entry in entries if entry["outcome"] != "started"]


async def test_a_restock_is_previewed_and_added_once(
    worker: Worker, dependencies: ConsoleDependencies, pages: httpx.AsyncClient
) -> None:
    await worker.stock({"p1": 36})
    form = await pages.get("/products/p1/restock")
    assert "36 units are free" in form.text

    preview = await pages.post("/products/p1/restock", data=hidden(form.text) | WHY | {"quantity": "20"})
    assert "36 free become 56" in preview.text
    assert await worker.free("p1") == 36

    # With another number than the preview said, it is previewed again.
    other = await pages.post("/products/p1/restock", data=hidden(preview.text) | WHY | {"quantity": "30"})
    assert "36 free become 66" in other.text
    for address, again in (("/inventory?product=p1", False), ("/inventory?product=p1&repeated=1", True)):
        added = await pages.post("/products/p1/restock", data=hidden(preview.text) | WHY | {"quantity": "20"})
        assert (added.status_code, added.headers["location"]) == (303, address)
        assert ("nothing was added now" in (await pages.get(address)).text) is again
    assert await worker.free("p1") == 56
    assert "There is no product <code>p9</code>" in (await pages.get("/inventory?product=p9")).text
    assert await logged(dependencies, "p1") == [
        (BY_ADMIN, WHY["why"], "20 units added before: this was sent twice"),
        (BY_ADMIN, WHY["why"], "20 units added"),
    ]


async def test_what_cannot_be_restocked_says_why(worker: Worker, pages: httpx.AsyncClient) -> None:
    await worker.stock({"p1": 1})
    await worker.stock_items.put_product("v1", Description(Kind.VPS, package="103.181.9"))
    for wrong in ("0", "-1", "many", "1.5", "1" * 14):
        refused = await pages.post("/products/p1/restock", data=WHY | {"quantity": wrong, "key": "a1"})
        assert refused.status_code == 422
        assert "units: must be a whole number" in refused.text
    assert (await pages.get("/products/v1/restock")).status_code == 409
    assert (await pages.get("/products/p9/restock")).status_code == 404
    viewer = bearer(KEYS[Role.VIEWER])
    assert (await pages.post("/products/p1/restock", data=WHY, headers=viewer)).status_code == 403
    assert await worker.free("p1") == 1


@pytest.mark.parametrize("slot", ["slot:253402300799", "slot:253402300798"])
async def test_beyond_the_end_of_the_calendar_there_is_no_slot(pages: httpx.AsyncClient, slot: str) -> None:
    shown = await pages.get(f"/slots/{slot}")
    assert (shown.status_code, "never booked" in shown.text) == (200, True)
    assert (await pages.get(f"/slots/{slot}/change")).status_code == 404


async def test_a_slot_is_seen_in_its_week_and_changed(
    worker: Worker, dependencies: ConsoleDependencies, pages: httpx.AsyncClient
) -> None:
    await worker.slot_rules(duration=60, capacity=500_00, opens=9 * 60, closes=17 * 60)
    await worker.assign("other-1", 120_00)
    week = (await pages.get("/slots")).text
    # From ten o'clock on the Wednesday: 7 slots of that day, and 8 of each of the four days after it.
    assert week.count('href="/slots/slot%3A') == 7 + 4 * 8
    assert "380 free" in week
    assert "120 of 500" in week
    assert 'href="/slots?week=2026-06-08"' in week
    assert "No slots in this week" in (await pages.get("/slots?week=2026-05-25")).text
    assert (await pages.get("/slots?week=soon")).status_code == 422

    ten = slot_id(TEN)
    shown = (await pages.get(f"/slots/{ten}")).text
    assert "120 of 500" in shown
    assert "other-1" in shown
    assert "500 of 500" not in shown
    assert "can be booked" in (await pages.get(f"/slots/{slot_id(TEN + timedelta(hours=1))}")).text

    form, address = await pages.get(f"/slots/{ten}/change"), f"/slots/{ten}/change"
    assert form.status_code == 200
    wanted = WHY | {"capacity": "100", "closed": "true"}
    preview = await pages.post(address, data=wanted)
    assert "Nothing is changed yet" in preview.text
    assert re.search(r'name="follow"[^>]* checked', form.text)
    same = await pages.post(address, data=WHY | {"capacity": "500", "follow": "true"})
    assert (same.status_code, "untick the capacity of the rules" in same.text) == (422, True)
    fixed = await pages.post(address, data=WHY | {"capacity": "500"})
    assert "Nothing is changed yet" in fixed.text, "it keeps the capacity when the rules change"
    assert (await pages.post(address, data=WHY | {"capacity": "-5"})).status_code == 422
    assert (await worker.stock_items.find_slot(ten)).disabled is False  # type: ignore[union-attr]

    done = await pages.post(address, data=hidden(preview.text) | wanted)
    assert (done.status_code, done.headers["location"]) == (303, f"/slots/{ten.replace(':', '%3A')}")
    changed = await worker.stock_items.find_slot(ten)
    assert changed is not None
    assert (changed.supplied, changed.disabled) == (100_00, True)
    assert ">closed</span>" in (await pages.get("/slots")).text
    # By now the slot is another one than the confirmed form was about.
    again = await pages.post(address, data=hidden(preview.text) | WHY | {"capacity": "100"})
    assert "no longer the one that you previewed" in again.text
    ((by, _, outcome),) = await logged(dependencies, ten)
    assert (by, outcome) == (BY_ADMIN, "capacity 500 (of the rules) to 100; bookings open to closed")


async def test_programs_restock_and_change_slots_over_the_operations_api(
    worker: Worker, dependencies: ConsoleDependencies, pages: httpx.AsyncClient
) -> None:
    await worker.stock({"p1": 3})
    for _ in range(2):
        headers = {"Idempotency-Key": "note-4711"}
        added = await pages.post("/api/v1/products/p1/restock", json=REASON | {"quantity": 4}, headers=headers)
        assert (added.status_code, added.headers["location"]) == (202, "/api/v1/products/p1")
    other = await pages.post("/api/v1/products/p1/restock", json=REASON | {"quantity": 5}, headers=headers)
    assert other.status_code == 422
    assert (await pages.post("/api/v1/products/p1/sale", json=REASON | {"onSale": False})).status_code == 202
    shown = (await pages.get("/api/v1/products/p1")).json()
    assert (shown["quantity"], shown["onSale"]) == (7, False)
    assert [item["productId"] for item in (await pages.get("/api/v1/products")).json()["items"]] == ["p1"]
    assert (await pages.get("/api/v1/products/p9")).status_code == 404
    assert (await pages.post("/api/v1/products/p9/restock", json=REASON | {"quantity": 4})).status_code == 404

    eleven = slot_id(TEN + timedelta(hours=1))
    changed = await pages.post(f"/api/v1/slots/{eleven}/change", json=REASON | {"capacity": 10.5, "disabled": True})
    assert changed.status_code == 202, changed.text
    found = (await pages.get(f"/api/v1/slots/{eleven}")).json()
    assert (found["capacity"], found["disabled"]) == (10.5, True)
    listed = (await pages.get("/api/v1/slots", params={"to": "2026-06-03T10:30:00Z"})).json()["items"]
    assert len(listed) == 2
    assert (await pages.post(f"/api/v1/slots/{eleven}/change", json=REASON)).status_code == 422
    assert (await pages.get("/api/v1/slots/slot:1")).status_code == 404
    viewer = bearer(KEYS[Role.VIEWER])
    refused = await pages.post("/api/v1/products/p1/restock", json=REASON | {"quantity": 4}, headers=viewer)
    assert refused.status_code == 403
