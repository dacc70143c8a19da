"""Routes that read requests by themselves: the same answers and documentation, for a fraction of the work.

FastAPI looks up for each request which parameters an endpoint has and where each comes from, which may take longer than
what the endpoint does. Here it is looked up once, when the route is made.
"""

import inspect
from collections.abc import Awaitable, Callable
from types import UnionType
from typing import TYPE_CHECKING, Any, TypeVar, Union, get_args, get_origin

from fastapi.exceptions import RequestValidationError
from fastapi.params import Form
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from structlog.contextvars import bound_contextvars

from shared.access.middleware import caller_of_request, identified_caller
from shared.access.principal import Principal
from shared.guard import SAFE_METHODS
from shared.http import StrictRequest, StrictRoute, authorize, check_media_type, order_named

if TYPE_CHECKING:
    from fastapi._compat import ModelField

Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])
Check = Callable[[Headers, Principal], Awaitable[None]]
"""Raises the error that answers a request with these headers of the caller; returns if the body is to be read."""

Errors = list[Any]
"""What is wrong with a request, as pydantic describes it."""

_SINGLE = (str, int, float, bool, type(None))
_CHECK = "__ordersaga_check_before_body__"
_NO_BODY = {"type": "missing", "loc": ("body",), "msg": "Field required", "input": None}


def checked_before_body(check: Check) -> Callable[[Endpoint], Endpoint]:
    """Return a decorator that lets the lean route of an endpoint call `check` for callers with its permission."""

    def declare(endpoint: Endpoint) -> Endpoint:
        setattr(endpoint, _CHECK, check)
        return endpoint

    return declare


def _is_single(header: "ModelField") -> bool:
    """Return False for a header that may be sent several times, that is a model of several, or that must be there."""
    annotation = header.field_info.annotation
    kinds = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    return all(kind in _SINGLE for kind in kinds) and not header.field_info.is_required()


class LeanRoute(StrictRoute):
    """A route that reads parts of the path, single headers, a JSON body, the caller and the request by itself.

    Where the endpoint takes anything else, such as parameters of the query, the framework reads them all.
    """

    def __init__(self, path: str, endpoint: Callable[..., Awaitable[Response]], **options: Any) -> None:
        """Raise TypeError if the endpoint is not asynchronous: it is called as it is, and its response sent."""
        super().__init__(path, endpoint, **options)
        if not inspect.iscoroutinefunction(endpoint):
            raise TypeError(f"{path}: the endpoint of a lean route must be asynchronous, and return a response")
        reads = self.dependant
        self._parts_of_path = reads.path_params
        self._headers = [(field, field.alias.lower().encode(), field.get_default()) for field in reads.header_params]
        self._body = next(iter(reads.body_params), None)
        self._request_name = reads.request_param_name
        self._caller_names = [str(each.name) for each in reads.dependencies]
        self._check: Check | None = getattr(endpoint, _CHECK, None)
        if not self._takes_more():
            self.app = self._serve
        elif self._check is not None:
            raise TypeError(f"{path}: the framework reads the body before anything can be checked")

    def _takes_more(self) -> bool:
        """Return whether the endpoint takes anything that is not read here."""
        reads = self.dependant
        others = (
            *reads.query_params,
            *reads.cookie_params,
            *reads.body_params[1:],
            *(field for field in reads.body_params if self._embed_body_fields or isinstance(field.field_info, Form)),
            *(field for field in reads.header_params if not _is_single(field)),
            *(each for each in reads.dependencies if each.call is not caller_of_request),
            reads.response_param_name,
            reads.background_tasks_param_name,
            reads.http_connection_param_name,
            reads.security_scopes_param_name,
        )
        return any(other is not None for other in others)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        authorize(scope, self.endpoint)
        with bound_contextvars(**order_named(scope)):
            request = StrictRequest(scope, receive, send)
            if self._check is not None:
                await self._check(request.headers, identified_caller(scope))
            if self._body is not None or scope["method"] not in SAFE_METHODS:
                check_media_type(request.headers)
            response = await self.endpoint(**await self._arguments(request))
        await response(scope, receive, send)

    async def _arguments(self, request: StrictRequest) -> dict[str, Any]:
        """Return the arguments. Raises RequestValidationError, or the HTTPException 400 without valid JSON."""
        found: dict[str, Any] = {}
        body_errors = [] if self._body is None else await self._read_body(self._body, request, found)
        errors = [*self._read_path(request.scope, found), *self._read_headers(request.scope, found), *body_errors]
        if errors:
            raise RequestValidationError(errors)
        if self._request_name is not None:
            found[self._request_name] = request
        for name in self._caller_names:
            found[name] = identified_caller(request.scope)
        return found

    async def _read_body(self, field: "ModelField", request: StrictRequest, found: dict[str, Any]) -> Errors:
        try:
            if not await request.body():
                found[field.name] = field.get_default()
                return [_NO_BODY] if field.field_info.is_required() else []
            given = await request.json()
        except (ValueError, ClientDisconnect) as error:
            raise HTTPException(400) from error
        found[field.name], errors = field.validate(given, loc=("body",))
        return errors

    def _read_path(self, scope: Scope, found: dict[str, Any]) -> Errors:
        errors: Errors = []
        for field in self._parts_of_path:
            found[field.name], wrong = field.validate(scope["path_params"][field.alias], loc=("path", field.alias))
            errors += wrong
        return errors

    def _read_headers(self, scope: Scope, found: dict[str, Any]) -> Errors:
        given: dict[bytes, bytes] = {}
        for name, value in scope["headers"]:
            given.setdefault(name, value)
        errors: Errors = []
        for field, name, default in self._headers:
            if name not in given:
                found[field.name] = default
                continue
            text = given[name].decode("latin-1")
            found[field.name], wrong = field.validate(text, loc=("header", field.alias))
            errors += wrong
        return errors
