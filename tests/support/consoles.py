"""The console over real servers, for tests: its pages over HTTP, and dead letters as the broker would deliver them."""

import asyncio
import html
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from typing import Any

import httpx
import orjson
import pymongo
import uvicorn
from fastapi import FastAPI

from operations.console import ConsoleDependencies, ConsolePeople, Services, StackChecks
from operations.dead_letters.records import LetterRecords
from operations.dead_letters.service import DeadLetterService
from operations.routes import create_routes
from operations.sign_in.sessions import Sessions
from shared.bus import Delivery
from shared.bus.failures import dead_letter
from shared.clock import utc_now
from shared.database import Document
from shared.http import add_routes, create_app
from shared.services import CONSOLE, SERVICES
from shared.topology import DEAD_LETTERS, EXCHANGE
from tests.support.access import ADMIN, ADMIN_KEY, RING, key_authenticator
from tests.support.certificates import Pair

NOWHERE = "http://127.0.0.1:9"
"""Nothing listens there."""

NO_SERVICES = dict.fromkeys((name for name in SERVICES if name != CONSOLE.name), NOWHERE)
BASE = "http://127.0.0.1"
OURS = {"Sec-Fetch-Site": "same-origin"}
BY_ADMIN = f"{RING.records[ADMIN_KEY[4:12]].name} (key:{ADMIN_KEY[4:12]})"
"""Who did what the tests do with the key of an admin, in the log of actions."""


class Poison(Exception):  # noqa: N818 - as a service's own error might be called
    """The error that handlers raise in these tests."""


class Clock:
    """A clock that only moves when it is told to."""

    def __init__(self) -> None:
        self.now = datetime.now(UTC).replace(microsecond=0)

    def __call__(self) -> datetime:
        return self.now


@asynccontextmanager
async def console_dependencies(
    mongodb_url: str, amqp_url: str, prefix: str, urls: Mapping[str, str] = NO_SERVICES, **options: Any
) -> AsyncIterator[ConsoleDependencies]:
    """The dependencies of a console over these servers."""
    client = pymongo.AsyncMongoClient[Document](mongodb_url, tz_aware=True, w="majority")
    services = Services(urls, ADMIN_KEY)
    dependencies = ConsoleDependencies(client, prefix, mongodb_url, amqp_url, services, **options)
    try:
        yield dependencies
    finally:
        await dependencies.end_background_work()
        await services.close()
        await client.close()


@asynccontextmanager
async def pages_of(dependencies: ConsoleDependencies) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the console's pages, in this process; it posts like a page of the console."""
    transport = httpx.ASGITransport(an_app(dependencies))
    async with httpx.AsyncClient(transport=transport, base_url=BASE, headers=OURS | ADMIN) as client:
        yield client


@asynccontextmanager
async def served(dependencies: ConsoleDependencies) -> AsyncIterator[str]:
    """The URL of the console, for a browser."""
    async with serve(an_app(dependencies)) as url:
        yield url


@asynccontextmanager
async def serve(app: FastAPI, tls: Pair | None = None) -> AsyncIterator[str]:
    """Serve an application, and yield its URL."""
    config = uvicorn.Config(app, port=0, log_config=None, lifespan="off", ws="none")
    if tls is not None:
        config.ssl_certfile, config.ssl_keyfile = tls.certificate, tls.key
    server = uvicorn.Server(config)
    socket = server.config.bind_socket()
    serving = asyncio.create_task(server.serve(sockets=[socket]))
    try:
        yield f"{'https' if tls else 'http'}://127.0.0.1:{socket.getsockname()[1]}"
    finally:
        server.should_exit = True
        await serving
        socket.close()


def an_app(dependencies: ConsoleDependencies) -> FastAPI:
    """The console in an application like that of its process."""

    async def ready() -> dict[str, str]:
        return {}

    sessions = Sessions(dependencies.operations, dependencies.session_limits, dependencies.clock)
    people = ConsolePeople(sessions, dependencies.proxy, dependencies.public_url)
    app = create_app("console", "The console", ready, authenticator=key_authenticator(), pages=True, people=people)
    add_routes(app.router, create_routes(dependencies, sessions, StackChecks(dependencies)))
    return app


async def record_letters(dependencies: ConsoleDependencies, *deliveries: Delivery, now: datetime | None = None) -> None:
    """Record dead letters, as the ingest does."""
    await DeadLetterService(dependencies.operations).prepare()
    await LetterRecords(dependencies.operations).record(deliveries, now or utc_now())


def hidden(page: str) -> dict[str, str]:
    """The hidden fields of the forms on a page."""
    found = re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)">', page)
    return {name: html.unescape(value) for name, value in found}


async def act_on_group(pages: httpx.AsyncClient, act: str, group: str, **data: str) -> httpx.Response:
    """Confirm an act on all dead letters of a group, with what else the form has; return the answer."""
    address = f"/dead-letters/many/{act}"
    asked = await pages.get(address, params={"matching": "1", "status": "dead", "group": group})
    if asked.status_code != HTTPStatus.OK:
        return asked
    return await pages.post(address, data=hidden(asked.text) | data)


def a_letter(
    order_id: str,
    error: str = "Insufficient reason for 12",
    *,
    body: bytes | None = None,
    queue: str = "inventory.inbox",
    routing_key: str = "order.created",
    ago: timedelta = timedelta(),
    now: datetime | None = None,
) -> Delivery:
    """A delivery of the dead-letter queue: what a service publishes when a handler fails with that error."""
    content = body if body is not None else orjson.dumps({"orderId": order_id, "userId": "u1"})
    failed = Delivery(
        body=content,
        queue=queue,
        exchange=EXCHANGE,
        routing_key=routing_key,
        type=routing_key,
        correlation_id=order_id,
        message_id=f"m-{order_id}",
        redelivered=False,
        headers={},
        receipt=None,
    )
    letter = dead_letter(failed, _raised(error), (now or utc_now()) - ago)
    return Delivery(
        body=letter.body,
        queue=DEAD_LETTERS,
        exchange=DEAD_LETTERS,
        routing_key=letter.routing_key,
        type=letter.type,
        correlation_id=letter.correlation_id,
        message_id=letter.message_id,
        redelivered=False,
        headers=letter.headers,
        receipt=None,
    )


def _raised(message: str) -> Poison:
    """An error with a traceback."""
    try:
        _fail(message)
    except Poison as error:
        return error
    raise AssertionError("it did not fail")


def _fail(message: str) -> None:
    raise Poison(message)
