"""The HTTP side that all services share: problem answers (RFC 9457), health, readiness, metrics and the body limit."""

import logging
import time
from collections.abc import Awaitable, Callable, Collection, Coroutine, Mapping, Sequence
from datetime import datetime
from functools import cache
from http import HTTPStatus
from typing import Any, Literal
from urllib.parse import quote

import orjson
import structlog
from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from prometheus_client import CONTENT_TYPE_LATEST, Counter, Gauge, Histogram, disable_created_metrics, generate_latest
from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.alias_generators import to_camel
from pydantic_core import from_json
from pymongo.errors import PyMongoError
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware.body_limit import RequestBodyLimitMiddleware
from starlette.responses import PlainTextResponse
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from structlog.contextvars import bound_contextvars

from shared import database, problems, tracing
from shared.access.authenticator import Authenticator
from shared.access.errors import (
    AuthenticationError,
    CredentialMissingError,
    IssuerUnavailableError,
    SessionsUnavailableError,
    TooManyRequestsError,
)
from shared.access.limits import RequestLimits
from shared.access.middleware import (
    API_BESIDE_PAGES,
    Authenticated,
    Caller,
    People,
    Refusal,
    caller_of,
    permission_of,
    requires,
)
from shared.access.permissions import Permission
from shared.access.principal import Principal
from shared.audit_log import Audited, AuditLog
from shared.clock import to_rfc3339
from shared.direct_routes import DirectRoutes
from shared.errors import (
    BusUnavailableError,
    DatabaseUnavailableError,
    NewerReleaseError,
    OrdersagaError,
    TransientError,
)
from shared.guard import SAFE_METHODS, objection_to_host, objection_to_site, objection_to_write
from shared.openapi import JSON, PROBLEM_JSON, SECURITY_SCHEME, completed, documented, operation_id, words_of
from shared.outage_words import in_words
from shared.pausing.pause import PauseShown
from shared.problem_pages import create_problem_pages
from shared.problems import PROBLEM_PATHS, ProblemType
from shared.readiness import Outage
from shared.release import STARTED_AT, VERSION
from shared.request_id import RAW_REQUEST_ID_HEADER, REQUEST_ID_HEADER, current_request_id, identify
from shared.validation import explained, without_consequences
from shared.viewer import VIEWER_PATH, VIEWER_PATHS, create_viewer

MAX_BODY_BYTES = 256 * 1024
MAX_UNKNOWN_FIELDS = 20
"""The most unknown fields of one object that are reported one by one; a body with more is rejected as a whole."""
HEALTH = frozenset({"/healthz", "/readyz", "/metrics"})
"""Paths for monitoring a process."""
ALWAYS_SERVED = HEALTH | VIEWER_PATHS | PROBLEM_PATHS | {"/openapi.json", "/asyncapi.json"}
"""Paths that answer even before the service is ready."""
OPEN_PATHS = ALWAYS_SERVED - {"/metrics"}
"""Paths that answer to callers who are not known."""

_LINKED = HEALTH | {VIEWER_PATH}
"""Paths that links on other sites may open, such as the targets on Prometheus' pages."""

Readiness = Callable[[], Awaitable[dict[str, str]]]
"""Returns the reason why each failing part is down, by name; empty if the service is ready or degraded."""

Outages = Callable[[], Mapping[str, Outage]]
"""Returns what does not work at the moment, by name."""

Paused = Callable[[], PauseShown | None]
"""Returns the pause of the process's consumption, None if it is not paused."""

ReasonToWait = Callable[[str], str | None]
"""Returns the reason why no request to a path can be served now, or None."""

_HEADERS = {
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
}
"""The headers of every answer unless its route sets them: do not store, run or frame it."""
_RAW_HEADERS = tuple((name.encode(), value.encode()) for name, value in _HEADERS.items())

_log = structlog.get_logger(__name__)
# They would add a timestamp to every series; process_start_time_seconds has it once.
disable_created_metrics()  # type: ignore[no-untyped-call]
_build_info = Gauge("ordersaga_build_info", "Always 1; the label is the release that the process runs", ["version"])
_build_info.labels(VERSION).set(1)
_requests = Counter("http_requests_total", "HTTP requests", ["method", "route", "status"])
_duration = Histogram("http_request_duration_seconds", "Time to answer an HTTP request", ["method", "route"])
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
"""The methods that metrics name; clients may send any word as a method, and each would create series."""


