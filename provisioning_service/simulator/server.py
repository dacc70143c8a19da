"""Serves the simulator over HTTP, with a way to break a connection in place of answering."""

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import uvicorn
from fastapi import Response
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

ABORT = "provisioning_service.simulator.abort"
"""Where a request's scope has the function that breaks its connection."""


class NoAnswer(Response):
    """Breaks the connection: the client never learns what became of its call."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        """Return once the server knows that the connection is gone, so that it answers nothing of its own."""
        scope[ABORT]()
        while (await receive())["type"] != "http.disconnect":
            pass


class _AbortableProtocol(HttpToolsProtocol):
    """Hands the connection's abort to the application, which ASGI gives no way to do."""

    def on_message_begin(self) -> None:
        super().on_message_begin()
        scope: dict[str, Any] = self.scope  # type: ignore[assignment]
        scope[ABORT] = self.transport.abort


class _Server(uvicorn.Server):
    """Uvicorn without its own signal handlers: who starts it decides when to stop."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@asynccontextmanager
async def serving(app: ASGIApp, listener: socket.socket) -> AsyncIterator[None]:
    """Serve the application on the socket, which is closed at the end, as long as the context lasts."""
    config = uvicorn.Config(
        app,
        loop="none",
        http=_AbortableProtocol,
        ws="none",
        lifespan="off",
        proxy_headers=False,
        server_header=False,
        date_header=False,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=1,
    )
    server = _Server(config)
    task = asyncio.create_task(server.serve(sockets=[listener]), name="simulator")
    try:
        yield
    finally:
        server.should_exit = True
        await task
