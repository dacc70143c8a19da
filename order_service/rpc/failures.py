"""Errors as the statuses of gRPC, with details that programs read (https://google.aip.dev/193)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError, Message
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from grpc import StatusCode
from pydantic import ValidationError
from pymongo.errors import PyMongoError

from order_service.rpc import MAX_CALLS
from order_service.rpc.messages import field_path
from shared import problems
from shared.access.errors import AuthenticationError, CredentialMissingError, TooManyRequestsError
from shared.database import is_transient, translate_error
from shared.errors import NewerReleaseError, TransientError
from shared.http import ProblemError, kind_of_outage
from shared.problems import ProblemType
from shared.validation import explained, without_consequences

DOMAIN = "ordersaga"

NOT_BOOKED_YET = ProblemType(
    "not-booked-yet",
    HTTPStatus.GATEWAY_TIMEOUT,
    "The order is accepted, but its slot is not booked yet",
    "Repeat the call under its idempotency key.",
    "The slot of order 5f0c2b1e9d is not booked yet",
)
STOPPING = ProblemType(
    "stopping",
    HTTPStatus.SERVICE_UNAVAILABLE,
    "The process stops",
    "Repeat the call, under its idempotency key if it has one.",
    "The service is stopping; repeat the call",
)
TOO_MANY_CALLS = ProblemType(
    "too-many-calls",
    HTTPStatus.TOO_MANY_REQUESTS,
    "Too many calls are in progress",
    "Nothing was done. Repeat the call a moment later.",
    f"{MAX_CALLS} calls are in progress already; try again",
)
"""Three cases that HTTP does not have."""

MAX_DETAIL = 300
MAX_VIOLATIONS_BYTES = 2000
"""A status travels in headers, of which clients accept 8 KiB: what is longer is cut off."""

CODES: Mapping[HTTPStatus, StatusCode] = {
    HTTPStatus.BAD_REQUEST: StatusCode.INVALID_ARGUMENT,
    HTTPStatus.UNAUTHORIZED: StatusCode.UNAUTHENTICATED,
    HTTPStatus.FORBIDDEN: StatusCode.PERMISSION_DENIED,
    HTTPStatus.NOT_FOUND: StatusCode.NOT_FOUND,
    HTTPStatus.REQUEST_TIMEOUT: StatusCode.DEADLINE_EXCEEDED,
    HTTPStatus.CONFLICT: StatusCode.FAILED_PRECONDITION,
    HTTPStatus.UNPROCESSABLE_ENTITY: StatusCode.INVALID_ARGUMENT,
    HTTPStatus.TOO_MANY_REQUESTS: StatusCode.RESOURCE_EXHAUSTED,
    HTTPStatus.INTERNAL_SERVER_ERROR: StatusCode.INTERNAL,
    HTTPStatus.SERVICE_UNAVAILABLE: StatusCode.UNAVAILABLE,
    HTTPStatus.GATEWAY_TIMEOUT: StatusCode.DEADLINE_EXCEEDED,
}
"""The code for each status that the HTTP API would answer with."""


class CallFailedError(ProblemError):
    """A call ends for a reason that programs act on, and what it is about."""

    def __init__(self, kind: ProblemType, detail: str, **about: str) -> None:
        super().__init__(kind.status, detail, kind=kind)
        self.about = about


@dataclass(frozen=True, slots=True)
class Failure:
    """How a call ends that is not answered; `kind` is the problem that the HTTP API would answer with."""

    kind: ProblemType
    detail: str
    violations: tuple[tuple[str, str], ...] = ()
    about: Mapping[str, str] = field(default_factory=dict)
    retry_after: int | None = None

    @property
    def code(self) -> StatusCode:
        """The status of gRPC."""
        return CODES.get(self.kind.status, StatusCode.UNKNOWN)

    @property
    def reason(self) -> str:
        """The problem's type as gRPC writes it, such as SLOTS_FULL."""
        return self.kind.name.upper().replace("-", "_")

    @property
    def message(self) -> str:
        """The detail, cut to what a header may have."""
        return self.detail if len(self.detail) <= MAX_DETAIL else f"{self.detail[: MAX_DETAIL - 1]}…"

    def details(self) -> bytes:
        """Return the value of the metadata `grpc-status-details-bin`: a google.rpc.Status."""
        parts: list[Message] = [ErrorInfo(reason=self.reason, domain=DOMAIN, metadata=self.about)]
        if self.violations:
            parts.append(BadRequest(field_violations=_within_limit(self.violations)))
        if self.retry_after is not None:
            parts.append(RetryInfo(retry_delay=Duration(seconds=self.retry_after)))
        status = Status(code=self.code.value[0], message=self.message)
        for part in parts:
            packed = AnyMessage()
            packed.Pack(part)
            status.details.append(packed)
        serialized: bytes = status.SerializeToString()
        return serialized


def failure_of(error: Exception) -> Failure | None:
    """Return how a call ends that raised this error; None for a defect."""
    match error:
        case CredentialMissingError():
            return Failure(problems.CREDENTIAL_MISSING, str(error))
        case AuthenticationError():
            return Failure(problems.CREDENTIAL_INVALID, str(error))
        case TooManyRequestsError():
            return Failure(problems.RATE_LIMITED, str(error), retry_after=int(error.headers.get("Retry-After", "1")))
        case ProblemError():
            return _of_problem(error)
        case ValidationError():
            found = error.errors(include_url=False, include_input=False)
            errors = [explained(problem) for problem in without_consequences(found)]
            return Failure(problems.INVALID_REQUEST, _joined(errors), tuple(errors))
        case DecodeError():
            return Failure(problems.INVALID_REQUEST, "The message is not one of this method")
        case TransientError():
            return Failure(kind_of_outage(error), error.for_clients or str(error), retry_after=1)
        case NewerReleaseError():
            return Failure(problems.UNAVAILABLE, str(error), retry_after=1)
        case PyMongoError() if is_transient(error):
            return failure_of(translate_error(error))
        case _:
            return None


def _of_problem(error: ProblemError) -> Failure:
    kind = error.kind or problems.general_type(error.status) or problems.INTERNAL_ERROR
    about = error.about if isinstance(error, CallFailedError) else {}
    retry_after = _retry_after(error)
    return Failure(kind, _joined(error.errors) or error.detail, tuple(error.errors), about, retry_after)


def _retry_after(error: ProblemError) -> int | None:
    given = (error.headers or {}).get("Retry-After", "")
    return int(given) if given.isdigit() else None


def _joined(errors: Sequence[tuple[str, str]]) -> str:
    return "; ".join(f"{field_path(name)}: {message}" for name, message in errors[:10])


def _within_limit(violations: tuple[tuple[str, str], ...]) -> list[BadRequest.FieldViolation]:
    kept, size = [], 0
    for name, message in violations:
        violation = BadRequest.FieldViolation(field=field_path(name), description=message[:200])
        size += violation.ByteSize() + 4
        if size > MAX_VIOLATIONS_BYTES:
            break
        kept.append(violation)
    return kept
