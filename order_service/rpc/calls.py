"""Admits calls and answers their errors: what the middlewares of the HTTP API do, in the same order.

A call of gRPC is an HTTP/2 POST. Where limits and audit log read a request, they get the call as an ASGI scope.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from types import SimpleNamespace
from typing import Any, TypeVar
from urllib.parse import unquote

import structlog
from google.protobuf.message import Message
from grpc import StatusCode
from grpc.aio import ServicerContext
from prometheus_client import Counter, Histogram
from pymongo.errors import PyMongoError
from starlette.datastructures import Headers
from starlette.types import Scope
from structlog.contextvars import bind_contextvars

from order_service.rpc import MAX_CALLS
from order_service.rpc.failures import TOO_MANY_CALLS, Failure, failure_of
from shared import problems, tracing
from shared.access.errors import AuthenticationError
from shared.access.middleware import permission_of
from shared.access.permissions import Permission
from shared.access.principal import Principal
from shared.admission import Admission, Places
from shared.audit_log import AuditLog
from shared.errors import TransientError
from shared.guard import objection_to_site
from shared.http import ProblemError, invalid, require_permission
from shared.request_id import REQUEST_ID_HEADER, identify

MESSAGE_SECONDS = 10.0
"""How long a client may take to send the message of a call."""
IDEMPOTENCY_KEY = "idempotency-key"
MAX_KEY_LENGTH = 255
MAX_ID_LENGTH = 200
_UNEXPECTED = Failure(problems.INTERNAL_ERROR, "An unexpected error; it has been logged")

Context = ServicerContext[Any, Any]
Method = Callable[..., Coroutine[Any, Any, Message | None]]
"""A method of the service: takes the request and the call; returns the answer, or has sent all of them."""
Result = TypeVar("Result")

_log = structlog.get_logger(__name__)
_handled = Counter(
    "grpc_server_handled_total", "Calls of gRPC that ended, by their status", ["grpc_method", "grpc_code"]
)
_handling = Histogram("grpc_server_handling_seconds", "Time until a call of gRPC ended", ["grpc_method"])


@dataclass(frozen=True, slots=True)
class Call:
    """One admitted call."""

    caller: Principal
    headers: Headers
    scope: Scope
    context: Context
    calls: "Calls"
    decision: "Decision"

    async def message(self) -> bytes:
        """Return the message of the call, see `message_of`."""
        return await message_of(self.context, MESSAGE_SECONDS)

    @property
    def idempotency_key(self) -> str | None:
        """The key in the metadata, None without one. Raises the 422 problem if it is not valid."""
        given = self.headers.getlist(IDEMPOTENCY_KEY)
        if not given:
            return None
        if len(given) > 1 or not 1 <= len(given[0]) <= MAX_KEY_LENGTH:
            raise invalid((IDEMPOTENCY_KEY, f"must be one value of 1 to {MAX_KEY_LENGTH} characters"))
        return given[0]

    def about(self, order_id: str) -> str:
        """Name the order of the call in the audit log and in log lines; return its id. Raises the 422 problem."""
        if not 1 <= len(order_id) <= MAX_ID_LENGTH:
            raise invalid(("orderId", f"must have 1 to {MAX_ID_LENGTH} characters"))
        self.scope["path_params"] = {"order_id": order_id}
        bind_contextvars(order_id=order_id)  # of this call's task alone
        return order_id

    async def send(self, message: Message) -> None:
        """Send one of several answers; waits while the client reads slower than they come."""
        await self.context.write(message)

    async def finish(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Do work that continues if the client gives up: what is stored must be published and recorded too."""
        return await self.calls.finish(self.decision.of(work), self.scope["path"])

    async def is_known(self) -> bool:
        """Return whether the caller's credential is still valid; for calls that take long."""
        try:
            await self.require_known()
        except AuthenticationError:
            return False
        return True

    async def require_known(self) -> None:
        """Raise AuthenticationError once the caller's credential has ended."""
        await self.calls.require_known(self)


