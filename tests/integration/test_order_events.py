"""Event streams of orders, spoken to by ASGI: a client can go away at any moment, also before the first byte."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.types import Message
from yarl import URL

from order_service import event_stream
from order_service.api import create_router
from order_service.event_stream import EventStream, Subscribers
from order_service.order import HistoryEntry, Status
from order_service.orders import COLLECTION, Change, NewRecord, Orders
from shared import database
from shared.access.principal import EVERYTHING
from shared.http import ProblemError
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
def subscribers(monkeypatch: pytest.MonkeyPatch) -> Subscribers:
    monkeypatch.setattr(event_stream, "MAX_SUBSCRIBERS", LIMIT)
    return Subscribers()


class Client:
    """One request for a stream; `status` and `body` are what has been answered so far."""

    def __init__(self, orders: Orders, subscribers: Subscribers, order_id: str, seen: int = 0) -> None:
        self.status: int | None = None
        self.body = b""
        self._gone = asyncio.Event()
        stream = EventStream(orders, subscribers, order_id, seen, EVERYTHING)
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


async def streams_left(orders: Orders, subscribers: Subscribers, order_id: str) -> int:
    """Return how many of twice as many clients as allowed get a stream."""
    clients = [Client(orders, subscribers, order_id) for _ in range(2 * LIMIT)]
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
    orders: Orders, subscribers: Subscribers
) -> None:
    order_id = await new_order(orders)
    assert await streams_left(orders, subscribers, order_id) == LIMIT
    assert await streams_left(orders, subscribers, order_id) == LIMIT, "those that left are no longer counted"


async def test_a_client_that_leaves_before_the_first_byte_is_no_longer_counted(
    orders: Orders, subscribers: Subscribers
) -> None:
    order_id = await new_order(orders)
    gone = [Client(orders, subscribers, order_id) for _ in range(LIMIT)]
    for client in gone:
        client.goes_away()
    await asyncio.gather(*(client.request for client in gone))
    unknown = [Client(orders, subscribers, "nobody") for _ in range(LIMIT)]
    problems = await asyncio.gather(*(client.request for client in unknown), return_exceptions=True)
    assert [getattr(problem, "status", None) for problem in problems] == [404] * LIMIT
    cancelled = [Client(orders, subscribers, order_id) for _ in range(LIMIT)]
    await eventually(lambda: all(client.body for client in cancelled), 30)
    await end_tasks(*(client.request for client in cancelled))
    assert await streams_left(orders, subscribers, order_id) == LIMIT


async def test_a_settled_order_is_sent_to_its_end_once_and_then_answered_with_204(
    orders: Orders, subscribers: Subscribers
) -> None:
    """A browser opens an ended stream again with the number of its last event: 204 makes it stop."""
    order_id = await new_order(orders, status=Status.CANCELLED, settled=True)
    first = Client(orders, subscribers, order_id)
    await first.request
    assert (first.status, first.body.count(b"id: ")) == (200, 1)
    again = Client(orders, subscribers, order_id, seen=1)
    await again.request
    assert (again.status, again.body) == (204, b"")


async def test_a_client_that_has_seen_all_of_an_unsettled_order_waits_for_more(
    orders: Orders, subscribers: Subscribers
) -> None:
    order_id = await new_order(orders)
    client = Client(orders, subscribers, order_id, seen=1)
    await eventually(lambda: client.status, 30)
    order = (await orders.load([order_id]))[order_id]
    settled = an_order(order_id=order_id, status=Status.CANCELLED, settled=True, now=order.created_at)
    entry = HistoryEntry(order.created_at, "order.cancel_requested", Status.CANCELLED)
    assert await orders.apply([Change(order, settled, (entry,))])
    await client.request
    assert client.status == 200
    assert client.body.startswith(b"id: 2\nevent: order.cancel_requested\n")


async def test_a_stream_outlives_an_outage_of_the_database(
    orders: Orders, subscribers: Subscribers, mongodb_url: str, database_prefix: str, monkeypatch: pytest.MonkeyPatch
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
        client = Client(behind_proxy, subscribers, order_id)
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
    app.include_router(create_router(orders, nothing, nothing, nothing, nothing))
    answers = app.openapi()["paths"]["/orders/{order_id}/events"]["get"]["responses"]
    assert answers["200"]["content"].keys() == {"text/event-stream"}
    assert "content" not in answers["204"]
    assert "429" in answers
