"""Runs a service: starts settings, logs, connections, HTTP and consumer in order, and stops them on SIGTERM."""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import structlog
import uvloop
from fastapi import APIRouter
from prometheus_client import Gauge
from pymongo import AsyncMongoClient

from shared import database, quick_start, tls, tracing
from shared.access.configured import configured_authenticator, configured_limits
from shared.access.middleware import People
from shared.admission import Admission, OtherServer
from shared.audit_log import AuditLog
from shared.bus import Bus, Handlers
from shared.bus.consumer import Consumer
from shared.bus.metrics import CONSUMER_UP
from shared.bus.publisher import Publisher
from shared.bus.rabbitmq import RabbitBus
from shared.database import Database, Document
from shared.errors import StartError
from shared.event_loop import watch_event_loop
from shared.failpoints import Failpoint, kill_at
from shared.http import add_routes, create_app
from shared.http_protocol import Limits
from shared.http_server import ClosesConnections, HttpServer, connection_limit, http_server
from shared.http_tls import TlsContext
from shared.observability import configure_logging
from shared.pausing.api import create_pause_routes
from shared.pausing.records import PauseRecords
from shared.pausing.watch import PauseWatch
from shared.readiness import HealthCheck, Readiness
from shared.schema import Collections, prepare
from shared.services import Service
from shared.settings import ServiceSettings, exit_with, load

CLOSE_SECONDS = 0.5
"""The time limit of each final step, such as closing a connection."""
GRACE_SECONDS = 5.0
"""The time to finish current requests and the current batch after SIGTERM; unfinished messages are redelivered."""
ABANDON_SECONDS = 1.5
"""The time after that for what is cut off to end."""
PROCESS = "process"
"""The name of the check that fails while the process stops."""
BREAKER = "breaker"
"""The name of the check that fails while the consumer's breaker is open; requests are answered all the same."""

DATABASE_IS_AWAY = "The database is not available; nothing was done"
"""The problem for requests that are refused at once because MongoDB has not answered the last checks."""

_log = structlog.get_logger(__name__)
_up = Gauge("service_up", "1 while the service runs", ["service"])

Settings = TypeVar("Settings", bound=ServiceSettings)


