"""With RabbitMQ and MongoDB away, no answer of any service has an address, a time-out or a driver's text in it."""

import asyncio
import re
from collections.abc import AsyncIterator, Iterator, Sequence
from functools import partial

import httpx
import pytest
from yarl import URL

from shared.services import CONSOLE, SERVICES
from tests.support.builders import order_body
from tests.support.eventually import eventually
from tests.support.processes import Stack, run_stack
from tests.support.proxy import Proxy
from tests.support.servers import Servers, delete_topology

KEY = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="
PAGES: tuple[str, ...] = (
    "/",
    "/orders",
    "/orders/o1",
    "/dead-letters",
    "/dead-letters/list",
    "/dead-letters/replays",
    "/inventory",
)
PAGES += (
    "/packages",
    "/consumers",
    "/webhooks",
    "/audit",
    "/approvals",
    "/actions",
    "/overview",
    "/dead-letters/letters/x1",
)

FORBIDDEN = re.compile(
    r"127\.0\.0\.1|localhost|errno|\w+(Error|Exception|Timeout)\b|pymongo|aiormq|aio_pika|httpx|configured timeouts"
    r"|topology description|(within|after) [\d.]+ ?m?s\b",
    re.IGNORECASE,
)
PLACEHOLDER = re.compile(r'placeholder="[^"]*"')
"""An example in a form, which may be the name of an error."""

AT_ONCE = 6
"""Requests."""
PATIENCE = 120
"""Seconds that an answer may take on a loaded machine: a page waits for several servers, one after another."""

METRICS = "/metrics"
"""Its samples have names of classes as labels; it answers only to keys for monitoring."""


@pytest.fixture
async def database(servers: Servers) -> AsyncIterator[Proxy]:
    direct = URL(servers.mongodb_url).update_query(directConnection="true").without_query_params("replicaSet")
    async with Proxy(direct).open() as proxy:
        yield proxy


@pytest.fixture
async def broker(servers: Servers) -> AsyncIterator[Proxy]:
    async with Proxy(URL(servers.amqp_url)).open() as proxy:
        yield proxy


@pytest.fixture
async def stack(servers: Servers, database: Proxy, broker: Proxy, unique_id: str) -> AsyncIterator[Stack]:
    keys = {"credentials_key": KEY, "webhook_key": KEY}
    async with run_stack(str(database.url), str(broker.url), f"t{unique_id}", **keys) as running:
        await running.start(*SERVICES)
        yield running
    await delete_topology(servers.amqp_url)


async def test_answers_during_an_outage_are_in_words(stack: Stack, database: Proxy, broker: Proxy) -> None:
    requests = [request async for request in every_request(stack)]
    for proxy, server in ((broker, "rabbitmq"), (database, "mongodb")):
        await proxy.die()
        for name in SERVICES:
            await eventually(partial(is_down, stack, name, server), 60, f"{name} to miss {server}")
        answers = await answers_to(stack.client, requests)
        unfit = [(str(answer.url), found) for answer in answers if (found := what_is_not_for_clients(answer.text))]
        assert unfit == [], server
        refused = [answer for answer in answers if answer.status_code == httpx.codes.SERVICE_UNAVAILABLE]
        assert server == "rabbitmq" or len(refused) > len(answers) / 2


async def answers_to(client: httpx.AsyncClient, requests: Sequence["Request"]) -> list[httpx.Response]:
    """The answers to all requests, several at once: some wait for a server until their time is over."""
    gate = asyncio.Semaphore(AT_ONCE)

    async def send(request: Request) -> httpx.Response:
        async with gate:
            return await client.send(request())

    return await asyncio.gather(*map(send, requests))


def what_is_not_for_clients(text: str) -> str | None:
    """Return the first forbidden thing in the body of an answer, with what is around it."""
    text = PLACEHOLDER.sub("", text)
    found = FORBIDDEN.search(text)
    return text[max(0, found.start() - 200) : found.end() + 200] if found else None


async def is_down(stack: Stack, service: str, server: str) -> bool:
    body = (await stack.client.get(f"{stack.url(service)}/readyz")).json()
    return server in body.get("down", {})


async def every_request(stack: Stack) -> AsyncIterator["Request"]:
    for name in SERVICES:
        document = (await stack.client.get(f"{stack.url(name)}/openapi.json")).json()
        for method, path in routes(document):
            yield Request(stack.client, method, stack.url(name) + path, None if method == "GET" else {})
    for page in PAGES:
        yield Request(stack.client, "GET", stack.url(CONSOLE.name) + page, None)
    yield Request(stack.client, "POST", f"{stack.url('order')}/orders", order_body())


def routes(document: dict[str, dict[str, dict[str, object]]]) -> Iterator[tuple[str, str]]:
    for template, methods in document["paths"].items():
        if template != METRICS:
            path = re.sub(r"\{\w+\}", "x1", template)
            yield from ((method.upper(), path) for method in methods)


class Request:
    """A request that can be sent again."""

    def __init__(self, client: httpx.AsyncClient, method: str, url: str, body: object) -> None:
        self._client, self._method, self._url, self._body = client, method, url, body

    def __call__(self) -> httpx.Request:
        return self._client.build_request(self._method, self._url, json=self._body, timeout=PATIENCE)
