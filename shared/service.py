"""Runs a service: settings, logs, connections, HTTP and consumer in the right order, and an orderly end on SIGTERM."""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TypeVar

import structlog
import uvloop
from fastapi import APIRouter
from prometheus_client import Gauge
from pymongo import AsyncMongoClient
from pymongo.errors import PyMongoError
from starlette.types import ASGIApp, Receive, Scope, Send

from shared import database, tracing
from shared.bus import Bus, Handlers
from shared.bus.consumer import Consumer
from shared.bus.metrics import CONSUMER_UP
from shared.bus.publisher import Publisher
from shared.bus.rabbitmq import RabbitBus
from shared.database import Database, Document
from shared.errors import StartError
from shared.event_loop import watch_event_loop
from shared.failure_points import FailurePoint, kill_at
from shared.http import ALWAYS_SERVED, create_app, problem_response
from shared.http_protocol import Limits
from shared.http_server import Server, connection_limit, http_server
from shared.observability import configure_logging
from shared.schema import Collections, prepare
from shared.settings import ServiceSettings, exit_with, load

CLOSE_SECONDS = 0.5
"""What each of the last steps, such as closing a connection, may take."""
DRAIN_SECONDS = 10.0
"""What is in hand when the process is told to end may take this long; what is left is delivered again."""

_log = structlog.get_logger(__name__)
_up = Gauge("service_up", "1 while the service runs", ["service"])

Settings = TypeVar("Settings", bound=ServiceSettings)


@dataclass(frozen=True, slots=True)
class Connections:
    """What a service is put together from."""

    database: Database
    publisher: Publisher
    reach: FailurePoint


@dataclass(frozen=True, slots=True)
class Parts:
    """What a service consists of, besides what all have."""

    handlers: Handlers
    router: APIRouter
    collections: Collections
    """All that the service keeps; the start sees to it that they are as they have to be."""
    pages: bool = False
    """Whether the routes are pages for people, see `shared.http.create_app`."""
    background: Sequence[Callable[[], Awaitable[None]]] = ()
    """Loops that run as long as the service; each handles its own errors and ends only when it is cancelled."""
    drain: Sequence[Callable[[], Awaitable[None]]] = ()
    """What has to be finished after the last request and the last message."""
    troubles: Mapping[str, Callable[[], str | None]] = field(default_factory=dict)
    """What else has to be well for /readyz, by name: each says what is wrong, or None."""


@dataclass(frozen=True, slots=True)
class Definition:
    """What a service is called and where it stands."""

    name: str
    description: str
    database: str
    inbox: str
    port: int


def run(
    definition: Definition, settings_type: type[Settings], assemble: Callable[[Settings, Connections], Parts]
) -> None:
    """Run the service until SIGTERM or SIGINT; a wrong setting ends the process with one line on stderr."""
    try:
        settings = load(settings_type)
        configure_logging(definition.name, settings.log_level, settings.log_format)
        tracing.configure_tracing(definition.name, settings.tracing)
        uvloop.run(_Service(definition, settings, lambda connections: assemble(settings, connections)).run())
    except StartError as error:
        exit_with(error)


