"""The HTTP server of every process: uvicorn with bounded connections, which its owner starts and stops."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import uvicorn
from starlette.types import ASGIApp

from shared.http_protocol import BoundedProtocol, Limits, OpenConnections

OTHER_DESCRIPTORS = 256
"""File descriptors that are kept for MongoDB, RabbitMQ, a provider and files: the pools' sizes and some more."""


class HttpServer(uvicorn.Server):
    """Uvicorn without its own signal handlers: its owner decides when to stop, by `should_exit`."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals alone."""
        yield


def http_server(
    app: ASGIApp,
    limits: Limits,
    *,
    grace_seconds: int,
    protocol: type[BoundedProtocol] = BoundedProtocol,
) -> HttpServer:
    """Return a server for the application.

    At its end, requests in progress get `grace_seconds`. Serve it on a socket of one's own, in a running event loop.
    """
    connections = OpenConnections(limits)
    config = uvicorn.Config(
        app,
        loop="none",
        http=partial(protocol, connections),  # type: ignore[arg-type]  # uvicorn only calls it
        ws="none",
        lifespan="off",
        proxy_headers=False,
        server_header=False,
        date_header=False,
        log_config=None,
        access_log=False,
        callback_notify=connections.close_overdue,
        timeout_notify=0,  # whenever uvicorn looks: once a second
        timeout_graceful_shutdown=grace_seconds,
    )
    return HttpServer(config)


def connection_limit(wanted: int, descriptors: int | None = None) -> int:
    """Return how many connections to accept: as many as wanted, if the file descriptors are enough.

    `descriptors` is how many the process may have; by default, what the system allows it. Connections to databases
    and files get OTHER_DESCRIPTORS of them, but no more than half.
    """
    if descriptors is None:
        descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if descriptors == resource.RLIM_INFINITY:
        return wanted
    return max(1, min(wanted, descriptors - min(OTHER_DESCRIPTORS, descriptors // 2)))
