"""Tracing with OpenTelemetry, the implementation behind shared.tracing. Needs the extra `ordersaga[tracing]`.

Spans follow the semantic conventions 1.44.0 for HTTP, messaging (RabbitMQ) and databases (MongoDB). They leave open how
batches are represented; this is our choice:

    POST /orders                                  SERVER
      └─ publish ordersaga:order.created          PRODUCER, its context goes with the message
           ├─ process …:inventory.inbox           CONSUMER, one per message, child of the context in the message
           │    └─ publish ordersaga:stock.reserved
           └─ process …:payment.inbox
    process payment.inbox (20 messages)           CONSUMER, one per batch, a separate trace
      └─ insert payments                          CLIENT, done for all of them

The span of a batch links to the contexts of all its messages, and the span of each message links to that of the batch.
A batch of one message has no separate span.
"""

import asyncio
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import replace
from typing import Any
from uuid import uuid4

from opentelemetry import context as contexts
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import (
    Link,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    Tracer,
    format_span_id,
    format_trace_id,
    get_current_span,
    set_span_in_context,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from pymongo.monitoring import CommandFailedEvent, CommandListener, CommandStartedEvent, CommandSucceededEvent
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shared.bus import Delivery, Envelope
from shared.bus.reading import type_name
from shared.contracts import BY_ROUTING_KEY
from shared.release import VERSION

SCHEMA_URL = "https://opentelemetry.io/schemas/1.44.0"
ORDER_ID = "ordersaga.order.id"
ORDER_STATUS = "ordersaga.order.status"
NOT_TRACED = frozenset({"/healthz", "/readyz", "/metrics"})
"""Paths that monitoring requests every few seconds, which no one needs to trace."""

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT"})
_CLOSE_SECONDS = 0.4
_MOST_OPEN_COMMANDS = 10_000
_W3C = TraceContextTextMapPropagator()
_current: ContextVar["TracedBatch | None"] = ContextVar("current batch", default=None)


def open_tracing(service: str) -> "OpenTelemetryTracing":
    """Trace to an OTLP collector over HTTP, as configured by the environment variables of OpenTelemetry."""
    resource = Resource.create(
        {
            "service.namespace": "ordersaga",
            "service.name": service,
            "service.version": VERSION,
            "service.instance.id": str(uuid4()),
        }
    )
    # Not shut down at exit, which could wait for a collector that is away; `close` does not.
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return OpenTelemetryTracing(provider)


class OpenTelemetryTracing:
    """The implementation of shared.tracing.Tracing, which documents the methods."""

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("ordersaga", VERSION, SCHEMA_URL)

    def traced(self, app: ASGIApp) -> ASGIApp:
        return _TracedHttp(app, self._tracer)

    @contextmanager
    def batch(self, queue: str, deliveries: Sequence[Delivery]) -> Iterator["TracedBatch"]:
        opened = TracedBatch(self._tracer, queue, deliveries)
        token = _current.set(opened)
        attached = contexts.attach(set_span_in_context(opened.whole))
        try:
            yield opened
        except BaseException as error:
            opened.abandoned(error)
            raise
        finally:
            contexts.detach(attached)
            _current.reset(token)
            opened.end()

    @contextmanager
    def publishing(self, envelopes: Sequence[Envelope]) -> Iterator[Sequence[Envelope]]:
        spans = [self._publication(envelope) for envelope in envelopes]
        try:
            yield [
                replace(envelope, headers={**envelope.headers, **_written(span)})
                for envelope, span in zip(envelopes, spans, strict=True)
            ]
        except BaseException as error:
            for span in spans:
                _fail(span, error)
            raise
        finally:
            for span in spans:
                span.end()

    def _publication(self, envelope: Envelope) -> Span:
        destination = _joined(envelope.exchange, envelope.routing_key)
        attributes: dict[str, Any] = {
            "messaging.system": "rabbitmq",
            "messaging.operation.name": "publish",
            "messaging.operation.type": "send",
            "messaging.destination.name": destination,
            "messaging.rabbitmq.destination.routing_key": envelope.routing_key,
            "messaging.message.id": envelope.message_id,
            "messaging.message.conversation_id": envelope.correlation_id,
            "messaging.message.body.size": len(envelope.body),
            ORDER_ID: envelope.correlation_id,
        }
        known = envelope.type in BY_ROUTING_KEY
        name = f"publish {destination}" if known else f"publish {envelope.exchange}"
        parent = _read(envelope.headers, contexts.get_current())
        return self._tracer.start_span(name, parent, SpanKind.PRODUCER, attributes)

    def here(self, order_id: str) -> str | None:
        span = get_current_span()
        span.set_attribute(ORDER_ID, order_id)
        return _written(span).get("traceparent")

    def of_order(self, order_id: str) -> str | None:
        batch = _current.get()
        return batch.headers(order_id).get("traceparent") if batch else None

    def note(self, order_id: str, status: str) -> None:
        if (batch := _current.get()) and (span := batch.of(order_id)):
            span.set_attribute(ORDER_STATUS, status)

    def continued(self, traceparent: str | None, name: str, order_id: str, status: str) -> str | None:
        asking = get_current_span()
        parent = _read({"traceparent": traceparent}, Context()) if traceparent else contexts.get_current()
        links = _links([asking.get_span_context()]) if traceparent else []
        attributes = {ORDER_ID: order_id, ORDER_STATUS: status}
        span = self._tracer.start_span(name, parent, SpanKind.INTERNAL, attributes, links)
        if links:
            asking.add_link(span.get_span_context())
        span.end()
        return _written(span).get("traceparent")

    @contextmanager
    def part(self, name: str, order_id: str | None, traceparent: str | None, *, call: bool) -> Iterator[None]:
        kind = SpanKind.CLIENT if call else SpanKind.INTERNAL
        parent = _read({"traceparent": traceparent}, Context()) if traceparent else contexts.get_current()
        span = self._tracer.start_span(name, parent, kind, {ORDER_ID: order_id} if order_id else None)
        attached = contexts.attach(set_span_in_context(span))
        try:
            yield
        except BaseException as error:
            _fail(span, error)
            raise
        finally:
            contexts.detach(attached)
            span.end()

    def database_listeners(self) -> Sequence[CommandListener]:
        return [_Commands(self._tracer)]

    def log_fields(self) -> Mapping[str, str]:
        here = get_current_span().get_span_context()
        if not here.is_valid:
            return {}
        return {"trace_id": format_trace_id(here.trace_id), "span_id": format_span_id(here.span_id)}

    async def close(self) -> None:
        # In a thread that the process does not wait for: a collector that is away must not delay its end.
        loop, closed = asyncio.get_running_loop(), asyncio.Event()

        def shut_down() -> None:
            self._provider.shutdown()
            with suppress(RuntimeError):  # it took too long, and the loop is closed
                loop.call_soon_threadsafe(closed.set)

        threading.Thread(target=shut_down, daemon=True, name="close-tracing").start()
        with suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE_SECONDS):
                await closed.wait()