class _Service:
    """One running service, from the first connection to the last."""

    def __init__(
        self, definition: Definition, settings: ServiceSettings, assemble: Callable[[Connections], Parts]
    ) -> None:
        self._definition = definition
        self._settings = settings
        self._mongo: AsyncMongoClient[Document] = database.client(settings)
        self._database: Database = self._mongo[f"{settings.database_prefix}_{definition.database}"]
        self._bus: Bus = RabbitBus(settings.amqp_url, prefetch=settings.prefetch)
        reach = kill_at(settings.crash_at)
        self._parts = assemble(Connections(self._database, Publisher(self._bus), reach))
        self._consumer = Consumer(
            self._bus,
            definition.inbox,
            self._parts.handlers,
            batch_limit=settings.batch_limit,
            reach=reach,
            as_ours=database.as_ours,
        )
        CONSUMER_UP.labels(definition.inbox).set_function(lambda: self._consumer.trouble is None)
        self._prepared = False
        self._stopping = asyncio.Event()

    async def run(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self._stopping.set)
        http = self._http_server()
        listener = self._listen()
        serving = asyncio.create_task(http.serve(sockets=[listener]), name="http")
        working = asyncio.create_task(self._work(), name="work")
        stopping = asyncio.create_task(self._stopping.wait(), name="stop")
        try:
            await asyncio.wait({serving, working, stopping}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await self._shut_down(http, serving, working)
        for task in (working, serving):
            if task.done() and not task.cancelled():
                task.result()
        if not self._stopping.is_set():
            raise StartError("the HTTP server ended by itself")

    async def _close_database(self) -> None:
        await database.close(self._mongo)

    def _http_server(self) -> Server:
        app = create_app(
            self._definition.name,
            self._definition.description,
            self._what_is_down,
            names=self._settings.known_names,
            pages=self._parts.pages,
        )
        app.include_router(self._parts.router)
        gate = _UntilPrepared(app, lambda: self._prepared)
        limits = Limits(connections=connection_limit(self._settings.max_connections))
        return http_server(gate, limits, grace_seconds=int(DRAIN_SECONDS / 2))

    def _listen(self) -> socket.socket:
        host, port = self._settings.http_host, self._settings.http_port or self._definition.port
        try:
            listener = socket.create_server((host, port), backlog=2048)
        except OSError as error:
            raise StartError(
                f"cannot listen on ORDERSAGA_HTTP_HOST={host} ORDERSAGA_HTTP_PORT={port}: {error}"
            ) from None
        _log.info("listening", host=host, port=listener.getsockname()[1])
        return listener

    async def _work(self) -> None:
        await database.wait_until_ready(self._database)
        await prepare(self._database, self._parts.collections)
        await self._bus.start(self._definition.inbox)
        self._prepared = True
        _up.labels(self._definition.name).set(1)
        _log.info("ready", inbox=self._definition.inbox, database=self._database.name)
        async with asyncio.TaskGroup() as group:
            loops = (*self._parts.background, watch_event_loop)
            background = [group.create_task(_forever(loop)) for loop in loops]
            await self._consumer.run()
            for task in background:
                task.cancel()

    async def _what_is_down(self) -> dict[str, str]:
        down = {}
        try:
            async with asyncio.timeout(2):
                await self._database.command("ping")
        except (PyMongoError, TimeoutError) as error:
            down["mongodb"] = str(error).partition(", Timeout:")[0][:200] or "no answer within 2 s"
        if self._bus.trouble:
            down["rabbitmq"] = self._bus.trouble
        elif not self._prepared:
            down["start"] = "waiting for the servers"
        elif self._consumer.trouble:
            down["consumer"] = self._consumer.trouble
        if self._prepared:
            down |= {name: wrong for name, trouble in self._parts.troubles.items() if (wrong := trouble())}
        return down

    async def _shut_down(self, http: Server, serving: "asyncio.Task[None]", working: "asyncio.Task[None]") -> None:
        _log.info("stopping")
        http.should_exit = True
        if self._prepared:
            await self._consumer.stop(within=DRAIN_SECONDS / 2)
        else:
            working.cancel()
        _, unfinished = await asyncio.wait({serving, working}, timeout=1.5)
        for task in unfinished:
            _log.warning("abandoned at the end of the grace period", task=task.get_name())
            task.cancel()
        # What is left undone here is done again: by redelivery, or by the sweep of who starts next.
        for finish in (*self._parts.drain, self._bus.close, self._close_database, tracing.close):
            try:
                async with asyncio.timeout(CLOSE_SECONDS):
                    await finish()
            except Exception as error:  # noqa: BLE001 - the next thing has to be closed all the same
                _log.warning("not finished in order", error=repr(error)[:200])
        _log.info("stopped")
        if self._stopping.is_set():
            await _end_what_is_left()


async def _end_what_is_left() -> None:
    """Cancel all other tasks until they have ended, and end the process without those that do not.

    A driver may let a cancellation go by, or hold a call to a server that is away for its whole time-out. What is left
    undone is done again by whoever starts next.
    """
    for _ in range(10):
        left = asyncio.all_tasks() - {asyncio.current_task()}
        if not left:
            return
        for task in left:
            task.cancel()
        await asyncio.wait(left, timeout=0.1)
    _log.warning("ended with tasks in hand", tasks=sorted(task.get_name() for task in left))
    sys.stdout.flush()
    os._exit(0)


async def _forever(loop: Callable[[], Awaitable[None]]) -> None:
    await loop()


class _UntilPrepared:
    """Answers 503 to all but health and documentation until the servers have answered and the collections are there."""

    def __init__(self, app: ASGIApp, prepared: Callable[[], bool]) -> None:
        self._app = app
        self._prepared = prepared

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or self._prepared() or scope["path"] in ALWAYS_SERVED:
            await self._app(scope, receive, send)
            return
        response = problem_response(
            HTTPStatus.SERVICE_UNAVAILABLE, "The service is starting", headers={"Retry-After": "1"}
        )
        await response(scope, receive, send)
