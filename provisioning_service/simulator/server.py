"""Serves the simulator over HTTP, with a way to break a connection in place of answering."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from shared.http_protocol import BoundedProtocol, Limits
from shared.http_server import connection_limit, http_server

MAX_CONNECTIONS = 1000

ABORT = "provisioning_service.simulator.abort"
"""Where a request's scope has the function that breaks its connection."""


class NoAnswer(Response):
    """Breaks the connection: the client never learns what became of its call."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        """Return once the server knows that the connection is gone, so that it answers nothing of its own."""
        scope[ABORT]()
        while (await receive())["type"] != "http.disconnect":
            pass


class _AbortableProtocol(BoundedProtocol):
    """Hands the connection's abort to the application, which ASGI gives no way to do."""

    def on_message_begin(self) -> None:
        super().on_message_begin()
        scope: dict[str, Any] = self.scope  # type: ignore[assignment]
        scope[ABORT] = self.transport.abort


@asynccontextmanager
async def serving(app: ASGIApp, listener: socket.socket) -> AsyncIterator[None]:
    """Serve the application on the socket, which is closed at the end, as long as the context lasts."""
    limits = Limits(connections=connection_limit(MAX_CONNECTIONS))
    server = http_server(app, limits, grace_seconds=1, protocol=_AbortableProtocol)
    task = asyncio.create_task(server.serve(sockets=[listener]), name="simulator")
    try:
        yield
    finally:
        server.should_exit = True
        await task