# --- Messages. ---


class TracedBatch:
    """The spans of a batch, as shared.tracing.Batch; `whole` is the span of the work on the whole batch."""

    def __init__(self, tracer: Tracer, queue: str, deliveries: Sequence[Delivery]) -> None:
        contexts_of = [_read(delivery.headers, Context()) for delivery in deliveries]
        self._batch = _start_whole(tracer, queue, contexts_of) if len(deliveries) > 1 else None
        links = _links([self._batch.get_span_context()]) if self._batch else []
        self._spans = {
            id(delivery): _start_process(tracer, queue, delivery, parent, links, len(deliveries))
            for delivery, parent in zip(deliveries, contexts_of, strict=True)
        }
        self._subjects: dict[str, Span] = {}
        self.whole = self._batch or next(iter(self._spans.values()))

    def about(self, delivery: Delivery, subject: str) -> None:
        span = self._spans[id(delivery)]
        span.set_attribute(ORDER_ID, subject)
        # The last of several about one order: what follows from all of them follows from the last.
        self._subjects[subject] = span

    def of(self, subject: str) -> Span | None:
        """Return the span of the last message about `subject`."""
        return self._subjects.get(subject)

    def headers(self, subject: str) -> Mapping[str, str]:
        span = self._subjects.get(subject)
        return _written(span) if span else {}

    def failed(self, delivery: Delivery, error: Exception) -> Delivery:
        span = self._spans[id(delivery)]
        _fail(span, error)
        return replace(delivery, headers={**delivery.headers, **_written(span)})

    def abandoned(self, error: BaseException) -> None:
        """Note that the batch was not finished and will be redelivered."""
        for span in self._all():
            _fail(span, error)

    def end(self) -> None:
        """End all spans."""
        for span in self._all():
            span.end()

    def _all(self) -> Iterable[Span]:
        yield from self._spans.values()
        if self._batch is not None:
            yield self._batch


def _start_whole(tracer: Tracer, queue: str, creation: Sequence[Context]) -> Span:
    attributes: dict[str, Any] = {
        "messaging.system": "rabbitmq",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": queue,
        "messaging.batch.message_count": len(creation),
    }
    links = _links(get_current_span(context).get_span_context() for context in creation)
    return tracer.start_span(f"process {queue}", Context(), SpanKind.CONSUMER, attributes, links)


def _start_process(
    tracer: Tracer, queue: str, delivery: Delivery, parent: Context, links: Sequence[Link], batch_size: int
) -> Span:
    type_ = type_name(delivery)
    attributes: dict[str, Any] = {
        "messaging.system": "rabbitmq",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": _joined(delivery.exchange, delivery.routing_key, queue),
        "messaging.rabbitmq.destination.routing_key": delivery.routing_key,
        "messaging.message.body.size": len(delivery.body),
        "ordersaga.message.type": type_,
        "ordersaga.batch.size": batch_size,
    }
    if delivery.message_id:
        attributes["messaging.message.id"] = delivery.message_id
    if delivery.correlation_id:
        attributes["messaging.message.conversation_id"] = delivery.correlation_id
    # Senders can invent any number of types, but span names must be few.
    name = f"process {_joined(delivery.exchange, type_, queue)}" if type_ in BY_ROUTING_KEY else f"process {queue}"
    return tracer.start_span(name, parent, SpanKind.CONSUMER, attributes, links)


