"""No credential of a caller is written anywhere: many requests, and then a look at all that the stack has put out.

`make test-seeds` sends 10,000.
"""

import asyncio
import re
import secrets
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import aio_pika
import httptools
import pymongo
import pytest
from bson.raw_bson import RawBSONDocument

from shared import topology
from shared.access.keys import new_key
from shared.access.permissions import Role
from tests.end_to_end.test_tracing import Collector, collector
from tests.support.access import ADMIN_KEY, KEYS, RING, keys_file
from tests.support.builders import order_body
from tests.support.eventually import eventually
from tests.support.issuers import AUDIENCE, WRONG, MockIssuer, run_issuer
from tests.support.processes import Stack, run_stack
from tests.support.seeds import IS_LONG_FORM
from tests.support.servers import Servers, delete_topology, drop_databases

__all__ = ["collector"]  # a fixture, used by name

REQUESTS = 10_000 if IS_LONG_FORM else 2_000
"""The shorter form still sends each credential to each path, with it in the query as well."""
AT_ONCE = 16
"""Requests that are sent before an answer is read: as many as a service takes."""
SERVICES = ("order", "inventory", "payment", "console")
PATHS = {
    "order": ("/me", "/orders?limit=1", "/orders/unknown", "/metrics"),
    "inventory": ("/me", "/products/p1", "/nothing", "/inventory?limit=1"),
    "payment": ("/me", "/payments?limit=1", "/api/retainers/unknown", "/api/ledger?limit=0"),
    "console": ("/me", "/dead-letters", "/orders/unknown", "/actions"),
}


@dataclass
class Answers:
    """Reads the answers on one connection."""

    statuses: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.parser = httptools.HttpResponseParser(self)

    def on_message_complete(self) -> None:
        self.statuses.append(self.parser.get_status_code())


async def send(url: str, requests: Sequence[bytes]) -> list[int]:
    """Send requests over one connection; return the statuses of the answers."""
    address = urlsplit(url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    answers = Answers()
    for start in range(0, len(requests), AT_ONCE):
        writer.write(b"".join(requests[start : start + AT_ONCE]))
        while len(answers.statuses) < min(start + AT_ONCE, len(requests)):
            received = await reader.read(1 << 16)
            assert received, "the service closed the connection"
            answers.parser.feed_data(received)
    writer.close()
    return answers.statuses


def request(path: str, *headers: str) -> bytes:
    return "\r\n".join([f"GET {path} HTTP/1.1", "Host: 127.0.0.1", *headers, "", ""]).encode()


def credentials(issuer: MockIssuer) -> Iterator[tuple[str, str]]:
    """Yield credentials of every kind, each with its secret part: valid, wrong, and where none is expected."""
    expired = RING.records[KEYS[Role.VIEWER][4:12]]
    for key in {*KEYS.values(), new_key()[0], f"{ADMIN_KEY[:-50]}{new_key()[0][-50:]}", f"{expired.id}"}:
        yield f"Authorization: Bearer {key}", key[13:56]
    tokens = [issuer.token(algorithm, key_id) for algorithm, key_id in (("ES256", "ec"), ("RS256", "rsa"))]
    for token in [*tokens, issuer.token(roles=["operator"], sub="ops"), *(make(issuer) for make, _ in WRONG.values())]:
        yield f"Authorization: Bearer {token}", max(token.split("."), key=len)
        yield f"Authorization: Bearer {token}", token.rpartition(".")[2]
    for name in ("X-Api-Key: ", "Cookie: ordersaga=", "Authorization: Basic ", "Ordersaga-Acts-For: "):
        secret = secrets.token_urlsafe(32)
        yield f"{name}{secret}", secret


@pytest.fixture
async def issuer() -> AsyncIterator[MockIssuer]:
    async with run_issuer() as running:
        yield running


@pytest.fixture
async def stack(
    servers: Servers, collector: tuple[Collector, str], issuer: MockIssuer, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Stack]:
    """All processes that answer over HTTP, with everything on that writes something down."""
    settings: dict[str, Any] = {
        "tracing": "otlp",
        "log_level": "DEBUG",
        "auth": "keys,oidc",
        "oidc_issuer": issuer.url,
        "oidc_audience": AUDIENCE,
        "auth_failure_limit": "1000000/minute",
        "api_key": ADMIN_KEY,
    }
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector[1])
    prefix = f"t{secrets.token_hex(8)}"
    await delete_topology(servers.amqp_url)
    async with run_stack(servers.mongodb_url, servers.amqp_url, prefix, **settings) as running:
        await running.start(*SERVICES)
        yield running
    await delete_topology(servers.amqp_url)
    await drop_databases(servers.mongodb_url, prefix)