class Body(BaseModel):
    """A request body: strict types, camelCase, no unknown fields."""

    model_config = ConfigDict(
        frozen=True,
        strict=True,
        extra="forbid",
        alias_generator=to_camel,
        validate_by_name=False,
        allow_inf_nan=False,
    )

    @model_validator(mode="before")
    @classmethod
    def _has_few_unknown_fields(cls, given: Any) -> Any:
        # Each unknown field is a separate error, and a body could cause tens of thousands of them.
        if isinstance(given, dict) and len(given) > len(cls.model_fields) + MAX_UNKNOWN_FIELDS:
            allowed = ", ".join(field.alias or name for name, field in cls.model_fields.items())
            raise ValueError(f"has {len(given)} fields, allowed are {allowed}")
        return given


def shown_as(example: Mapping[str, Any]) -> ConfigDict:
    """Return the configuration of a body or a view whose example in the OpenAPI document is this one."""
    return ConfigDict(json_schema_extra={"examples": [dict(example)]})


class View(BaseModel):
    """An answer as the API documents it."""

    model_config = ConfigDict(alias_generator=to_camel, validate_by_name=True, serialize_by_alias=True)


class FieldError(View):
    """What is wrong with one field of a request."""

    field: str = Field(examples=["items[0].quantity"])
    message: str


class Problem(View):
    """A problem answer (RFC 9457); `errors` only with status 422."""

    type: str = Field(description="a path of this process, where the type is explained; docs/problems.md lists all")
    title: str
    status: int
    detail: str = Field(description="for people; programs read `type`")
    request_id: str = Field(description="the same as in the header `X-Request-Id`, and in the log")
    errors: list[FieldError] | None = None