def _joined(*parts: str) -> str:
    """Name a destination by the conventions: exchange, routing key and queue, without empty and equal parts."""
    return ":".join(dict.fromkeys(part for part in parts if part))


# --- HTTP. ---


class _TracedHttp:
    """Puts a span around every request, as a child of the sender's if it names one."""

    def __init__(self, app: ASGIApp, tracer: Tracer) -> None:
        self._app = app
        self._tracer = tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in NOT_TRACED:
            await self._app(scope, receive, send)
            return
        status = 500

        async def observed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        method = scope["method"] if scope["method"] in _METHODS else "_OTHER"
        span = self._start(scope, method)
        attached = contexts.attach(set_span_in_context(span))
        try:
            await self._app(scope, receive, observed)
        except BaseException as error:
            _fail(span, error)
            raise
        finally:
            contexts.detach(attached)
            _end_request(span, scope, method, status)

    def _start(self, scope: Scope, method: str) -> Span:
        attributes: dict[str, Any] = {
            "http.request.method": method,
            "url.scheme": scope.get("scheme", "http"),
            "url.path": scope["path"],
        }
        if server := scope.get("server"):
            attributes |= {"server.address": server[0], "server.port": server[1] or 0}
        parent = _read(_single_headers(scope["headers"]), Context())
        return self._tracer.start_span(method, parent, SpanKind.SERVER, attributes)


def _end_request(span: Span, scope: Scope, method: str, status: int) -> None:
    span.set_attribute("http.response.status_code", status)
    if route := getattr(scope.get("route"), "path", None):
        span.set_attribute("http.route", route)
        span.update_name(f"{method} {route}")
    if order_id := scope.get("path_params", {}).get("order_id"):
        span.set_attribute(ORDER_ID, order_id)
    if status >= 500:
        span.set_attribute("error.type", str(status))
        span.set_status(Status(StatusCode.ERROR))
    span.end()


def _single_headers(headers: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """Return the headers of a trace; a repeated `traceparent` is ignored."""
    found: dict[str, list[str]] = {"traceparent": [], "tracestate": []}
    for name, value in headers:
        if (key := name.decode("latin-1").lower()) in found:
            found[key].append(value.decode("latin-1"))
    if len(found["traceparent"]) != 1:
        return {}
    return {"traceparent": found["traceparent"][0], "tracestate": ",".join(found["tracestate"])}


# --- MongoDB. ---


class _Commands(CommandListener):
    """Adds a span for each command to the current span; commands without a current span are ignored."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer
        self._open: dict[int, Span] = {}

    def started(self, event: CommandStartedEvent) -> None:
        """Begin the span of a command."""
        if not get_current_span().is_recording():
            return
        command = event.command_name
        collection = event.command.get("collection" if command == "getMore" else command)
        attributes: dict[str, Any] = {
            "db.system.name": "mongodb",
            "db.namespace": event.database_name,
            "db.operation.name": command,
        }
        name = command
        if isinstance(collection, str):
            attributes["db.collection.name"] = collection
            name = f"{command} {collection}"
        if len(self._open) >= _MOST_OPEN_COMMANDS:  # the driver does not report the end of cancelled commands
            self._open.clear()
        self._open[event.request_id] = self._tracer.start_span(name, None, SpanKind.CLIENT, attributes)

    def succeeded(self, event: CommandSucceededEvent) -> None:
        """End the span of a command."""
        if span := self._open.pop(event.request_id, None):
            span.end()

    def failed(self, event: CommandFailedEvent) -> None:
        """End the span of a command that failed."""
        if span := self._open.pop(event.request_id, None):
            code = str(event.failure.get("code", "unknown"))
            span.set_attribute("db.response.status_code", code)
            span.set_attribute("error.type", code)
            span.set_status(Status(StatusCode.ERROR))
            span.end()


# --- Contexts. ---


def _read(headers: Mapping[str, Any], otherwise: Context) -> Context:
    """Return the context in the headers; `otherwise` if they have none or an invalid one."""
    carried = {name: value for name in _W3C.fields if isinstance(value := headers.get(name), str) and value}
    return _W3C.extract(carried, otherwise)


def _written(span: Span) -> dict[str, str]:
    carried: dict[str, str] = {}
    _W3C.inject(carried, set_span_in_context(span, Context()))
    return carried


def _links(targets: Iterable[SpanContext]) -> list[Link]:
    return [Link(target) for target in targets if target.is_valid]


def _fail(span: Span, error: BaseException) -> None:
    span.set_attribute("error.type", type(error).__name__)
    span.set_status(Status(StatusCode.ERROR, str(error)[:500]))