@pytest.mark.long_form
async def test_no_log_trace_message_record_metric_or_process_list_has_a_credential(
    stack: Stack, collector: tuple[Collector, str], issuer: MockIssuer
) -> None:
    await stack.stock("p1", 1000)
    given = list(credentials(issuer))
    needles = {secret for _, secret in given if len(secret) >= 8} | {ADMIN_KEY[13:56]}
    connection = await aio_pika.connect(stack.amqp_url)
    async with connection:
        channel = await connection.channel()
        copies = await channel.declare_queue(exclusive=True)
        await copies.bind(topology.EXCHANGE, "#")
        needles |= await sign_in(stack)
        order_ids = [await place(stack, header) for header, _ in given if "Bearer" in header]
        for order_id in filter(None, order_ids):
            await stack.settled(order_id)
        statuses = [status for service in SERVICES for status in await flood(stack, service, given)]
        messages = [message async for message in drained(copies)]
    assert len(statuses) >= REQUESTS
    assert {200, 401, 403, 404, 422} <= set(statuses), set(statuses)
    assert any(order_ids)
    assert messages

    await eventually(lambda: len(collector[0].spans) > 100, 60, "spans to arrive")
    written = {
        "logs": "".join(line for process in stack._processes for line in process.output).encode(),
        "traces": "".join(str(span) for _, span in collector[0].spans).encode(),
        "messages": b"".join(messages),
        "records": await records(stack),
        "metrics": b"".join([(await stack.client.get(f"{stack.url(name)}/metrics")).content for name in SERVICES]),
        "process list": b"".join(path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()),
        "keys file": keys_file().read_bytes(),
    }
    assert b"request answered" in written["logs"], "the level is not DEBUG"
    assert all(written.values())
    found = {name for name, content in written.items() for needle in needles if needle.encode() in content}
    assert not found
    assert keys_file().stat().st_mode & 0o777 == 0o600


async def flood(stack: Stack, service: str, given: Sequence[tuple[str, str]]) -> list[int]:
    """Send a quarter of the requests to a service: each credential on each path, also in the query."""
    paths = PATHS[service]
    wanted = -(-REQUESTS // len(SERVICES))
    requests = []
    for number in range(wanted):
        header, secret = given[number % len(given)]
        path = paths[number // len(given) % len(paths)]
        if number % 7 == 0:
            path += f"{'&' if '?' in path else '?'}access_token={secret}"
        requests.append(request(path, header))
    return await send(stack.url(service), requests)


async def place(stack: Stack, header: str) -> str | None:
    """Place an order with a credential; return its id if it was accepted."""
    name, _, value = header.partition(": ")
    answer = await stack.client.post(f"{stack.url('order')}/orders", json=order_body(), headers={name: value})
    return str(answer.json()["orderId"]) if answer.status_code == 202 else None


async def sign_in(stack: Stack) -> set[str]:
    """Sign a person in to the console by a link; return the secrets of the link and of the session."""
    base = stack.url("console")
    ours = {"Origin": base}
    made = await stack.client.post(f"{base}/sign-in/links", json={"name": "ann", "role": "viewer"}, headers=ours)
    assert made.status_code == 201, made.text
    token = parse_qs(urlsplit(made.json()["path"]).query)["token"][0]
    await stack.client.get(base + made.json()["path"])
    answer = await stack.client.post(f"{base}/sign-in/link", data={"token": token}, headers=ours)
    session = re.search(r"ordersaga=([^;]+)", answer.headers.get("set-cookie", ""))
    assert session, answer.text
    await stack.client.get(base, headers={"Cookie": f"ordersaga={session[1]}", "Accept": "text/html"})
    stack.client.cookies.clear()
    return {token, session[1]}


async def drained(queue: aio_pika.abc.AbstractQueue) -> AsyncIterator[bytes]:
    """Yield the headers and bodies of the messages in a queue."""
    while (message := await queue.get(no_ack=True, fail=False)) is not None:
        yield repr(message.info()).encode() + message.body


async def records(stack: Stack) -> bytes:
    """Return every document of the stack's databases, as it is stored."""
    parts: list[bytes] = []
    async with pymongo.AsyncMongoClient[RawBSONDocument](stack.mongodb_url, document_class=RawBSONDocument) as client:
        for database in await client.list_database_names():
            if database.startswith(f"{stack.database_prefix}_"):
                for collection in await client[database].list_collection_names():
                    parts += [bytes(document.raw) async for document in client[database][collection].find()]
    return b"".join(parts)
