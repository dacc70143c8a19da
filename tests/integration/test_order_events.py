"""Event streams of orders, spoken to by ASGI: a client can go away at any moment, also before the first byte."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.types import Message
from yarl import URL

from order_service import event_stream, following
from order_service.api import create_router
from order_service.event_stream import EventStream
from order_service.following import Followers
from order_service.order import HistoryEntry, Status
from order_service.orders import COLLECTION, Change, NewRecord, Orders
from order_service.views import HistoryView
from shared import database
from shared.access.principal import EVERYTHING
from shared.http import ProblemError, add_routes
from shared.settings import ServiceSettings
from tests.support.builders import an_order, connected
from tests.support.eventually import eventually
from tests.support.proxy import Proxy
from tests.support.tasks import end_tasks

LIMIT = 3
STILL_HERE = b": still here\n\n"


@pytest.fixture
async def orders(mongodb_url: str, database_prefix: str) -> AsyncIterator[Orders]:
    async with connected(mongodb_url, f"{database_prefix}_orders") as database:
        yield Orders(database[COLLECTION])


@pytest.fixture
def followers(orders: Orders, monkeypatch: pytest.MonkeyPatch) -> Followers:
    monkeypatch.setattr(following, "MAX_FOLLOWERS", LIMIT)
    return Followers(orders)


class Client:
    """One request for a stream; `status` and `body` are what has been answered so far."""

    def __init__(self, followers: Followers, order_id: str, seen: int = 0) -> None:
        self.status: int | None = None
        self.body = b""
        self._gone = asyncio.Event()
        stream = EventStream(followers, order_id, seen, EVERYTHING)
        self.request = asyncio.create_task(stream({"type": "http"}, self._receive, self._send))

    def goes_away(self) -> None:
        self._gone.set()

    async def _receive(self) -> Message:
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        self.body += message.get("body", b"")


async def new_order(orders: Orders, **changes: Any) -> str:
    order = an_order(**changes)
    assert await orders.insert([NewRecord(order)]) == set()
    return order.order_id


async def streams_left(followers: Followers, order_id: str) -> int:
    """Return how many of twice as many clients as allowed get a stream."""
    clients = [Client(followers, order_id) for _ in range(2 * LIMIT)]
    await eventually(lambda: all(client.body or client.request.done() for client in clients), 30)
    refused = [client for client in clients if client.request.done()]
    for client in refused:
        problem = client.request.exception()
        assert isinstance(problem, ProblemError)
        assert problem.status == 429
    for client in clients:
        client.goes_away()
    await asyncio.gather(*(client.request for client in clients if client not in refused))
    return len(clients) - len(refused)


async def test_of_many_clients_at_once_no_more_than_the_limit_get_a_stream(
    orders: Orders, followers: Followers
) -> None:
    order_id = await new_order(orders)
    assert await streams_left(followers, order_id) == LIMIT
    assert await streams_left(followers, order_id) == LIMIT, "those that left are no longer counted"


async def test_a_client_that_leaves_before_the_first_byte_is_no_longer_counted(
    orders: Orders, followers: Followers
) -> None:
    order_id = await new_order(orders)
    gone = [Client(followers, order_id) for _ in range(LIMIT)]
    for client in gone:
        client.goes_away()
    await asyncio.gather(*(client.request for client in gone))
    unknown = [Client(followers, "nobody") for _ in range(LIMIT)]
    problems = await asyncio.gather(*(client.request for client in unknown), return_exceptions=True)
    assert [getattr(problem, "status", None) for problem in problems] == [404] * LIMIT
    cancelled = [Client(followers, order_id) for _ in range(LIMIT)]
    await eventually(lambda: all(client.body for client in cancelled), 30)
    await end_tasks(*(client.request for client in cancelled))
    assert await streams_left(followers, order_id) == LIMIT


async def test_a_settled_order_is_sent_to_its_end_once_and_then_answered_with_204(
    orders: Orders, followers: Followers
) -> None:
    """A browser opens an ended stream again with the number of its last event: 204 makes it stop."""
    order_id = await new_order(orders, status=Status.CANCELLED, settled=True, failure_reason="The card was declined")
    first = Client(followers, order_id)
    await first.request
    assert first.body.startswith(b"retry: 2000\n\nid: 1\nevent: order.created\n")
    last = first.body.split(b"\n\n")[-2]
    name, _, data = last.removeprefix(b"event: ").partition(b"\ndata: ")
    assert name == b"settled", "the last event has no id, so the number of the last entry stays"
    shown = HistoryView.model_validate_json(data)
    assert (shown.event, shown.status, shown.message) == ("settled", "CANCELLED", "The card was declined")
    assert (first.status, first.body.count(b"id: ")) == (200, 1)
    again = Client(followers, order_id, seen=1)
    await again.request
    assert (again.status, again.body) == (204, b"")


async def test_a_client_that_has_seen_all_of_an_unsettled_order_waits_for_more(
    orders: Orders, followers: Followers
) -> None:
    order_id = await new_order(orders)
    client = Client(followers, order_id, seen=1)
    await eventually(lambda: client.status, 30)
    order = (await orders.load([order_id]))[order_id]
    settled = an_order(order_id=order_id, status=Status.CANCELLED, settled=True, now=order.created_at)
    entry = HistoryEntry(order.created_at, "order.cancel_requested", Status.CANCELLED)
    assert await orders.apply([Change(order, settled, (entry,))])
    await client.request
    assert client.status == 200
    assert b"\n\nid: 2\nevent: order.cancel_requested\n" in client.body
    assert b"\n\nevent: settled\n" in client.body


async def test_a_process_that_stops_ends_its_streams_and_the_client_comes_again(
    orders: Orders, followers: Followers
) -> None:
    client = Client(followers, await new_order(orders))
    await eventually(lambda: client.body, 30)
    followers.stop()
    await client.request
    assert client.status == 200
    assert b"event: settled" not in client.body


async def test_a_stream_outlives_an_outage_of_the_database(
    orders: Orders, mongodb_url: str, database_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_stream, "KEEPALIVE_SECONDS", 0)  # a comment after every poll of the order
    order_id = await new_order(orders)
    async with AsyncExitStack() as stack:
        url = URL(mongodb_url).update_query(directConnection="true")
        proxy = await stack.enter_async_context(Proxy(url).open())
        mongo = database.client(ServiceSettings(mongodb_url=str(proxy.url), database_timeout_seconds=3))
        stack.push_async_callback(database.close, mongo)
        behind_proxy = Orders(mongo[f"{database_prefix}_orders"][COLLECTION])
        await eventually(lambda: behind_proxy.document(order_id), 60)
        client = Client(Followers(behind_proxy), order_id)
        await eventually(lambda: client.body, 30)
        proxy.carrying.clear()
        before = client.body.count(STILL_HERE)
        await eventually(lambda: client.request.done() or client.body.count(STILL_HERE) >= before + 2, 60)
        assert not client.request.done()
        client.goes_away()
        await client.request


def test_the_description_says_what_a_stream_answers(orders: Orders) -> None:
    nothing: Any = None
    app = FastAPI()
    add_routes(app.router, create_router(orders, nothing, nothing, nothing, nothing, Followers(orders)))
    answers = app.openapi()["paths"]["/orders/{order_id}/events"]["get"]["responses"]
    assert answers["200"]["content"].keys() == {"text/event-stream"}
    assert "HistoryView" in app.openapi()["components"]["schemas"]
    assert "content" not in answers["204"]
    assert "429" in answers
