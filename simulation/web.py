"""Requests over HTTP without a network: a service's ASGI application is called in a life of one of its processes."""

import asyncio
from collections.abc import Mapping
from typing import Any, NamedTuple

import orjson

from simulation.keys import HEADERS
from simulation.loop import Life
from simulation.processes import applications


class NoAnswerError(Exception):
    """No answer has come in time; what was asked for may have happened."""


class Answer(NamedTuple):
    """An answer of a service."""

    status: int
    body: Any


async def request(
    life: Life, service: str, method: str, path: str, body: Any, headers: Mapping[str, str], patience: float
) -> Answer:
    """Send a request to a process and return its answer. Raises NoAnswerError if none comes in time."""
    answered: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
    content = b"" if body is None else orjson.dumps(body)
    exchange = _Exchange(content, answered)
    sent = [*HEADERS, (b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [*sent, *((name.lower().encode(), value.encode()) for name, value in headers.items())],
        "client": ("127.0.0.1", 1),
        "server": ("localhost", 80),
        "state": {},
    }
    life.start(_served(applications()[service], scope, exchange))
    try:
        async with asyncio.timeout(patience):
            return await answered
    except TimeoutError:
        raise NoAnswerError(f"{method} {path}") from None


async def _served(app: Any, scope: dict[str, Any], exchange: "_Exchange") -> None:
    try:
        await app(scope, exchange.receive, exchange.send)
    except Exception:  # noqa: BLE001 - what the application lets out after its answer is an answer of 500
        exchange.fail()


class _Exchange:
    """The two ends of one request, as ASGI has them."""

    def __init__(self, content: bytes, answered: "asyncio.Future[Answer]") -> None:
        self._content: bytes | None = content
        self._answered = answered
        self._status = 500
        self._parts: list[bytes] = []

    async def receive(self) -> dict[str, Any]:
        """Return the body, then nothing until the end of time: the client stays."""
        if self._content is None:
            await asyncio.get_running_loop().create_future()
        content, self._content = self._content, None
        return {"type": "http.request", "body": content, "more_body": False}

    async def send(self, message: dict[str, Any]) -> None:
        """Take a part of the answer."""
        if message["type"] == "http.response.start":
            self._status = message["status"]
        elif message["type"] == "http.response.body":
            self._parts.append(message.get("body", b""))
            if not message.get("more_body"):
                self._finish(self._status)

    def fail(self) -> None:
        """Answer with 500 unless there is an answer."""
        self._finish(500)

    def _finish(self, status: int) -> None:
        if not self._answered.done():
            content = b"".join(self._parts)
            self._answered.set_result(Answer(status, orjson.loads(content) if content else None))
