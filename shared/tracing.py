"""Traces: one per order, from its POST through all messages to its final status. Off by default.

Services call the functions of this module. While tracing is off they return at once, and the SDK of OpenTelemetry is
not imported. While it is on, shared.spans does the work (the optional extra `ordersaga[tracing]`).

Contexts are W3C text. Messages carry them in the headers `traceparent` and `tracestate`. Records keep only the
`traceparent`, for messages that are published later without a cause on the bus: by a sweep, a timer or an operator.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, Protocol

from starlette.types import ASGIApp

from shared.bus import Delivery, Envelope
from shared.errors import StartError

Mode = Literal["off", "otlp"]


class Batch(Protocol):
    """The messages of a consumer's current batch."""

    def about(self, delivery: Delivery, subject: str) -> None:
        """Set the subject of a message (its correlation id), once it has been read."""

    def headers(self, subject: str) -> Mapping[str, str]:
        """Return the headers of a message that follows from those about `subject`."""

    def failed(self, delivery: Delivery, error: Exception) -> Delivery:
        """Note that a message could not be handled; return it as the base of its retry or dead letter."""


class Tracing(Protocol):
    """The implementation of tracing; the functions of this module document each method."""

    def traced(self, app: ASGIApp) -> ASGIApp: ...

    def batch(self, queue: str, deliveries: Sequence[Delivery]) -> AbstractContextManager[Batch]: ...

    def publishing(self, envelopes: Sequence[Envelope]) -> AbstractContextManager[Sequence[Envelope]]: ...

    def here(self, order_id: str) -> str | None: ...

    def of_order(self, order_id: str) -> str | None: ...

    def note(self, order_id: str, status: str) -> None: ...

    def continued(self, traceparent: str | None, name: str, order_id: str, status: str) -> str | None: ...

    def part(
        self, name: str, order_id: str | None, traceparent: str | None, *, call: bool
    ) -> AbstractContextManager[None]: ...

    def database_listeners(self) -> Sequence[Any]: ...

    def log_fields(self) -> Mapping[str, str]: ...

    async def close(self) -> None: ...


class _NoBatch:
    """A batch without spans."""

    def about(self, delivery: Delivery, subject: str) -> None:  # noqa: ARG002
        return None

    def headers(self, subject: str) -> Mapping[str, str]:  # noqa: ARG002
        return _NOTHING

    def failed(self, delivery: Delivery, error: Exception) -> Delivery:  # noqa: ARG002
        return delivery


_NOTHING: Mapping[str, str] = {}
_NO_BATCH = nullcontext[Batch](_NoBatch())
_NO_PART = nullcontext(None)
_tracing: Tracing | None = None


def configure_tracing(service: str, mode: Mode) -> None:
    """Turn tracing on or off for this process, before anything is connected.

    The environment variables of OpenTelemetry (`OTEL_...`) set where spans are sent and how many of them. Raises
    StartError if the optional extra is not installed.
    """
    if mode == "off":
        use(None)
        return
    try:
        from shared.spans import open_tracing
    except ImportError:
        raise StartError(
            f"ORDERSAGA_TRACING={mode} needs the optional extra: pip install 'ordersaga[tracing]'"
        ) from None
    use(open_tracing(service))


def use(tracing: Tracing | None) -> None:
    """Trace with this implementation from now on; None turns tracing off."""
    global _tracing
    _tracing = tracing


def traced(app: ASGIApp) -> ASGIApp:
    """Return the application with a span around every request, within the sender's trace if it names one."""
    return _tracing.traced(app) if _tracing else app


def is_on() -> bool:
    """Return True if tracing is on."""
    return _tracing is not None


def batch(queue: str, deliveries: Sequence[Delivery]) -> AbstractContextManager[Batch]:
    """Return a context in which these messages are handled, each in its own trace."""
    return _tracing.batch(queue, deliveries) if _tracing else _NO_BATCH


def publishing(envelopes: Sequence[Envelope]) -> AbstractContextManager[Sequence[Envelope]]:
    """Return a context in which these are published; it returns them with the headers that receivers need."""
    return _tracing.publishing(envelopes) if _tracing else nullcontext(envelopes)


def here(order_id: str) -> str | None:
    """Return the trace context of the current request, which is about this order, for the order's record."""
    return _tracing.here(order_id) if _tracing else None


def of_order(order_id: str) -> str | None:
    """Return the trace context of the current message about this order, for the order's record."""
    return _tracing.of_order(order_id) if _tracing else None


def headers(traceparent: str | None) -> Mapping[str, str]:
    """Return the headers of a message that continues the trace of a record."""
    return {"traceparent": traceparent} if traceparent and _tracing else _NOTHING


def note(order_id: str, status: str) -> None:
    """Set the order's new status on the span of the current message about it."""
    if _tracing:
        _tracing.note(order_id, status)


def continued(traceparent: str | None, name: str, order_id: str, status: str) -> str | None:
    """Add a step that no message has caused to an order's trace; return the context for what follows from it.

    `traceparent` comes from the order's record. The current request of an operator has a separate trace; the two are
    linked.
    """
    return _tracing.continued(traceparent, name, order_id, status) if _tracing else traceparent


def working(name: str, order_id: str | None, traceparent: str | None) -> AbstractContextManager[None]:
    """Return a context for work without a current message or request, on an order if one is named."""
    return _tracing.part(name, order_id, traceparent, call=False) if _tracing else _NO_PART


def calling(name: str, order_id: str | None = None, traceparent: str | None = None) -> AbstractContextManager[None]:
    """Return a context for a call to an external service, on behalf of an order if one is named.

    It belongs to the trace of `traceparent`, by default to the current one.
    """
    return _tracing.part(name, order_id, traceparent, call=True) if _tracing else _NO_PART


def database_listeners() -> Sequence[Any]:
    """Return the listeners for the commands of a MongoDB client."""
    return _tracing.database_listeners() if _tracing else ()


def log_fields() -> Mapping[str, str]:
    """Return the ids that connect a log line with its span."""
    return _tracing.log_fields() if _tracing else _NOTHING


async def close() -> None:
    """Send the remaining spans, within a fraction of a second."""
    if _tracing:
        await _tracing.close()