class Decision:
    """What is decided about a call. It is recorded in the audit log once."""

    def __init__(self, audit: AuditLog, scope: Scope, permission: Permission | None) -> None:
        self._audit = audit
        self._scope = scope
        self._permission = permission
        self._is_recorded = False
        self.caller: Principal | None = None

    async def record(self, status: HTTPStatus) -> None:
        """Record it, unless that has been done."""
        if not self._is_recorded:
            self._is_recorded = True
            await self._audit.decided(self._scope, self.caller, self._permission, status.value)

    async def of(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Do the work that the call is about, and record how it ended."""
        try:
            result = await work
        except Exception as error:
            await self.record(_failure_of(error).kind.status)
            raise
        await self.record(HTTPStatus.OK)
        return result


class Calls:
    """The calls of one server."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._places = Places()
        self._unfinished: set[asyncio.Task[Any]] = set()

    @asynccontextmanager
    async def admitted(self, path: str, method: Method, context: Context) -> AsyncIterator[Call]:
        """Admit a call, and end it with a status if it is refused or the block raises.

        Nothing of the message is read before, so a client that is not known takes no place, and cannot keep us waiting.
        """
        scope = _scope(path, method, context)
        decision = Decision(self._admission.audit, scope, permission_of(method))
        request_id = identify(scope)
        trailing: list[tuple[str, str | bytes]] = [(REQUEST_ID_HEADER.lower(), request_id)]
        name, started = path.rpartition("/")[2], time.perf_counter()
        code = StatusCode.OK
        try:
            headers = Headers(scope=scope)
            with tracing.working(f"grpc {name}", None, headers.get("traceparent")):
                decision.caller = caller = await self._caller(scope, headers)
                trailing += [
                    (key.lower(), value) for key, value in (await self._admission.limits.count(caller)).items()
                ]
                self._require_service()
                require_permission(caller, permission_of(method))
                with self._place():
                    context.set_trailing_metadata(tuple(trailing))
                    yield Call(caller, headers, scope, context, self, decision)
            await decision.record(HTTPStatus.OK)
        except asyncio.CancelledError:
            code = StatusCode.DEADLINE_EXCEEDED if context.time_remaining() == 0 else StatusCode.CANCELLED
            raise
        except Exception as error:  # noqa: BLE001 - the client gets a status, and a defect is logged
            failure = noted_failure(error, path)
            code = failure.code
            await decision.record(failure.kind.status)
            details = ("grpc-status-details-bin", failure.details())
            await context.abort(failure.code, failure.message, (*trailing, details))
        finally:
            _handled.labels(name, code.name).inc()
            _handling.labels(name).observe(time.perf_counter() - started)

    async def finish(self, work: Coroutine[Any, Any, Result], path: str) -> Result:
        """See Call.finish."""
        task = asyncio.create_task(work)
        self._unfinished.add(task)
        task.add_done_callback(self._unfinished.discard)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.add_done_callback(lambda task: _note_failed(task, path))  # nobody else sees its error
            raise

    async def drain(self) -> None:
        """Wait for the work whose clients have given up."""
        if self._unfinished:
            await asyncio.wait(set(self._unfinished))

    async def require_known(self, call: Call) -> None:
        """See Call.require_known."""
        try:
            present = await self._admission.authenticator.authenticate(call.headers)
        except TransientError:
            return  # the issuer of tokens is away
        if present.id != call.caller.id:
            raise AuthenticationError("The credential of this call has ended")

    async def _caller(self, scope: Scope, headers: Headers) -> Principal:
        if objection := objection_to_site("POST", headers, page=False):
            raise ProblemError(HTTPStatus.FORBIDDEN, objection)
        try:
            return await self._admission.authenticator.authenticate(headers)
        except AuthenticationError:
            await self._admission.limits.count_failure(scope)
            raise

    def _require_service(self) -> None:
        if reason := self._admission.refusal():
            raise ProblemError(HTTPStatus.SERVICE_UNAVAILABLE, reason, headers={"Retry-After": "1"})

    @contextmanager
    def _place(self) -> Iterator[None]:
        with self._places.one() as taken:
            if taken > MAX_CALLS:
                detail = f"{MAX_CALLS} calls are in progress already; try again"
                raise ProblemError(TOO_MANY_CALLS.status, detail, kind=TOO_MANY_CALLS, headers={"Retry-After": "1"})
            yield


async def message_of(context: Context, within: float) -> bytes:
    """Return the message of a call. Raises ProblemError if it does not arrive within the seconds, or there is none."""
    # The read ends with the call. Cancelling it would leak a message that arrives at this moment.
    reading = asyncio.ensure_future(context.read())
    reading.add_done_callback(lambda task: task.cancelled() or task.exception())
    await asyncio.wait({reading}, timeout=within)
    if not reading.done():
        raise ProblemError(HTTPStatus.REQUEST_TIMEOUT, "The message of the call did not arrive in time")
    message: bytes | object = reading.result()
    if not isinstance(message, bytes):
        raise ProblemError(problems.INVALID_REQUEST.status, "The call ended without a message")
    return message


def _failure_of(error: Exception) -> Failure:
    return failure_of(error) or _UNEXPECTED


def noted_failure(error: Exception, path: str) -> Failure:
    """Return how a call ends that raised the error, and log what an operator should know of."""
    failure = _failure_of(error)
    if failure is _UNEXPECTED:
        _log.error("call failed", path=path, exc_info=error)
    elif isinstance(error, TransientError | PyMongoError):
        _log.warning("call failed, a server is unavailable", path=path, error=str(error))
    return failure


def _note_failed(task: "asyncio.Task[Any]", path: str) -> None:
    if not task.cancelled() and isinstance(error := task.exception(), Exception):
        noted_failure(error, path)


def _scope(path: str, method: Method, context: Context) -> Scope:
    """Return the call as a request of HTTP, in which reading is no POST."""
    metadata = context.invocation_metadata() or ()
    headers = [(key.encode(), value.encode()) for key, value in metadata if isinstance(value, str)]
    return {
        "type": "http",
        "method": "GET" if permission_of(method) is Permission.ORDERS_READ else "POST",
        "path": path,
        "headers": headers,
        "client": _client(context.peer()),
        "route": SimpleNamespace(path=path),
    }


def _client(peer: str) -> tuple[str, int] | None:
    """Return address and port of a peer such as ipv4:127.0.0.1:50000 or ipv6:%5B::1%5D:50000."""
    kind, _, place = unquote(peer).partition(":")
    address, _, port = place.rpartition(":")
    return (address.strip("[]"), int(port)) if kind in ("ipv4", "ipv6") and port.isdigit() else None
