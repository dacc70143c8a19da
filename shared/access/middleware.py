"""Authenticates each request before its body is read, and gives routes the caller and the check of a permission."""

from collections.abc import Awaitable, Callable, Collection
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Request
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from shared.access.authenticator import Authenticator
from shared.access.errors import AuthenticationError
from shared.access.permissions import Permission
from shared.access.principal import Principal

Refuse = Callable[[Scope, Receive, Send, AuthenticationError], Awaitable[None]]
"""Answers a request whose caller is not known."""

_PRINCIPAL = "ordersaga.principal"
_PERMISSION = "__ordersaga_permission__"

Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])


class Authenticated:
    """Finds out who calls, before any work on a request. Only the paths in `open_paths` answer to everybody."""

    def __init__(self, app: ASGIApp, authenticator: Authenticator, open_paths: Collection[str], refuse: Refuse) -> None:
        self._app = app
        self._authenticator = authenticator
        self._open_paths = frozenset(open_paths)
        self._refuse = refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it."""
        if scope["type"] == "http" and scope["path"] not in self._open_paths:
            try:
                scope[_PRINCIPAL] = await self._authenticator.authenticate(Headers(scope=scope))
            except AuthenticationError as error:
                await self._refuse(scope, receive, send, error)
                return
        await self._app(scope, receive, send)


def requires(permission: Permission) -> Callable[[Endpoint], Endpoint]:
    """Return a decorator that declares the permission which a route needs. It goes below the one of the router."""

    def declare(endpoint: Endpoint) -> Endpoint:
        setattr(endpoint, _PERMISSION, permission)
        return endpoint

    return declare


def permission_of(endpoint: Callable[..., Any]) -> Permission | None:
    """Return the permission that a route declares."""
    permission: Permission | None = getattr(endpoint, _PERMISSION, None)
    return permission


def caller_of(scope: Scope) -> Principal | None:
    """Return who calls; None for an open path, or in an application without authentication."""
    principal: Principal | None = scope.get(_PRINCIPAL)
    return principal


async def _caller(request: Request) -> Principal:
    caller = caller_of(request.scope)
    if caller is None:
        raise RuntimeError(f"{request.url.path} is an open path, and has no caller")
    return caller


Caller = Annotated[Principal, Depends(_caller)]
"""The type of a route's parameter that is the caller of the request."""
