"""A route that reads requests by itself: the same answers and documentation as any other, for a fraction of the work.

FastAPI looks up for each request which parameters an endpoint has and where each comes from. For the one route that
most requests go to, this takes longer than the order that it places. Here it is looked up once, when the route is made.
"""

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from fastapi.exceptions import RequestValidationError
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from shared.access.middleware import identified_caller
from shared.access.principal import Principal
from shared.http import StrictRequest, StrictRoute, authorize, check_media_type

Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])
Check = Callable[[Headers, Principal], Awaitable[None]]
"""Raises the error that answers a request with these headers of the caller; returns if the body is to be read."""

_CHECK = "__ordersaga_check_before_body__"
_NO_BODY = {"type": "missing", "loc": ("body",), "msg": "Field required", "input": None}


def checked_before_body(check: Check) -> Callable[[Endpoint], Endpoint]:
    """Return a decorator that lets the lean route of an endpoint call `check` for callers with its permission."""

    def declare(endpoint: Endpoint) -> Endpoint:
        setattr(endpoint, _CHECK, check)
        return endpoint

    return declare


class LeanRoute(StrictRoute):
    """A route whose endpoint takes a model as body, the caller, the request, and any number of single headers."""

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        """Raise TypeError if the endpoint takes anything else, because it would not be read."""
        super().__init__(path, endpoint, **options)
        reads = self.dependant
        others = (reads.path_params, reads.query_params, reads.cookie_params)
        if any(others) or len(reads.body_params) != 1 or len(reads.dependencies) != 1 or not reads.request_param_name:
            raise TypeError(f"{path}: a lean route takes one body, the caller, the request, and headers")
        self._headers = [(field, field.alias.lower().encode(), field.get_default()) for field in reads.header_params]
        self._body = reads.body_params[0]
        self._request_name = reads.request_param_name
        self._caller_name = str(reads.dependencies[0].name)
        self._check: Check | None = getattr(endpoint, _CHECK, None)
        self.app = self._serve

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        authorize(scope, self.endpoint)
        request, caller = StrictRequest(scope, receive, send), identified_caller(scope)
        if self._check is not None:
            await self._check(request.headers, caller)
        check_media_type(request.headers)
        body, wrong = await self._read_body(request)
        arguments, errors = self._read_headers(scope)
        errors += wrong
        if errors:
            raise RequestValidationError(errors)
        arguments[self._body.name] = body
        arguments[self._request_name] = request
        arguments[self._caller_name] = caller
        response = await self.endpoint(**arguments)
        await response(scope, receive, send)

    async def _read_body(self, request: StrictRequest) -> tuple[Any, list[Any]]:
        """Return the body and what is wrong with it. Raises the HTTPException 400 if it is not JSON."""
        try:
            if not await request.body():
                return None, [_NO_BODY]
            given = await request.json()
        except (ValueError, ClientDisconnect) as error:
            raise HTTPException(400) from error
        return self._body.validate(given, loc=("body",))

    def _read_headers(self, scope: Scope) -> tuple[dict[str, Any], list[Any]]:
        given: dict[bytes, bytes] = {}
        for name, value in scope["headers"]:
            given.setdefault(name, value)
        arguments: dict[str, Any] = {}
        errors: list[Any] = []
        for field, name, default in self._headers:
            if name not in given:
                arguments[field.name] = default
                continue
            text = given[name].decode("latin-1")
            arguments[field.name], wrong = field.validate(text, loc=("header", field.alias))
            errors += wrong
        return arguments, errors