class ProblemError(OrdersagaError):
    """Raised by a route to answer with a problem; `kind` is its type, `detail` is for people."""

    def __init__(
        self,
        status: HTTPStatus,
        detail: str,
        *,
        kind: ProblemType | None = None,
        errors: Sequence[tuple[str, str]] = (),
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.kind = kind
        self.detail = detail
        self.errors = errors
        self.headers = headers


def not_found(what: str) -> ProblemError:
    """Return the problem for something that does not exist."""
    return ProblemError(HTTPStatus.NOT_FOUND, f"{what} does not exist")


def conflict(detail: str, kind: ProblemType = problems.CONFLICT) -> ProblemError:
    """Return the problem for a request that the present state does not allow."""
    return ProblemError(HTTPStatus.CONFLICT, detail, kind=kind)


def key_reused(detail: str) -> ProblemError:
    """Return the problem for an Idempotency-Key that belongs to another request."""
    errors = [("Idempotency-Key", detail)]
    return ProblemError(HTTPStatus.UNPROCESSABLE_ENTITY, detail, kind=problems.KEY_REUSED, errors=errors)


def invalid(*errors: tuple[str, str]) -> ProblemError:
    """Return the problem for a request with invalid fields, given as pairs of name and message."""
    return ProblemError(HTTPStatus.UNPROCESSABLE_ENTITY, "; ".join(f"{f}: {m}" for f, m in errors), errors=errors)


def json_response(content: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Return an answer in JSON."""
    return Response(orjson.dumps(content), status, headers, JSON)


REPLAYED = {"Idempotent-Replayed": "true"}
"""Marks the answer to a request whose key and body were used before: nothing was done again."""


def located(*steps: str) -> dict[str, str]:
    """Return the header with the path of what a request has created or changes, step by step."""
    return {"Location": "".join(f"/{quote(step, safe='')}" for step in steps)}


def problem_response(
    status: HTTPStatus,
    detail: str,
    *,
    kind: ProblemType | None = None,
    errors: Sequence[tuple[str, str]] = (),
    headers: dict[str, str] | None = None,
    **extra: Any,
) -> Response:
    """Return a problem document, with the headers of every answer, because it may be sent outside the middleware."""
    request_id = current_request_id()
    content = {**problem_content(status, detail, kind=kind, errors=errors), "requestId": request_id, **extra}
    all_headers = {**_HEADERS, REQUEST_ID_HEADER: request_id, **(headers or {})}
    return Response(orjson.dumps(content), status, all_headers, PROBLEM_JSON)


def problem_content(
    status: HTTPStatus, detail: str, *, kind: ProblemType | None = None, errors: Sequence[tuple[str, str]] = ()
) -> dict[str, Any]:
    """Return a problem document without the id of a request."""
    kind = kind or problems.general_type(status)
    content: dict[str, Any] = {
        "type": kind.uri if kind else "about:blank",
        "title": kind.title if kind else status.phrase,
        "status": status.value,
        "detail": detail,
    }
    if errors:
        content["errors"] = [{"field": field, "message": message} for field, message in errors]
    return content


class StrictRequest(Request):
    """Accepts only JSON as a body: UTF-8, no NaN, no endless nesting; anything else is a ValueError (400)."""

    async def json(self) -> Any:
        """Return the body. Raises ValueError if it is not such JSON."""
        return from_json(await self.body(), allow_inf_nan=False)


class StrictRoute(APIRoute):
    """Answers callers with the permission that its endpoint declares, and accepts only strict JSON as a body."""

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        if permission := permission_of(endpoint):
            described = {"security": [{SECURITY_SCHEME: []}], "x-permission": str(permission)}
            options["openapi_extra"] = (options.get("openapi_extra") or {}) | described
        summary, text = words_of(endpoint.__doc__)
        options["summary"] = options.get("summary") or summary
        options["description"] = options.get("description") or text
        super().__init__(path, endpoint, **options)

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return what checks a request and handles it."""
        handle = super().get_route_handler()
        reads_body = self.body_field is not None

        async def handle_strictly(request: Request) -> Response:
            authorize(request.scope, self.endpoint)
            with bound_contextvars(**order_named(request.scope)):
                # Also where a body means nothing: what a browser's form can send is no request to change something.
                if reads_body or request.method not in SAFE_METHODS:
                    check_media_type(request.headers)
                return await handle(StrictRequest(request.scope, request.receive))

        return handle_strictly


def authorize(scope: Scope, endpoint: Callable[..., Any]) -> None:
    """Raise the 403 problem unless the caller has the permission that a route declares.

    A route that declares no permission is open to no caller. Routes call this before they read the body. It does
    nothing where callers are not known: on open paths, and in an application that authenticates by itself.
    """
    caller = caller_of(scope)
    if caller is not None:
        require_permission(caller, permission_of(endpoint))


def require_permission(caller: Principal, permission: Permission | None) -> None:
    """Raise the 403 problem unless the caller has the permission."""
    if permission is None or not caller.may(permission):
        needed = permission or "a permission that does not exist, because its route declares none"
        roles = ", ".join(sorted(caller.roles)) or "no role"
        detail = f"This needs {needed}, which {caller.name} ({roles}) does not have"
        raise ProblemError(HTTPStatus.FORBIDDEN, detail, kind=problems.PERMISSION_MISSING)


def check_media_type(headers: Headers) -> None:
    """Raise the 415 problem if the headers announce a body that is not plain JSON; requests without a body pass."""
    if headers.get("content-length", "0") == "0" and "transfer-encoding" not in headers:
        return
    encoding = headers.get("content-encoding", "identity")
    if encoding.strip().lower() != "identity":
        detail = f"The body must not be compressed: Content-Encoding is {encoding[:100]!r}, only identity is allowed"
        raise ProblemError(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE, detail, headers={"Accept-Encoding": "identity", "Accept": JSON}
        )
    given = headers.get("content-type")
    name = (given or "").partition(";")[0].strip().lower()
    if name != JSON and not (name.startswith("application/") and name.endswith("+json")):
        stated = "is missing" if given is None else f"is {given[:100]!r}"
        detail = f"The header Content-Type {stated}, only {JSON} is allowed"
        raise ProblemError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, detail, headers={"Accept": JSON})


def new_router(*tags: str, route_class: type[StrictRoute] = StrictRoute, prefix: str = "") -> APIRouter:
    """Return a router whose routes accept only strict JSON as bodies; their paths begin with the prefix."""
    return APIRouter(prefix=prefix, tags=[*tags], route_class=route_class, generate_unique_id_function=operation_id)


def add_routes(router: APIRouter, *others: APIRouter) -> None:
    """Add the routes of other routers as they are, without the tags of this one.

    `include_router` builds each of them once more for every router around it, as it could change them. With the routes
    of the console, that took longer than anything else in its start.
    """
    for other in others:
        router.routes.extend(other.routes)


def create_app(
    title: str,
    description: str,
    readiness: Readiness,
    *,
    authenticator: Authenticator | None,
    outages: Outages = dict,
    paused: Paused = lambda: None,
    limits: RequestLimits | None = None,
    refusal: ReasonToWait = lambda _: None,
    names: Collection[str] = (),
    pages: bool = False,
    people: People | None = None,
    audit: AuditLog | None = None,
) -> FastAPI:
    """Return an application with the routes that all services serve; the service adds its own.

    Every path but OPEN_PATHS answers only to callers that `authenticator` knows, within `limits`, and that have the
    permission which the route declares; None is for an application that authenticates by itself. `audit` records what
    was decided. It answers to addresses, localhost and `names`, and refuses requests from other sites. With `pages`,
    its routes outside API_BESIDE_PAGES are pages for people: links on other sites may open them, and writes must come
    from them; `people` tells who is signed in. While `refusal` returns a reason, everything except ALWAYS_SERVED is
    answered with 503 and it.
    """
    app = _Application(
        title=title,
        description=description,
        version=VERSION,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        generate_unique_id_function=operation_id,
        # The framework's own spans and metrics; `tracing.traced` and `_Edge` below are ours.
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    app.router.middleware_stack = DirectRoutes(app.router)
    # Also for routes that are added to the application itself: they check the caller's permission.
    app.router.route_class = StrictRoute
    app.add_exception_handler(ProblemError, _answer_problem)
    app.add_exception_handler(RequestValidationError, _answer_invalid)
    app.add_exception_handler(HTTPException, _answer_http_exception)
    app.add_exception_handler(TransientError, _answer_unavailable)
    app.add_exception_handler(NewerReleaseError, _answer_newer)
    app.add_exception_handler(PyMongoError, _answer_database_error)
    app.add_exception_handler(Exception, _answer_fault)
    app.add_middleware(RequestBodyLimitMiddleware, max_body_size=MAX_BODY_BYTES)
    app.add_middleware(_RefuseUnserved, refusal=refusal)
    app.add_middleware(_RefuseDeclaredTooLarge)
    if authenticator is not None:
        app.add_middleware(
            Authenticated,
            authenticator=authenticator,
            limits=limits or RequestLimits(None, None),
            open_paths=OPEN_PATHS,
            refuse=_answer_refused,
            people=people,
        )
        app.add_middleware(Audited, audit=audit or AuditLog(None))
    app.add_middleware(_Edge, names=frozenset(names), pages=pages)
    if tracing.is_on():
        app.add_middleware(tracing.traced)
    app.add_middleware(_HeadAsGet)
    add_routes(app.router, _health_routes(readiness, outages, paused), create_problem_pages())
    if authenticator is not None:
        add_routes(app.router, _identity_routes())
    add_routes(app.router, create_viewer())
    return app


class HealthPause(View):
    """Since when the consumption of the inbox is paused, and until when: null until somebody resumes it."""

    since: datetime
    until: datetime | None


class Health(View):
    """The process is up (`ok`), ready, or ready although something does not work at the moment (`degraded`)."""

    status: Literal["ok", "ready", "degraded"]
    down: dict[str, str] | None = Field(None, description="with `degraded`: what does not work, and why")
    since: dict[str, datetime] | None = Field(None, description="with `degraded`: since when")
    paused: HealthPause | None = Field(None, description="the pause of the consumption, while there is one")


class Alive(Health):
    """The process is up, and runs this release."""

    model_config = shown_as({"status": "ok", "version": VERSION, "startedAt": "2026-01-31T09:30:00.000Z"})

    version: str
    started_at: datetime


def _health_routes(readiness: Readiness, outages: Outages, paused: Paused) -> APIRouter:
    router = new_router("health")

    @router.get("/healthz", response_model=Alive)
    async def get_health() -> Response:
        """Whether the process is up, which release it runs, and since when."""
        return json_response({"status": "ok", "version": VERSION, "startedAt": to_rfc3339(STARTED_AT)})

    @router.get("/readyz", response_model=Health, responses=documented(problems.NOT_READY))
    async def get_readiness() -> Response:
        """Whether MongoDB and RabbitMQ answer and the consumer runs; 503 with which one is down.

        A process that was ready says `degraded` instead until the outage has lasted for ORDERSAGA_READY_GRACE_SECONDS,
        and for as long as the breaker of its consumer is open. `paused` says that an operator has paused the
        consumption of its inbox: it is ready all the same, because it answers requests.
        """
        down = {name: in_words(why) for name, why in (await readiness()).items()}
        since = {name: to_rfc3339(outage.since) for name, outage in outages().items()}
        pause = _shown_pause(paused())
        if down:
            detail = "; ".join(f"{name}: {why}" for name, why in down.items())
            return problem_response(
                HTTPStatus.SERVICE_UNAVAILABLE, detail, kind=problems.NOT_READY, down=down, since=since, **pause
            )
        if since:
            away = {name: in_words(outage.why) for name, outage in outages().items()}
            return json_response({"status": "degraded", "down": away, "since": since, **pause})
        return json_response({"status": "ready", **pause})

    @router.get("/metrics", response_class=PlainTextResponse)
    @requires(Permission.METRICS_READ)
    async def get_metrics() -> Response:
        """Prometheus metrics."""
        return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)

    return router


def _shown_pause(pause: PauseShown | None) -> dict[str, Any]:
    if pause is None:
        return {}
    until = to_rfc3339(pause.until) if pause.until is not None else None
    return {"paused": {"since": to_rfc3339(pause.since), "until": until}}


class Identity(View):
    """Who calls, and what the caller may do."""

    model_config = shown_as(
        {
            "id": "key:3f9c0d21",
            "name": "shop backend",
            "owner": "shop",
            "subject": None,
            "roles": ["client"],
            "permissions": {"orders:place": "owner", "orders:read": "owner"},
            "method": "key",
        }
    )

    id: str
    name: str
    owner: str | None
    subject: str | None
    roles: list[str]
    permissions: dict[str, str]
    """The reach of each permission: `all` records, those of the `owner`, or those of one `person`."""
    method: str


def _identity_routes() -> APIRouter:
    router = new_router("access")

    @router.get("/me", response_model=Identity)
    @requires(Permission.SELF_READ)
    async def get_caller(caller: Caller) -> Response:
        """Who calls, by which method, and what the caller may do."""
        shown = Identity(
            id=caller.id,
            name=caller.name,
            owner=caller.owner,
            subject=caller.subject,
            roles=sorted(caller.roles),
            permissions={permission: reach.name.lower() for permission, reach in sorted(caller.grants.items())},
            method=caller.method,
        )
        return json_response(shown.model_dump())

    return router


async def _answer_refused(scope: Scope, receive: Receive, send: Send, error: Refusal) -> None:
    await _refused(error)(scope, receive, send)


def _refused(error: Refusal) -> Response:
    match error:
        case TooManyRequestsError():
            return problem_response(HTTPStatus.TOO_MANY_REQUESTS, str(error), headers=dict(error.headers))
        case IssuerUnavailableError() | SessionsUnavailableError():
            detail = error.for_clients or ""
            return problem_response(HTTPStatus.SERVICE_UNAVAILABLE, detail, headers={"Retry-After": "5"})
        case AuthenticationError():
            # RFC 6750: a request without any credential gets no error code.
            missing = isinstance(error, CredentialMissingError)
            return problem_response(
                HTTPStatus.UNAUTHORIZED,
                str(error),
                kind=problems.CREDENTIAL_MISSING if missing else problems.CREDENTIAL_INVALID,
                headers={"WWW-Authenticate": "Bearer" if missing else 'Bearer error="invalid_token"'},
            )


class _Application(FastAPI):
    """An application whose OpenAPI document is completed, see `shared.openapi`."""

    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            schema = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
            self.openapi_schema = completed(super().openapi(), schema)
        return self.openapi_schema


async def _answer_problem(_request: Request, error: Exception) -> Response:
    assert isinstance(error, ProblemError)  # noqa: S101 - for the type checker; guaranteed by the registration
    return problem_response(error.status, error.detail, kind=error.kind, errors=error.errors, headers=error.headers)


async def _answer_invalid(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)  # noqa: S101
    errors = [explained(problem) for problem in without_consequences(error.errors())]
    detail = "; ".join(f"{field}: {message}" for field, message in errors[:10])
    return problem_response(HTTPStatus.UNPROCESSABLE_ENTITY, detail, errors=errors[:100])


MAX_METHOD = 20
"""The most characters of a method that are repeated in an answer."""

_KINDS = {HTTPStatus.BAD_REQUEST: problems.MALFORMED_JSON, HTTPStatus.NOT_FOUND: problems.UNKNOWN_PATH}
"""The types of the framework's own errors, where they differ from those of our routes."""

_DETAILS = {
    HTTPStatus.BAD_REQUEST: "The body is not JSON",
    HTTPStatus.NOT_FOUND: "This path does not exist",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: f"The body is larger than {MAX_BODY_BYTES // 1024} KiB",
}


async def _answer_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101
    status = HTTPStatus(error.status_code)
    headers = dict(error.headers) if error.headers else {}
    detail = _DETAILS.get(status, str(error.detail))
    if status is HTTPStatus.METHOD_NOT_ALLOWED:
        headers["Allow"] = allowed = ", ".join(_allowed_methods(request))
        detail = f"The method is {request.method[:MAX_METHOD]}, allowed are {allowed}"
    return problem_response(status, detail, kind=_KINDS.get(status), headers=headers)


def _allowed_methods(request: Request) -> list[str]:
    """Return the methods of all routes at a request's path; the framework names only those of the first route."""
    scopes = {method: {**request.scope, "method": method} for method in _METHODS - {"HEAD"}}
    allowed = {
        method
        for method, scope in scopes.items()
        if any(route.matches(scope)[0] is Match.FULL for route in request.app.routes)
    }
    return sorted(allowed | {"HEAD"} if "GET" in allowed else allowed)


async def _answer_unavailable(request: Request, error: Exception) -> Response:
    """Answer with the server that is away; the driver's text, which may have addresses, is only logged."""
    assert isinstance(error, TransientError)  # noqa: S101
    _log.warning(
        "request failed, a server is unavailable",
        method=request.method,
        path=request.url.path,
        error=str(error),
        request_id=current_request_id(),
    )
    detail = error.for_clients or in_words(error)
    kind = kind_of_outage(error)
    return problem_response(HTTPStatus.SERVICE_UNAVAILABLE, detail, kind=kind, headers={"Retry-After": "1"})


def kind_of_outage(error: TransientError) -> ProblemType:
    """Return the type of the problem that a server's outage causes."""
    return next((kind for type_, kind in _AWAY if isinstance(error, type_)), problems.UNAVAILABLE)


_AWAY = (
    (DatabaseUnavailableError, problems.DATABASE_UNAVAILABLE),
    (BusUnavailableError, problems.BROKER_UNAVAILABLE),
)


async def _answer_newer(_request: Request, error: Exception) -> Response:
    """Answer that another process must do it, which is likely to get the same request next time."""
    kind, headers = problems.UNAVAILABLE, {"Retry-After": "1"}
    return problem_response(HTTPStatus.SERVICE_UNAVAILABLE, f"{error}; try again", kind=kind, headers=headers)


async def _answer_database_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, PyMongoError)  # noqa: S101
    if database.is_transient(error):
        return await _answer_unavailable(request, database.translate_error(error))
    return await _answer_fault(request, error)