@dataclass(frozen=True, slots=True)
class Connections:
    """The connections from which a service is assembled."""

    database: Database
    publisher: Publisher
    failpoint: Failpoint


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of a service, besides those that all services have."""

    handlers: Handlers
    router: APIRouter
    collections: Collections
    """The schemas of all its collections, which the start creates and checks."""
    pages: bool = False
    """True if the routes are pages for people, see `shared.http.create_app`."""
    people: People | None = None
    """Who is signed in to the pages."""
    background: Sequence[Callable[[], Awaitable[None]]] = ()
    """Loops that run as long as the service, see `shared.background`."""
    stopping: Sequence[Callable[[], None]] = ()
    """What ends requests that take their time, so that they are answered before the process stops."""
    drain: Sequence[Callable[[], Awaitable[None]]] = ()
    """The steps to finish after the last request and the last message."""
    health_checks: Mapping[str, HealthCheck] = field(default_factory=dict)
    """Further checks for /readyz, by name."""
    explains_outages: Callable[[str], bool] = lambda _: False
    """Says by its path whether a route answers while MongoDB is away; requests to others are refused meanwhile."""
    other_server: Callable[[Admission], OtherServer] | None = None
    """Makes a server that runs beside the one of HTTP."""


def run(service: Service, settings_type: type[Settings], assemble: Callable[[Settings, Connections], Parts]) -> None:
    """Run the service until SIGTERM or SIGINT; a wrong setting ends the process with one line on stderr."""
    try:
        settings = load(settings_type)
        configure_logging(service.name, settings.log_level, settings.log_format)
        tracing.configure_tracing(service.name, settings.tracing)
        running = _RunningService(service, settings, lambda connections: assemble(settings, connections))
        quick_start.started()
        uvloop.run(running.run())
    except StartError as error:
        exit_with(error)


class _RunningService:
    """One running service, from the first connection to the last."""

    def __init__(self, service: Service, settings: ServiceSettings, assemble: Callable[[Connections], Parts]) -> None:
        self._service = service
        self._settings = settings
        self._tls = _server_tls(settings)
        tls.client_context()  # a file that cannot be used ends the start
        self._mongo: AsyncMongoClient[Document] = database.client(settings)
        self._authenticator = configured_authenticator(settings)
        self._limits = configured_limits(settings)
        self._database: Database = self._mongo[service.database_in(settings.database_prefix)]
        self._bus: Bus = RabbitBus(
            settings.amqp_url,
            prefetch=settings.prefetch,
            repair_every=settings.topology_check_seconds,
            topology_mode=settings.topology,
            topology_options=settings.topology_options,
        )
        failpoint = kill_at(settings.crash_at)
        self._parts = assemble(Connections(self._database, Publisher(self._bus), failpoint))
        self._consumer = Consumer(
            self._bus,
            service.inbox,
            self._parts.handlers,
            batch_limit=settings.batch_limit,
            failpoint=failpoint,
            translate_error=database.translate_error,
            breaker_batches=settings.breaker_batches,
        )
        self._pause_records = PauseRecords(self._database)
        self._pauses = PauseWatch(service, self._pause_records, self._consumer.set_paused, Publisher(self._bus))
        CONSUMER_UP.labels(service.inbox).set_function(lambda: self._consumer.unhealthy_reason is None)
        self._stopping = asyncio.Event()
        self._hurried = asyncio.Event()
        health_checks = {
            PROCESS: self._stopping_reason,
            "rabbitmq": self._broker_unhealthy_reason,
            "consumer": self._consumer_unhealthy_reason,
            BREAKER: lambda: self._consumer.breaker_reason,
            **self._parts.health_checks,
        }
        # The console records its acts itself, before and after each.
        self._audit = AuditLog(self._database, settings.trusted_proxies, records_writes=not self._parts.pages)
        self._readiness = Readiness(
            service.name,
            self._database,
            health_checks,
            grace=settings.ready_grace_seconds,
            final={PROCESS},
            tolerated={BREAKER},
        )
        self._collections_ready = False
        self._prepared = False
        self._other = self._parts.other_server(self._admission()) if self._parts.other_server else None

    def _admission(self) -> Admission:
        return Admission(self._authenticator, self._limits, self._audit, self._refusal, self._readiness.unready)

    async def run(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self._stop_or_hurry)
        http = self._http_server()
        listener = self._listen()
        if self._other is not None:
            await self._other.start()
        serving = asyncio.create_task(http.serve(sockets=[listener]), name="http")
        working = asyncio.create_task(self._work(), name="work")
        checking = asyncio.create_task(self._readiness.run(), name="readiness")
        stopping = asyncio.create_task(self._stopping.wait(), name="stop")
        try:
            await asyncio.wait({serving, working, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if stopping.done():
                await self._drain(serving, working)
        finally:
            checking.cancel()
            await self._shut_down(http, serving, working)
        for task in (working, serving):
            if task.done() and not task.cancelled():
                task.result()
        if not self._stopping.is_set():
            raise StartError("the HTTP server ended unexpectedly")

    def _stop_or_hurry(self) -> None:
        (self._hurried if self._stopping.is_set() else self._stopping).set()

    def _stopping_reason(self) -> str | None:
        return "it is stopping" if self._stopping.is_set() else None

    async def _drain(self, *running: "asyncio.Task[None]") -> None:
        """Serve on for a while without being ready, so that balancers choose others first; a second signal ends it."""
        if not self._settings.drain_seconds:
            return
        _log.info("draining", seconds=self._settings.drain_seconds)
        hurried = asyncio.create_task(self._hurried.wait(), name="hurry")
        either = {*running, hurried}
        await asyncio.wait(either, timeout=self._settings.drain_seconds, return_when=asyncio.FIRST_COMPLETED)
        hurried.cancel()

    async def _close_database(self) -> None:
        await database.close(self._mongo)

    def _http_server(self) -> HttpServer:
        app = create_app(
            self._service.name,
            self._service.description,
            self._readiness.unready,
            authenticator=self._authenticator,
            outages=self._readiness.outages,
            paused=lambda: self._pauses.shown,
            limits=self._limits,
            refusal=self._http_refusal,
            names=self._settings.known_names,
            pages=self._parts.pages,
            people=self._parts.people,
            audit=self._audit,
        )
        add_routes(app.router, self._parts.router)
        if self._service.can_be_paused:
            add_routes(app.router, create_pause_routes(self._service, self._pause_records))
        limits = Limits(connections=connection_limit(self._settings.max_connections))
        served = ClosesConnections(app, self._stopping.is_set)
        return http_server(served, limits, grace_seconds=int(GRACE_SECONDS), tls=self._tls)

    def _listen(self) -> socket.socket:
        host, port = self._settings.http_host, self._settings.http_port or self._service.port
        try:
            listener = socket.create_server((host, port), backlog=2048)
        except OSError as error:
            raise StartError(
                f"cannot listen on ORDERSAGA_HTTP_HOST={host} ORDERSAGA_HTTP_PORT={port}: {error}"
            ) from None
        _log.info("listening", host=host, port=listener.getsockname()[1], tls=self._tls is not None)
        return listener

    async def _work(self) -> None:
        await database.wait_until_ready(self._database)
        await prepare(self._database, self._parts.collections, refuse_partial=True)
        self._collections_ready = True
        try:
            async with asyncio.TaskGroup() as group:
                following = (self._pauses.run,) if self._service.can_be_paused else ()
                loops = (*self._parts.background, *following, self._audit.announce, watch_event_loop)
                background = [group.create_task(_forever(loop)) for loop in loops]
                await self._consume()
                for task in background:
                    task.cancel()
        except* StartError as errors:
            raise errors.exceptions[0] from None

    async def _consume(self) -> None:
        """Wait for the broker and handle messages until the consumer is stopped.

        Without the broker, requests are answered all the same, as during an outage.
        """
        if self._service.can_be_paused:
            await self._pauses.known.wait()
        await self._bus.start(self._service.inbox)
        self._prepared = True
        _up.labels(self._service.name).set(1)
        _log.info("ready", inbox=self._service.inbox, database=self._database.name)
        await self._consumer.run()

    def _broker_unhealthy_reason(self) -> str | None:
        """Return the problem with RabbitMQ, None before MongoDB has answered: until then the bus does not connect."""
        return self._bus.unhealthy_reason if self._collections_ready else None

    def _consumer_unhealthy_reason(self) -> str | None:
        return self._consumer.unhealthy_reason if self._prepared else "waiting for the servers"

    def _http_refusal(self, path: str) -> str | None:
        return None if self._collections_ready and self._parts.explains_outages(path) else self._refusal()

    def _refusal(self) -> str | None:
        """Return the reason to answer requests with 503 now, or None."""
        if not self._collections_ready:
            return "The service is starting"
        return DATABASE_IS_AWAY if self._readiness.database_is_away() else None

    async def _shut_down(self, http: HttpServer, serving: "asyncio.Task[None]", working: "asyncio.Task[None]") -> None:
        _log.info("stopping")
        http.should_exit = True
        for end_requests in self._parts.stopping:
            end_requests()
        ending = {serving, working}
        if self._other is not None:
            ending.add(asyncio.create_task(self._other.stop(GRACE_SECONDS), name="other server"))
        if self._prepared:
            ending.add(asyncio.create_task(self._consumer.stop(within=GRACE_SECONDS), name="consumer"))
        else:
            working.cancel()
        # All of them together: a consumer that has nothing to do must not shorten the time of requests.
        _, unfinished = await asyncio.wait(ending, timeout=GRACE_SECONDS + ABANDON_SECONDS)
        for task in unfinished:
            _log.warning("task abandoned after the grace period", task=task.get_name())
            task.cancel()
        # Unfinished work is not lost: messages are redelivered, and the sweep of the next process finds the rest.
        for finish in (*self._parts.drain, self._bus.close, self._close_database, tracing.close):
            try:
                async with asyncio.timeout(CLOSE_SECONDS):
                    await finish()
            except Exception as error:  # noqa: BLE001 - the remaining steps must still run
                _log.warning("a final step failed", error=repr(error)[:200])
        _log.info("stopped")
        if self._stopping.is_set():
            await _end_remaining_tasks()


def _server_tls(settings: ServiceSettings) -> TlsContext | None:
    """Return the TLS of the HTTP server, None for plain HTTP. Raises StartError if a file cannot be used."""
    if settings.tls_cert_file is None or settings.tls_key_file is None:
        return None
    return tls.server_context(settings.tls_cert_file, settings.tls_key_file, settings.tls_client_ca_file)


async def _end_remaining_tasks() -> None:
    """Cancel all other tasks until they have ended, and end the process if some of them do not.

    A driver may swallow a cancellation, or wait for a server that is away until its time-out. The next process does
    the unfinished work again.
    """
    for _ in range(10):
        left = asyncio.all_tasks() - {asyncio.current_task()}
        if not left:
            return
        for task in left:
            task.cancel()
        await asyncio.wait(left, timeout=0.1)
    _log.warning("process ended with running tasks", tasks=sorted(task.get_name() for task in left))
    sys.stdout.flush()
    os._exit(0)


async def _forever(loop: Callable[[], Awaitable[None]]) -> None:
    await loop()
