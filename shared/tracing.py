"""Traces: one for each order, from its POST through every message to its final status. Off unless asked for.

This module is what the services call. With tracing off its functions return at once, and the SDK of OpenTelemetry is
not imported; what they do when it is on is in shared.spans (the optional extra `ordersaga[tracing]`).

A context travels as W3C text. Messages carry it in the headers `traceparent` and `tracestate`. Records keep the
`traceparent` alone, for what is published later without a message behind it: by a sweep, a timer or an operator.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, Protocol

from starlette.types import ASGIApp

from shared.bus import Delivery, Envelope
from shared.errors import StartError

Mode = Literal["off", "otlp"]


class Batch(Protocol):
    """The messages that a consumer has in hand."""

    def about(self, delivery: Delivery, subject: str) -> None:
        """Say what a message is about (its correlation id), once it has been read."""

    def headers(self, subject: str) -> Mapping[str, str]:
        """Return what a message that follows from those about `subject` has to carry."""

    def failed(self, delivery: Delivery, error: Exception) -> Delivery:
        """Note that a message could not be handled; returns it as its retry or its dead letter is to be made from."""


class Tracing(Protocol):
    """What can be done about traces; the functions of this module say what each is for."""

    def traced(self, app: ASGIApp) -> ASGIApp:
        """See `traced`."""

    def batch(self, queue: str, deliveries: Sequence[Delivery]) -> AbstractContextManager[Batch]:
        """See `batch`."""

    def publishing(self, envelopes: Sequence[Envelope]) -> AbstractContextManager[Sequence[Envelope]]:
        """See `publishing`."""

    def here(self, order_id: str) -> str | None:
        """See `here`."""

    def of_order(self, order_id: str) -> str | None:
        """See `of_order`."""

    def note(self, order_id: str, status: str) -> None:
        """See `note`."""

    def continued(self, traceparent: str | None, name: str, order_id: str, status: str) -> str | None:
        """See `continued`."""

    def part(
        self, name: str, order_id: str | None, traceparent: str | None, *, call: bool
    ) -> AbstractContextManager[None]:
        """See `working` and `calling`."""

    def database_listeners(self) -> Sequence[Any]:
        """See `database_listeners`."""

    def log_fields(self) -> Mapping[str, str]:
        """See `log_fields`."""

    async def close(self) -> None:
        """See `close`."""


class _NoBatch:
    """A batch of which nothing is told."""

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

    Where spans are sent, and how many of them, is said by the environment variables of OpenTelemetry (`OTEL_...`).
    Raises StartError if the optional extra is not installed.
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
    """Trace with this from now on; None for not at all."""
    global _tracing
    _tracing = tracing


def traced(app: ASGIApp) -> ASGIApp:
    """Return the application with a span around every request, that of its sender continued where it names one."""
    return _tracing.traced(app) if _tracing else app


def is_on() -> bool:
    """Whether anything is traced."""
    return _tracing is not None


def batch(queue: str, deliveries: Sequence[Delivery]) -> AbstractContextManager[Batch]:
    """Return the context of handling these messages: each in the trace that it came with."""
    return _tracing.batch(queue, deliveries) if _tracing else _NO_BATCH


def publishing(envelopes: Sequence[Envelope]) -> AbstractContextManager[Sequence[Envelope]]:
    """Return the context of publishing these; it gives them back with the headers that receivers continue from."""
    return _tracing.publishing(envelopes) if _tracing else nullcontext(envelopes)


def here(order_id: str) -> str | None:
    """Return the context of the request in hand, which is about that order, for its record."""
    return _tracing.here(order_id) if _tracing else None


def of_order(order_id: str) -> str | None:
    """Return the context of the message in hand about that order, for its record."""
    return _tracing.of_order(order_id) if _tracing else None


def headers(traceparent: str | None) -> Mapping[str, str]:
    """Return what a message has to carry to continue what a record has kept."""
    return {"traceparent": traceparent} if traceparent and _tracing else _NOTHING


def note(order_id: str, status: str) -> None:
    """Tell the span of the message in hand about that order which status the order has now."""
    if _tracing:
        _tracing.note(order_id, status)


def continued(traceparent: str | None, name: str, order_id: str, status: str) -> str | None:
    """Tell an order's trace of a step without a message behind it; returns the context of what follows from that.

    `traceparent` is what the order's record has kept. A request that is in hand, an operator's, has a trace of its
    own: the two are linked.
    """
    return _tracing.continued(traceparent, name, order_id, status) if _tracing else traceparent


def working(name: str, order_id: str, traceparent: str | None) -> AbstractContextManager[None]:
    """Return the context of work that is done for an order without a message or a request in hand."""
    return _tracing.part(name, order_id, traceparent, call=False) if _tracing else _NO_PART


def calling(name: str, order_id: str | None = None, traceparent: str | None = None) -> AbstractContextManager[None]:
    """Return the context of a call to somebody else's service, on behalf of an order if one is named.

    It is a part of what `traceparent` names, else of what is in hand.
    """
    return _tracing.part(name, order_id, traceparent, call=True) if _tracing else _NO_PART


def database_listeners() -> Sequence[Any]:
    """Return what is to hear of the commands of a MongoDB client."""
    return _tracing.database_listeners() if _tracing else ()


def log_fields() -> Mapping[str, str]:
    """Return the ids under which a line of the log is found in the trace."""
    return _tracing.log_fields() if _tracing else _NOTHING


async def close() -> None:
    """Send what has not been sent yet, as far as that takes no time to speak of."""
    if _tracing:
        await _tracing.close()
