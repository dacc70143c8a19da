"""The table of attacks on a running stack: hostile connections, bodies, messages, forms, parameters and headers.

Adding an attack is one entry in ROWS. Each returns its outcomes, counted: statuses, or a word for what else
happened. `benchmarks.attack` runs them and judges the state of the stack meanwhile.
"""

import asyncio
import base64
import contextlib
import json
import random
import socket
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import aio_pika

from shared.topology import INBOXES, MAX_MESSAGE_BYTES

Outcome = Counter[str]
"""Counts by outcome: a status, or one of the words below."""

TRY_AGAIN = "503, try again"
"""A 503 that says when to come back (Retry-After)."""
CLOSED = "closed"
NO_ANSWER = "no answer"
LEFT_OPEN = "left open"
SWALLOWED = "swallowed whole"
NOT_TAKEN = "left in the queue"
TAKEN = "taken"
GOOD = (CLOSED, TAKEN)
"""Outcomes other than answers: a closed connection, a message taken out of its queue."""

ANSWER_SECONDS = 20.0
HEAD_SECONDS = 14.0
"""Seconds within which a service must close a connection without a head; the limit is 10 s."""
BODY_SECONDS = 35.0
"""Seconds within which a service must close a connection without a body; the limit is 30 s."""
MIB = 1 << 20


@dataclass(frozen=True)
class Target:
    """The stack that is attacked: its services' addresses, its broker, and an order in it."""

    urls: Mapping[str, str]
    amqp_url: str
    order_id: str


@dataclass(frozen=True)
class Row:
    """One attack; with `limited`, services may answer that they are overloaded (503 with Retry-After)."""

    name: str
    attack: Callable[[Target], Awaitable[Outcome]]
    limited: bool = False


# --- Connections. ---


async def _connect(url: str, receive_buffer: int = 0) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect; with a small receive buffer, what is not read stays with the server."""
    address = urlsplit(url)
    connection = socket.socket()
    if receive_buffer:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    connection.setblocking(False)
    await asyncio.get_running_loop().sock_connect(connection, (address.hostname, address.port))
    return await asyncio.open_connection(sock=connection, limit=receive_buffer or MIB)


async def _answer(reader: asyncio.StreamReader) -> str:
    """Return the status of the answer, or what happened instead."""
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
    except (asyncio.IncompleteReadError, ConnectionError):
        return CLOSED
    except TimeoutError:
        return NO_ANSWER
    status = head.split(b" ", 2)[1].decode()
    return TRY_AGAIN if status == "503" and b"\r\nretry-after:" in head else status


async def _request(
    url: str, method: str, target: str, body: bytes = b"", headers: Iterable[tuple[str, str]] = ()
) -> str:
    """Send one request as it is, however wrong; the given headers replace the usual ones."""
    usual = {"Host": urlsplit(url).netloc, "Content-Length": str(len(body)), "Content-Type": "application/json"}
    names = {name.lower() for name, _ in headers}
    sent = [(name, value) for name, value in usual.items() if name.lower() not in names]
    lines = [f"{method} {target} HTTP/1.1", "Connection: close", *(f"{n}: {v}" for n, v in (*sent, *headers))]
    try:
        reader, writer = await _connect(url)
    except ConnectionError:
        return CLOSED
    with contextlib.suppress(ConnectionError):
        writer.write("\r\n".join([*lines, "", ""]).encode("latin-1", "replace") + body)
        await writer.drain()
    try:
        return await _answer(reader)
    finally:
        writer.close()


async def _pour(target: Target, service: str, begin: bytes, piece: bytes, size: int = 64 * MIB) -> Outcome:
    """Send the piece again and again, until the server breaks the connection or all is sent."""
    reader, writer = await _connect(target.urls[service])
    try:
        writer.write(begin)
        for _ in range(size // len(piece)):
            writer.write(piece)
            await writer.drain()
            if reader.at_eof() or writer.is_closing():
                break
        # Data still in transit must not fail before the server has read it.
        closed = await _closes(reader, ANSWER_SECONDS)
    except ConnectionError:
        closed = True
    finally:
        writer.close()
    return Counter({CLOSED if closed else SWALLOWED: 1})


async def _trickle(target: Target, service: str, count: int, begin: bytes, more: bytes, within: float) -> Outcome:
    """Open connections that send `begin`, then a little every second; count those that are closed in time."""

    async def one() -> str:
        reader, writer = await _connect(target.urls[service])
        try:
            async with asyncio.timeout(within):
                writer.write(begin)
                while not await _closes(reader, 1.0):
                    writer.write(more)
        except TimeoutError:
            return LEFT_OPEN
        except ConnectionError:
            return CLOSED
        finally:
            writer.close()
        return CLOSED

    return Counter(await asyncio.gather(*(one() for _ in range(count))))


async def _closes(reader: asyncio.StreamReader, within: float) -> bool:
    """Read, and return whether the server closes the connection within some seconds."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(within):
            while await reader.read(4096):
                pass
            return True
    return False