async def _answer_fault(request: Request, error: Exception) -> Response:
    named = {**order_named(request.scope), "request_id": current_request_id()}
    _log.error("request failed", method=request.method, path=request.url.path, exc_info=error, **named)
    return problem_response(HTTPStatus.INTERNAL_SERVER_ERROR, "An unexpected error; it has been logged")


class _RefuseUnserved:
    """Answers 503 to everything except ALWAYS_SERVED while there is a reason, before any work on the request."""

    def __init__(self, app: ASGIApp, refusal: ReasonToWait) -> None:
        self._app = app
        self._refusal = refusal

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refused = scope["type"] == "http" and scope["path"] not in ALWAYS_SERVED
        if refused and (reason := self._refusal(scope["path"])):
            response = problem_response(HTTPStatus.SERVICE_UNAVAILABLE, reason, headers={"Retry-After": "1"})
            await response(scope, receive, send)
            return
        await self._app(scope, receive, send)


class _RefuseDeclaredTooLarge:
    """Answers a Content-Length over the limit with a problem; the framework's own limit answers in plain text."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            declared = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
            if declared.isdigit() and int(declared) > MAX_BODY_BYTES:
                status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE
                await problem_response(status, _DETAILS[status])(scope, receive, send)
                return
        await self._app(scope, receive, send)


class _Edge:
    """Gives requests an id, measures them, refuses foreign hosts and other sites, and completes every answer's headers.

    One layer for all of it: each layer around a request wraps both messages of its answer.
    """

    def __init__(self, app: ASGIApp, names: Collection[str], pages: bool) -> None:
        self._app = app
        self._names = names
        self._pages = pages

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        request_id = identify(scope)
        status = 500

        async def send_completed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = _completed(message.get("headers", ()), request_id)
            await send(message)

        try:
            refusal = self._refusal(scope)
            if refusal is not None:
                _log_refused(scope, refusal[1])
            answer = self._app if refusal is None else problem_response(*refusal)
            await answer(scope, receive, send_completed)
        finally:
            _measure(scope, status, time.perf_counter() - started)

    def _refusal(self, scope: Scope) -> tuple[HTTPStatus, str] | None:
        method, headers = scope["method"], Headers(scope=scope)
        # Browsers always send the host; old load balancers may not.
        for host in headers.getlist("host"):
            if objection := objection_to_host(host, self._names):
                return HTTPStatus.MISDIRECTED_REQUEST, objection
        is_page = self._pages and not scope["path"].startswith(API_BESIDE_PAGES)
        if is_page and method not in SAFE_METHODS:
            objection = objection_to_write(headers)
        else:
            objection = objection_to_site(method, headers, page=is_page or scope["path"] in _LINKED)
        return (HTTPStatus.FORBIDDEN, objection) if objection else None


def _completed(headers: Collection[tuple[bytes, bytes]], request_id: str) -> list[tuple[bytes, bytes]]:
    """Return the headers of an answer with those that every answer has, unless its route sets them."""
    added = (*_RAW_HEADERS, (RAW_REQUEST_ID_HEADER, request_id.encode()))
    given = {name for name, _ in headers}
    return [*headers, *(header for header in added if header[0] not in given)]


def _log_refused(scope: Scope, why: str) -> None:
    about = {"method": scope["method"], "path": scope["path"][:100], "why": why}
    _log.warning("request refused", **about, request_id=current_request_id())


def _measure(scope: Scope, status: int, seconds: float) -> None:
    """Measure a request by its route's template, because the number of paths is unlimited."""
    route = getattr(scope.get("route"), "path", "unknown")
    method = scope["method"] if scope["method"] in _METHODS else "other"
    counter, histogram = _request_metrics(method, route, status)
    counter.inc()
    histogram.observe(seconds)
    _log_request(scope, status, seconds)


class _HeadAsGet:
    """Answers HEAD like GET without the body; a stream ends before it begins."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return

        async def head_alone(message: Message) -> None:
            if message["type"] == "http.response.start":
                await send(message)
                # This completes the answer: a stream that continues sees its client disconnected.
                await send({"type": "http.response.body", "body": b""})

        await self._app({**scope, "method": "GET"}, receive, head_alone)


@cache
def _request_metrics(method: str, route: str, status: int) -> tuple[Counter, Histogram]:
    """Return what counts requests and what times them. There are as many as series, which Prometheus keeps anyway."""
    return _requests.labels(method, route, status), _duration.labels(method, route)


def _log_request(scope: Scope, status: int, seconds: float) -> None:
    if scope["path"] not in ALWAYS_SERVED and _log.is_enabled_for(logging.DEBUG):
        about = {"method": scope["method"], "path": scope["path"], "status": status, "seconds": round(seconds, 4)}
        _log.debug("request answered", **about, **order_named(scope))


def order_named(scope: Scope) -> dict[str, str]:
    """Return the id of the order in a request's path, for its log lines."""
    order_id = scope.get("path_params", {}).get("order_id")
    return {"order_id": order_id} if order_id else {}
