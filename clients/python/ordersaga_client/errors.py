"""The errors of the client.

    OrdersagaError
    ├── ConfigurationError           it is not known where a service is, or its URL is not one
    ├── NoAnswerError                no usable answer came: refused, reset, timed out, or cut off
    ├── UnreadableAnswerError        an answer is not what the API promises, as from a proxy in between
    ├── WebhookVerificationError     a delivery is not from the sender that it claims to be from, or too old
    └── ProblemError                 the service answered with a problem (RFC 9457)
        ├── InvalidError             400, 413, 415, 422: the request is wrong; `errors` names the fields
        │   └── KeyReusedError           the idempotency key was used with another body
        ├── UnauthenticatedError     401: no key, or one that is not valid
        ├── ForbiddenError           403: the key does not grant this
        ├── NotFoundError            404: it does not exist, or belongs to another owner
        ├── ConflictError            409: the present state does not allow it
        ├── RateLimitedError         429: too many requests, or no capacity
        │   └── SlotsFullError           no delivery slot has room for the order
        └── UnavailableError         408, 502, 503, 504: not now; try again

`NoAnswerError`, `RateLimitedError` and `UnavailableError` are raised after the client has tried again.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ordersaga_client.models import Order


class OrdersagaError(Exception):
    """Root of the client's errors."""


class ConfigurationError(OrdersagaError):
    """It is not known where a service is, or its URL is not one."""


class NoAnswerError(OrdersagaError):
    """No usable answer came. If `sent` is false, the service has not received the request."""

    def __init__(self, message: str, *, sent: bool, request_id: str | None = None) -> None:
        super().__init__(message)
        self.sent = sent
        self.request_id = request_id


class UnreadableAnswerError(OrdersagaError):
    """The answer is not what the API promises."""


class WebhookVerificationError(OrdersagaError):
    """The delivery must not be trusted; answer it with 400."""


@dataclass(frozen=True, slots=True)
class FieldError:
    """What is wrong with one field of a request, such as `items[0].quantity`."""

    field: str
    message: str


class ProblemError(OrdersagaError):
    """The service answered with a problem.

    `code` tells programs which case it is, such as `order-state`, and `detail` tells people. The service's log has the
    `request_id`. `body` is the whole answer.
    """

    def __init__(self, status: int, body: Mapping[str, Any], headers: Mapping[str, str]) -> None:
        self.status = status
        self.type = str(body.get("type", "about:blank"))
        self.code = self.type.rsplit("/", 1)[-1]
        self.title = str(body.get("title", ""))
        self.detail = str(body.get("detail", ""))
        self.errors = _field_errors(body.get("errors"))
        self.failure_code: str | None = body.get("failureCode")
        self.request_id: str | None = headers.get("x-request-id") or body.get("requestId")
        self.retry_after = _seconds(headers.get("retry-after"))
        self.body = body
        super().__init__(f"{status} {self.detail or self.title}")


class InvalidError(ProblemError):
    """The request is wrong, and a repeat will be answered the same."""


class KeyReusedError(InvalidError):
    """The idempotency key was used before with another body."""


class UnauthenticatedError(ProblemError):
    """There is no key, or it is not valid."""


class ForbiddenError(ProblemError):
    """The key does not grant what the request needs."""


class NotFoundError(ProblemError):
    """The record does not exist, or it belongs to another owner."""


class ConflictError(ProblemError):
    """The present state does not allow what was asked for."""


class RateLimitedError(ProblemError):
    """Too many requests, or no capacity. With `retry_after`, the request was not handled."""


class SlotsFullError(RateLimitedError):
    """No delivery slot has room for the order, which is CANCELLED."""

    @property
    def order(self) -> Order | None:
        """The order, if the answer has it."""
        order = self.body.get("order")
        return None if order is None else Order.model_validate(order)


class UnavailableError(ProblemError):
    """The service cannot answer now; `retry_after` says when it might, in seconds."""


_CLASSES: Mapping[int, type[ProblemError]] = {
    400: InvalidError,
    401: UnauthenticatedError,
    403: ForbiddenError,
    404: NotFoundError,
    408: UnavailableError,
    409: ConflictError,
    413: InvalidError,
    415: InvalidError,
    422: InvalidError,
    429: RateLimitedError,
    502: UnavailableError,
    503: UnavailableError,
    504: UnavailableError,
}
_CLASSES_BY_CODE: Mapping[str, type[ProblemError]] = {
    "idempotency-key-reused": KeyReusedError,
    "slots-full": SlotsFullError,
}


def problem(status: int, body: Mapping[str, Any], headers: Mapping[str, str]) -> ProblemError:
    """Return the error for an answer; `headers` must find names in lower case."""
    general = _CLASSES.get(status, ProblemError)
    special = _CLASSES_BY_CODE.get(str(body.get("type", "")).rsplit("/", 1)[-1], general)
    return (special if issubclass(special, general) else general)(status, body, headers)


def _field_errors(errors: object) -> tuple[FieldError, ...]:
    if not isinstance(errors, list):
        return ()
    return tuple(
        FieldError(str(error.get("field", "")), str(error.get("message", "")))
        for error in errors
        if isinstance(error, dict)
    )


def _seconds(retry_after: str | None) -> float | None:
    """Read `Retry-After` in seconds; ordersaga sends no dates."""
    try:
        return max(0.0, float(retry_after)) if retry_after is not None else None
    except ValueError:
        return None