async def _leave_lists_unread(target: Target) -> Outcome:
    asked = [await _connect(target.urls["order"], receive_buffer=4096) for _ in range(20)]
    for _, writer in asked:
        writer.write(b"GET /orders?include=items&limit=100 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    await asyncio.sleep(8)
    outcome = Counter([await _answer(reader) for reader, _ in asked])
    for _, writer in asked:
        writer.transport.abort()
    return outcome


async def _pipeline(target: Target) -> Outcome:
    request = f"GET /orders/{target.order_id} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
    outcomes = [await _pour(target, "order", b"", request * 100, size=2 * MIB) for _ in range(10)]
    return sum(outcomes, Counter())


async def _exceed_the_limit(target: Target) -> Outcome:
    opened = [await _connect(target.urls["order"]) for _ in range(1500)]
    await asyncio.sleep(1)
    outcome = Counter([await _request(target.urls["order"], "GET", "/orders?limit=1") for _ in range(20)])
    for _, writer in opened:
        writer.transport.abort()
    return outcome


_CHUNKED = b"POST /orders HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
CONNECTIONS = (
    Row("endless head", partial(_pour, service="order", begin=b"GET / HTTP/1.1\r\n", piece=b"a: bbbbbbbb\r\n" * 5000)),
    Row("endless head, console", partial(_pour, service="console", begin=b"GET / HTTP/1.1\r\na: ", piece=b"b" * 65536)),
    Row("64 MiB URL", partial(_pour, service="order", begin=b"GET /", piece=b"a" * 65536)),
    Row("64 MiB URL, simulator", partial(_pour, service="simulator", begin=b"GET /", piece=b"a" * 65536)),
    Row("endless trailers", partial(_pour, service="order", begin=_CHUNKED + b"0\r\n", piece=b"a: b\r\n" * 5000)),
    Row("endless chunk extension", partial(_pour, service="order", begin=_CHUNKED + b"1;", piece=b"a" * 65536)),
    Row("endless tiny chunks", partial(_pour, service="payment", begin=_CHUNKED, piece=b"1\r\nx\r\n" * 5000)),
    Row(
        "slowloris, 200",
        partial(
            _trickle, service="order", count=200, begin=b"GET / HTTP/1.1\r\n", more=b"x: y\r\n", within=HEAD_SECONDS
        ),
    ),
    Row(
        "silent connections, 320",
        partial(_trickle, service="inventory", count=320, begin=b"", more=b"", within=HEAD_SECONDS),
    ),
    Row(
        "byte-a-second bodies, 200",
        partial(
            _trickle,
            service="payment",
            count=200,
            begin=b"POST /api/invoices HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n",
            more=b"x",
            within=BODY_SECONDS,
        ),
    ),
    Row("unread lists, 20", _leave_lists_unread),
    Row("pipelining, 10 times 2 MiB", _pipeline),
    Row("1500 connections", _exceed_the_limit, limited=True),
)


# --- JSON bodies. ---


def _order(**changes: str) -> bytes:
    """Return an order as JSON text in which fields are replaced by any text."""
    fields = {
        "userId": '"u1"',
        "items": '[{"productId":"p1","quantity":1,"price":10}]',
        "totalAmount": "10",
        **changes,
    }
    return ("{" + ",".join(f'"{name}":{text}' for name, text in fields.items()) + "}").encode()


BODIES: Mapping[str, bytes] = {
    "80,000 empty items": _order(items="[" + ",".join(["{}"] * 80_000) + "]"),
    "20,000 unknown fields": ("{" + ",".join(f'"a{n}":0' for n in range(20_000)) + "}").encode(),
    "nested arrays": b"[" * 120_000 + b"]" * 120_000,
    "nested objects": b'{"a":' * 40_000 + b"1" + b"}" * 40_000,
    "nested array in a field": _order(userId="[" * 100_000 + "]" * 100_000),
    "integer of 250,000 digits": _order(totalAmount="9" * 250_000),
    "integers of 4,000 digits": _order(items=f'[{{"productId":"p","quantity":{"9" * 4000},"price":{"9" * 4000}}}]'),
    "huge exponents": _order(totalAmount="1e999999999", items='[{"productId":"p","quantity":1,"price":1e-999999999}]'),
    "string of 250,000 characters": _order(userId='"' + "x" * 250_000 + '"'),
    "key of 250,000 characters": b'{"' + b"x" * 250_000 + b'":1}',
    "NaN": _order(totalAmount="NaN"),
    "Infinity": _order(totalAmount="-Infinity"),
    "lone surrogate": _order(userId='"\\ud800"'),
    "lone surrogate in a key": b'{"\\udfff":1}',
    "duplicated keys": b'{"userId":"u0",' + _order()[1:],
    "10,000 duplicated keys": b"{" + b'"userId":"u1",' * 10_000 + _order()[1:],
    "control characters": _order(userId='"a\\u0000b"'),
    "not UTF-8": b'{"userId":"\xff\xfe"}',
    "nothing": b"",
    "null": b"null",
}
ENDPOINTS = (
    ("order", "POST", "/orders"),
    ("order", "POST", "/orders/unknown/cancel"),
    ("inventory", "PUT", "/products/p1"),
    ("inventory", "PUT", "/inventory/p1"),
    ("inventory", "POST", "/inventory/p1/restock"),
    ("inventory", "PUT", "/slots/config"),
    ("inventory", "POST", "/slots/assign"),
    ("payment", "POST", "/api/retainers"),
    ("payment", "POST", "/api/invoices"),
    ("payment", "POST", "/api/payments"),
    ("payment", "POST", "/api/bank-accounts"),
    ("payment", "POST", "/api/bank-transfers"),
    ("simulator", "POST", "/_control/packages"),
    ("simulator", "POST", "/_control/faults"),
)


async def _post(target: Target, bodies: Sequence[bytes]) -> Outcome:
    return Counter(
        [
            await _request(target.urls[service], method, path, body)
            for body in bodies
            for service, method, path in ENDPOINTS
        ]
    )


_SMALL_BODY_BYTES = 10_000
JSON_BODIES = (
    *(
        Row(f"JSON: {name}", partial(_post, bodies=[body]))
        for name, body in BODIES.items()
        if len(body) > _SMALL_BODY_BYTES
    ),
    Row(
        "JSON: small bodies, from NaN to null",
        partial(_post, bodies=[body for body in BODIES.values() if len(body) <= _SMALL_BODY_BYTES]),
    ),
)


# --- Messages. ---

EMPTY_ITEMS = 349_000
ELEMENTS = 100_000
SAMPLES: Mapping[str, dict[str, Any]] = json.loads(
    (Path(__file__).parents[1] / "tests/samples/messages.json").read_text()
)


async def _publish(
    target: Target, inboxes: Sequence[str], messages: Callable[[], Iterable[tuple[str, bytes]]]
) -> Outcome:
    """Send messages, each a type and a body, into inboxes, and wait until these are empty."""
    async with await aio_pika.connect(target.amqp_url) as connection:
        channel = await connection.channel()
        for inbox in inboxes:
            for kind, body in messages():
                message = aio_pika.Message(body, type=kind, content_type="application/json")
                await channel.default_exchange.publish(message, inbox)
        outcome: Outcome = Counter()
        for inbox in inboxes:
            outcome[TAKEN if await _is_emptied(channel, inbox) else NOT_TAKEN] += 1
    return outcome


async def _is_emptied(channel: Any, inbox: str) -> bool:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(ANSWER_SECONDS):
            while (await channel.declare_queue(inbox, passive=True)).declaration_result.message_count:
                await asyncio.sleep(0.1)
            return True
    return False


def _many_items() -> Iterable[tuple[str, bytes]]:
    sample = SAMPLES["order.created"]
    body = {**sample, "orderId": "attack", "items": []}
    yield (
        "order.created",
        json.dumps(body).replace('"items": []', '"items":[' + ",".join(["{}"] * EMPTY_ITEMS) + "]").encode(),
    )


def _many_elements(inbox: str) -> Iterable[tuple[str, bytes]]:
    """Each message that the inbox takes, with many elements in place of each of its fields in turn."""
    many = "[" + ",".join(["{}"] * ELEMENTS) + "]"
    for kind in (message.routing_key for message in INBOXES[inbox]):
        for field in SAMPLES[kind]:
            marked = json.dumps({**SAMPLES[kind], field: "MANY"})
            yield kind, marked.replace('"MANY"', many).encode()


def _garbage() -> Iterable[tuple[str, bytes]]:
    """Yield bodies just below the size that the broker refuses."""
    chance, size = random.Random(1), MAX_MESSAGE_BYTES - 1024
    for kind in ("order.created", "stock.reserved", "no.such.type"):
        yield kind, chance.randbytes(size)
    yield "order.created", b"[" * size
    yield "order.created", b'{"orderId":"attack","items":' + b"9" * size + b"}"
    yield "order.created", b'{"orderId":"' + b"x" * size + b'"}'


def _hostile_json() -> Iterable[tuple[str, bytes]]:
    for body in BODIES.values():
        yield "order.created", body


MESSAGES = (
    *(
        Row(f"{inbox}: {EMPTY_ITEMS:,} empty items", partial(_publish, inboxes=[inbox], messages=_many_items))
        for inbox in INBOXES
    ),
    *(
        Row(
            f"{inbox}: {ELEMENTS:,} elements per field",
            partial(_publish, inboxes=[inbox], messages=partial(_many_elements, inbox)),
        )
        for inbox in INBOXES
    ),
    Row("inboxes: 1 MiB of garbage", partial(_publish, inboxes=list(INBOXES), messages=_garbage)),
    Row("inboxes: hostile JSON", partial(_publish, inboxes=list(INBOXES), messages=_hostile_json)),
)


# --- Forms. ---

FORMS = ("/operator", "/locks", "/audit", "/dead-letters/groups/none/notes", "/orders/none/do/cancel")
CHARSETS = ("punycode", "idna", "utf-7", "utf-16", "unicode_escape", "rot13", "zlib", "no-such-charset")


async def _fill_forms(target: Target, kind: str, body: bytes) -> Outcome:
    headers = [("Content-Type", kind), ("Sec-Fetch-Site", "same-origin")]
    return Counter([await _request(target.urls["console"], "POST", path, body, headers) for path in FORMS])


_URLENCODED = "application/x-www-form-urlencoded"
_MULTIPART = "multipart/form-data; boundary=x"


def _parts(*values: bytes) -> bytes:
    """Return a form of several parts, as _MULTIPART says."""
    parts = (b'--x\r\nContent-Disposition: form-data; name="name"\r\n\r\n' + value + b"\r\n" for value in values)
    return b"".join([*parts, b"--x--\r\n"])


CONSOLE_FORMS = (
    *(
        Row(
            f"form: charset={charset}",
            partial(_fill_forms, kind=f"{_MULTIPART}; charset={charset}", body=_parts(b"a" * 250_000)),
        )
        for charset in CHARSETS
    ),
    Row(
        "form: urlencoded, charset=punycode",
        partial(_fill_forms, kind=f"{_URLENCODED}; charset=punycode", body=b"name=" + b"a" * 250_000),
    ),
    Row("form: 60,000 fields", partial(_fill_forms, kind=_URLENCODED, body=b"a=b&" * 60_000)),
    Row("form: invalid escapes", partial(_fill_forms, kind=_URLENCODED, body=b"name=" + b"%f" * 100_000)),
    Row("form: 4,000 parts", partial(_fill_forms, kind=_MULTIPART, body=_parts(*[b"b"] * 4000))),
)


# --- Parameters, headers and ids. ---

LISTS = (
    ("order", "/orders"),
    ("order", "/orders/failures"),
    ("inventory", "/products"),
    ("inventory", "/inventory"),
    ("inventory", "/slots"),
    ("payment", "/payments"),
    ("payment", "/api/retainers"),
    ("payment", "/api/invoices"),
    ("payment", "/api/ledger"),
    ("provisioning", "/jobs"),
    ("provisioning", "/packages"),
    ("provisioning", "/locks"),
    ("console", "/orders"),
    ("console", "/dead-letters/list"),
    ("console", "/inventory"),
    ("console", "/actions"),
)


def _cursor(text: str) -> str:
    return "cursor=" + base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


CURSORS = (
    "cursor=WzkyMjMzNzIwMzY4NTQ3NzU4MDgsICIiLCAiIl0",
    *map(
        _cursor,
        (
            '[9223372036854775807,""]',
            '[-9223372036854775808,""]',
            '[253402300800000,"a"]',
            '["\\u0000"]',
            '["\\ud800"]',
            '[1e400,"a"]',
            '["a"]',
            '[{"$gt":""}]',
            "[" * 400 + "]" * 400,
            "null",
        ),
    ),
    "cursor=" + "A" * 20_000,
    "cursor=%00",
)
LIMITS = tuple(f"limit={value}" for value in ("0", "-1", "101", "501", "1e9", "NaN", "9" * 5000, "%00", "1&limit=2"))
FILTERS = (
    "status[$gt]=",
    "status=%00",
    "status=%ED%A0%80",
    "userId=" + "x" * 20_000,
    "userId=%00&account=%00&package=%00",
    "from=99999999999999999999&to=-1",
    "from=9999-12-31T23:59:59Z&to=0001-01-01T00:00:00Z",
    "&".join(f"a{n}=b" for n in range(2000)),
    "q=" + quote('"*' * 500) + "&search=" + quote("(" * 1000),
    "page=-1&offset=99999999999999999999",
)


async def _ask(target: Target, queries: Sequence[str]) -> Outcome:
    return Counter(
        [await _request(target.urls[service], "GET", f"{path}?{query}") for service, path in LISTS for query in queries]
    )


HEADERS: Sequence[Sequence[tuple[str, str]]] = (
    *(
        [("Host", host)]
        for host in ("", "x" * 8000, "[::1", "[v1.x]", "evil.example", "localhost:99999", "a@b", "\xff")
    ),
    [("Host", "a"), ("Host", "b")],
    *([("Sec-Fetch-Site", site)] for site in ("cross-site", "same-origin, same-origin", "\xff", "", "x" * 8000)),
    *([("Origin", origin)] for origin in ("null", "http://[", "\xff", "http://" + "a" * 8000, "file://")),
    [("Cookie", "operator=%00%ff; " + "a=b; " * 1000)],
    [("Idempotency-Key", "\x01")],
    [("Idempotency-Key", "k" * 10_000)],
    [("Last-Event-ID", "9" * 5000)],
    [("Content-Length", "-1")],
    [("Content-Length", "0"), ("Content-Length", "1")],
    [("Content-Length", "9" * 30)],
    [("Transfer-Encoding", "gzip")],
    [("Expect", "\xff")],
    [("Upgrade", "websocket"), ("Connection", "upgrade")],
    [("traceparent", "00-" + "f" * 5000), ("tracestate", "\xff")],
    [("Authorization", "Basic \xff"), ("Accept", "\xff")],
    [("Content-Type", "application/json; charset=" + "x" * 5000)],
)


async def _send_headers(target: Target) -> Outcome:
    outcome: Outcome = Counter()
    for headers in HEADERS:
        for service, url in target.urls.items():
            outcome[await _request(url, "GET", "/" if service == "console" else "/healthz", b"", headers)] += 1
        outcome[await _request(target.urls["console"], "POST", "/operator", b"name=x", headers)] += 1
        outcome[await _request(target.urls["order"], "POST", "/orders", BODIES["null"], headers)] += 1
        outcome[await _request(target.urls["order"], "GET", "/orders/unknown/events", b"", headers)] += 1
    return outcome


IDS = (
    *("%00", "%0a", "%0d%0ax:%20y", "a%2fb", "/", "..", "%2e%2e", "..%2f..", "%", "%zz", "%ff", "%ED%A0%80", "\xff"),
    *("slot:", "slot:-1", "slot:0", "slot:999999999999", "slot:9999999999999", "slot:00", "slot:1e9", "slot:%00"),
    *("%24gt", "__proto__", "a.b", "x" * 5000, "%F0%9F%92%A9", "'", '"', "%3Cscript%3E", ";", "*"),
)
PATHS = (
    ("order", ("GET", "POST"), "/orders/{}"),
    ("order", ("GET",), "/orders/{}/events"),
    ("order", ("POST",), "/orders/{}/cancel"),
    ("inventory", ("GET",), "/products/{}"),
    ("inventory", ("GET",), "/inventory/{}"),
    ("inventory", ("GET",), "/reservations/{}"),
    ("inventory", ("PUT", "GET"), "/slots/{}"),
    ("inventory", ("DELETE",), "/slots/assignments/{}"),
    ("payment", ("GET",), "/payments/{}"),
    ("payment", ("GET",), "/api/retainers/{}"),
    ("provisioning", ("GET",), "/jobs/{}"),
    ("provisioning", ("GET",), "/jobs/{}/credentials"),
    ("provisioning", ("DELETE",), "/locks/{}"),
    ("console", ("GET",), "/orders/{}"),
    ("console", ("GET",), "/dead-letters/letters/{}"),
    ("console", ("GET",), "/dead-letters/groups/{}"),
    ("console", ("GET",), "/static/{}"),
)


async def _name_ids(target: Target) -> Outcome:
    return Counter(
        [
            await _request(target.urls[service], method, path.format(identity))
            for service, methods, path in PATHS
            for method in methods
            for identity in IDS
        ]
    )


PARAMETERS = (
    Row("cursors", partial(_ask, queries=CURSORS)),
    Row("limits", partial(_ask, queries=LIMITS)),
    Row("filters", partial(_ask, queries=FILTERS)),
    Row("headers", _send_headers),
    Row("ids", _name_ids),
)

ROWS = (*CONNECTIONS, *JSON_BODIES, *MESSAGES, *CONSOLE_FORMS, *PARAMETERS)
