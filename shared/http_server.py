"""The HTTP server of every process: uvicorn with limited connections. Its owner starts and stops it."""

import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shared.http_protocol import BoundedProtocol, Limits, OpenConnections
from shared.http_tls import TlsConnection, TlsContext

OTHER_DESCRIPTORS = 256
"""File descriptors reserved for MongoDB, RabbitMQ, a provider and files: the sizes of the pools and a margin."""


class HttpServer(uvicorn.Server):
    """Uvicorn without its signal handlers; its owner stops it by `should_exit`."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals alone."""
        yield


class ClosesConnections:
    """Closes each connection with its next answer once `stopping`, so that clients open their next one elsewhere."""

    def __init__(self, app: ASGIApp, stopping: Callable[[], bool]) -> None:
        self._app = app
        self._stopping = stopping

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""

        async def send_and_close(message: Message) -> None:
            if message["type"] == "http.response.start" and self._stopping():
                message = {**message, "headers": [*message.get("headers", ()), (b"connection", b"close")]}
            await send(message)

        await self._app(scope, receive, send_and_close)


def http_server(
    app: ASGIApp,
    limits: Limits,
    *,
    grace_seconds: int,
    protocol: type[BoundedProtocol] = BoundedProtocol,
    tls: TlsContext | None = None,
) -> HttpServer:
    """Return a server for the application, to be served on an open socket in a running event loop.

    With `tls` it serves HTTPS only.
    When it stops, requests in progress have `grace_seconds` to finish.
    """
    connections = OpenConnections(limits)
    plain = partial(protocol, connections)
    config = uvicorn.Config(
        app,
        loop="none",
        http=plain if tls is None else partial(TlsConnection, tls, connections, plain),  # type: ignore[arg-type]  # uvicorn only calls it
        ws="none",
        lifespan="off",
        proxy_headers=False,
        server_header=False,
        date_header=False,
        log_config=None,
        access_log=False,
        callback_notify=connections.close_overdue,
        timeout_notify=0,  # at every check of uvicorn: once per second
        timeout_keep_alive=limits.idle_seconds,
        timeout_graceful_shutdown=grace_seconds,
    )
    return HttpServer(config)


def connection_limit(wanted: int, descriptors: int | None = None) -> int:
    """Return the number of connections to accept: the wanted number if there are enough file descriptors.

    `descriptors` is the number that the process may open, by default the limit of the system. OTHER_DESCRIPTORS of
    them, but at most half, are reserved for other connections and files.
    """
    if descriptors is None:
        descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if descriptors == resource.RLIM_INFINITY:
        return wanted
    return max(1, min(wanted, descriptors - min(OTHER_DESCRIPTORS, descriptors // 2)))
