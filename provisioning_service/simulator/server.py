"""The simulator's HTTP server, which can break a connection instead of answering."""

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
"""The key in a request's scope of the function that breaks its connection."""


class NoAnswer(Response):
    """Breaks the connection, so that the client never learns the result of its call."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        """Return once the server has noticed that the connection is gone, so that it sends no answer."""
        scope[ABORT]()
        while (await receive())["type"] != "http.disconnect":
            pass


class _AbortableProtocol(BoundedProtocol):
    """Passes the connection's abort to the application, for which ASGI has no means."""

    def on_message_begin(self) -> None:
        super().on_message_begin()
        scope: dict[str, Any] = self.scope  # type: ignore[assignment]
        scope[ABORT] = self.transport.abort


@asynccontextmanager
async def serving(app: ASGIApp, listener: socket.socket) -> AsyncIterator[None]:
    """Serve the application on the socket while the context lasts; close the socket at its end."""
    limits = Limits(connections=connection_limit(MAX_CONNECTIONS))
    server = http_server(app, limits, grace_seconds=1, protocol=_AbortableProtocol)
    task = asyncio.create_task(server.serve(sockets=[listener]), name="simulator")
    try:
        yield
    finally:
        server.should_exit = True
        await task
