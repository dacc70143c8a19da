"""Spans in memory, for tests that read them: the spans of an order, and their parents."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from shared import tracing
from shared.spans import ORDER_ID, OpenTelemetryTracing


class Spans:
    """The spans that have ended so far."""

    def __init__(self, exporter: InMemorySpanExporter) -> None:
        self._exporter = exporter

    @property
    def all(self) -> Sequence[ReadableSpan]:
        return self._exporter.get_finished_spans()

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.all if span.name == name]

    def one(self, name: str) -> ReadableSpan:
        (span,) = self.named(name)
        return span

    def of_order(self, order_id: str) -> list[ReadableSpan]:
        return [span for span in self.all if (span.attributes or {}).get(ORDER_ID) == order_id]

    def parent(self, span: ReadableSpan) -> ReadableSpan | None:
        """The span that this one is a child of; None for a root, and for a child of a remote span."""
        if span.parent is None:
            return None
        return next((other for other in self.all if span_id(other) == span.parent.span_id), None)

    def path(self, span: ReadableSpan) -> list[str]:
        """The names from the root down to the span."""
        above = self.parent(span)
        return [*(self.path(above) if above else ()), span.name]

    def clear(self) -> None:
        self._exporter.clear()


def span_id(span: ReadableSpan) -> int:
    assert span.context
    return int(span.context.span_id)


def trace_id(span: ReadableSpan) -> int:
    assert span.context
    return int(span.context.trace_id)


def linked(span: ReadableSpan) -> set[int]:
    """The ids of the spans that this one links to."""
    return {link.context.span_id for link in span.links}


def attribute(span: ReadableSpan, name: str) -> Any:
    return (span.attributes or {}).get(name)


@contextlib.contextmanager
def recording() -> Iterator[Spans]:
    """Trace everything in this process, for as long as the context lasts."""
    exporter, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracing.use(OpenTelemetryTracing(provider))
    try:
        yield Spans(exporter)
    finally:
        tracing.use(None)
        provider.shutdown()
