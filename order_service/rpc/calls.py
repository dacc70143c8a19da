"""Admits calls and answers their errors: what the middlewares of the HTTP API do, in the same order.

A call of gRPC is an HTTP/2 POST. Where limits and audit log read a request, they get the call as an ASGI scope.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
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

from order_service.rpc.failures import Failure, failure_of
from shared import problems, tracing
from shared.access.errors import AuthenticationError
from shared.access.middleware import permission_of
from shared.access.permissions import Permission
from shared.access.principal import Principal
from shared.admission import Admission
from shared.errors import TransientError
from shared.guard import objection_to_site
from shared.http import ProblemError, invalid, require_permission
from shared.request_id import REQUEST_ID_HEADER, identify

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
        """Do work that goes on if the client gives up: what is stored must be published too."""
        return await self.calls.finish(work)

    async def require_known(self) -> None:
        """Raise AuthenticationError once the caller's credential has ended; for calls that take long."""
        await self.calls.require_known(self)


class Calls:
    """The calls of one server."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._unfinished: set[asyncio.Task[Any]] = set()

    @asynccontextmanager
    async def admitted(self, path: str, method: Method, context: Context) -> AsyncIterator[Call]:
        """Admit a call, and end it with a status if it is refused or the block raises."""
        scope = _scope(path, method, context)
        request_id = identify(scope)
        trailing: list[tuple[str, str | bytes]] = [(REQUEST_ID_HEADER.lower(), request_id)]
        name, started = path.rpartition("/")[2], time.perf_counter()
        caller, code = None, StatusCode.OK
        try:
            headers = Headers(scope=scope)
            with tracing.working(f"grpc {name}", None, headers.get("traceparent")):
                caller = await self._caller(scope, headers)
                trailing += [
                    (key.lower(), value) for key, value in (await self._admission.limits.count(caller)).items()
                ]
                self._require_service()
                require_permission(caller, permission_of(method))
                context.set_trailing_metadata(tuple(trailing))
                yield Call(caller, headers, scope, context, self)
            await self._record(scope, caller, method, HTTPStatus.OK)
        except asyncio.CancelledError:
            code = StatusCode.DEADLINE_EXCEEDED if context.time_remaining() == 0 else StatusCode.CANCELLED
            raise
        except Exception as error:  # noqa: BLE001 - the client gets a status, and a defect is logged
            failure = self._failure(error, path)
            code = failure.code
            await self._record(scope, caller, method, failure.kind.status)
            details = ("grpc-status-details-bin", failure.details())
            await context.abort(failure.code, failure.message, (*trailing, details))
        finally:
            _handled.labels(name, code.name).inc()
            _handling.labels(name).observe(time.perf_counter() - started)

    async def finish(self, work: Coroutine[Any, Any, Result]) -> Result:
        """See Call.finish."""
        task = asyncio.create_task(work)
        self._unfinished.add(task)
        task.add_done_callback(self._unfinished.discard)
        return await asyncio.shield(task)

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

    def _failure(self, error: Exception, path: str) -> Failure:
        failure = failure_of(error)
        if failure is None:
            _log.error("call failed", path=path, exc_info=error)
            return _UNEXPECTED
        if isinstance(error, TransientError | PyMongoError):
            _log.warning("call failed, a server is unavailable", path=path, error=str(error))
        return failure

    async def _record(self, scope: Scope, caller: Principal | None, method: Method, status: HTTPStatus) -> None:
        await self._admission.audit.decided(scope, caller, permission_of(method), status.value)


def _scope(path: str, method: Method, context: Context) -> Scope:
    """Return the call as a request of HTTP, in which reading is no POST."""
    metadata = context.invocation_metadata() or ()
    headers = [(key.encode(), value.encode("latin-1")) for key, value in metadata if isinstance(value, str)]
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
