"""What is recorded of requests, over HTTP: writes by staff, refusals, and nothing of those who act for themselves."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from structlog.testing import capture_logs

from shared import audit_log
from shared.access.middleware import requires
from shared.access.permissions import Permission, Role
from shared.audit_chain import Verification
from shared.audit_log import COLLECTION, REFUSALS_PER_MINUTE, AuditLog, append_all, new_entry
from shared.database import Database, Document
from shared.http import add_routes, create_app, new_router
from shared.schema import prepare
from tests.support.access import RING, bearer, key_authenticator
from tests.support.builders import connected

pytestmark = pytest.mark.both_databases

ADMIN, CLIENT, VIEWER = (RING.add(role, "shop") for role in (Role.ADMIN, Role.CLIENT, Role.VIEWER))


@pytest.fixture
async def database(mongodb_url: str, database_prefix: str) -> AsyncIterator[Database]:
    async with connected(mongodb_url, f"{database_prefix}_orders") as opened:
        await prepare(opened, {COLLECTION: audit_log.SCHEMA})
        yield opened


@pytest.fixture
async def client(database: Database) -> AsyncIterator[httpx.AsyncClient]:
    async def ready() -> dict[str, str]:
        return {}

    router = new_router("things")

    @router.post("/things/{thing_id}")
    @requires(Permission.ORDERS_CANCEL)
    async def change(thing_id: str) -> str:
        return thing_id

    @router.post("/orders")
    @requires(Permission.ORDERS_PLACE)
    async def place() -> str:
        return "placed"

    @router.post("/broken")
    @requires(Permission.ORDERS_DECIDE)
    async def fail() -> str:
        raise RuntimeError("a defect")

    app = create_app("test", "A test", ready, authenticator=key_authenticator(), audit=AuditLog(database))
    add_routes(app.router, router)
    transport = httpx.ASGITransport(app, client=("203.0.113.9", 1), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as opened:
        yield opened


async def entries(database: Database) -> list[Document]:
    return await database[COLLECTION].find(sort=[("seq", 1)]).to_list()


async def test_a_write_by_staff_is_an_entry_with_who_what_why_and_the_outcome(
    client: httpx.AsyncClient, database: Database
) -> None:
    headers = bearer(ADMIN) | {"Ordersaga-Reason": "ticket 4711", "X-Request-Id": "r-1"}
    answer = await client.post("/things/t1", headers=headers)
    assert answer.headers["x-request-id"] == "r-1"
    (entry,) = await entries(database)
    assert (entry["by"], entry["why"], entry["outcome"]) == (f"key:{ADMIN[4:12]}", "ticket 4711", "200")
    assert (entry["requestId"], entry["address"]) == ("r-1", "203.0.113.9")
    assert ADMIN[13:56] not in str(entry)


async def test_a_write_that_ends_in_a_defect_is_recorded_too(client: httpx.AsyncClient, database: Database) -> None:
    assert (await client.post("/broken", headers=bearer(ADMIN))).status_code == 500
    assert [entry["outcome"] for entry in await entries(database)] == ["500"]


@pytest.mark.parametrize(
    ("method", "path", "key"),
    [("POST", "/things/t1", CLIENT), ("POST", "/orders", CLIENT), ("POST", "/orders", ADMIN), ("GET", "/me", ADMIN)],
    ids=["a client's own write", "a client's order", "an admin's order", "a read"],
)
async def test_what_leaves_records_of_its_own_or_changes_nothing_is_no_entry(
    client: httpx.AsyncClient, database: Database, method: str, path: str, key: str
) -> None:
    assert (await client.request(method, path, headers=bearer(key))).status_code == 200
    assert await entries(database) == []


async def test_a_stranger_cannot_fill_the_database_but_is_in_the_log(
    client: httpx.AsyncClient, database: Database
) -> None:
    with capture_logs() as lines:
        for _ in range(5):
            assert (await client.post("/things/t1", headers=bearer("osk_wrong"))).status_code == 401
    refused = [line for line in lines if line["event"] == "audit: refused"]
    assert [line["outcome"] for line in refused] == ["401"] * 5
    assert "osk_wrong" not in str(lines)
    assert await entries(database) == []


async def test_a_flood_of_refusals_is_summed_up(client: httpx.AsyncClient, database: Database) -> None:
    """Two minutes may be touched, each of which lets its share through."""
    for _ in range(3 * REFUSALS_PER_MINUTE):
        assert (await client.post("/things/t1", headers=bearer(VIEWER))).status_code == 403
    assert REFUSALS_PER_MINUTE <= len(await entries(database)) <= 2 * REFUSALS_PER_MINUTE


@pytest.mark.parametrize("given", ["", "x" * 65, "a b", "é".encode()])
async def test_a_strange_request_id_is_replaced(client: httpx.AsyncClient, given: str | bytes) -> None:
    headers: Any = [("Authorization", f"Bearer {ADMIN}"), ("X-Request-Id", given)]
    answered = (await client.get("/me", headers=headers)).headers["x-request-id"]
    assert len(answered) == 16
    assert answered != given


async def test_entries_of_concurrent_requests_are_one_chain(client: httpx.AsyncClient, database: Database) -> None:
    await asyncio.gather(*(client.post(f"/things/t{number}", headers=bearer(ADMIN)) for number in range(60)))
    found = await entries(database)
    assert [entry["seq"] for entry in found] == list(range(1, 61))
    chain = Verification()
    for entry in found:
        chain.add(entry)
    assert chain.breaks == []


def some(number: int) -> list[Document]:
    return [new_entry(by="ann", why=None, action="a", subject=str(one), outcome="done") for one in range(number)]


async def test_groups_of_several_processes_neither_fork_nor_lose(database: Database) -> None:
    written = await asyncio.gather(*(append_all(database, some(7)) for _ in range(12)))
    found = await entries(database)
    assert {entry["_id"] for entry in found} == {entry["_id"] for group in written for entry in group}
    chain = Verification()
    for entry in found:
        chain.add(entry)
    assert (chain.count, chain.breaks) == (84, [])


async def test_a_chain_that_several_commands_begin_at_once_does_not_fork(
    mongodb_url: str, database_prefix: str
) -> None:
    """Nothing has prepared the database, as where no console has ever run."""
    async with connected(mongodb_url, f"{database_prefix}_unprepared") as database:
        await asyncio.gather(*(append_all(database, some(1)) for _ in range(10)))
        assert [entry["seq"] for entry in await entries(database)] == list(range(1, 11))
