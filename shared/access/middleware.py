"""Authenticates each request before its body is read, and gives routes the caller and the check of a permission."""

from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Annotated, Any, Protocol, TypeVar

from fastapi import Depends, Request
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shared.access.authenticator import Authenticator
from shared.access.errors import (
    AuthenticationError,
    CredentialMissingError,
    IssuerUnavailableError,
    SessionsUnavailableError,
    TooManyRequestsError,
)
from shared.access.limits import RequestLimits
from shared.access.permissions import Permission
from shared.access.principal import Principal
from shared.errors import TransientError

Refusal = AuthenticationError | IssuerUnavailableError | SessionsUnavailableError | TooManyRequestsError
Refuse = Callable[[Scope, Receive, Send, Refusal], Awaitable[None]]
"""Answers a request that is not handled."""

API_BESIDE_PAGES = "/api/"
"""Below this path, a process with pages answers programs: by their own credentials, never by a person's session."""

_PRINCIPAL = "ordersaga.principal"
_RECOGNIZE = "ordersaga.recognize"
_PERMISSION = "__ordersaga_permission__"


class People(Protocol):
    """How people are known in a browser, where they sign in once, besides the credentials of programs."""

    @property
    def open_paths(self) -> Collection[str]:
        """Paths of pages that answer to everybody, above all the one for signing in."""
        ...

    async def person(self, scope: Scope) -> Principal | None:
        """Return the person who sends a request, None if it is not known.

        Raises AuthenticationError or SessionsUnavailableError.
        """
        ...

    def answer_unknown(self, scope: Scope) -> Response | None:
        """Return what leads a browser to the page for signing in; None if the request is not from a page."""
        ...


Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])


class Authenticated:
    """Finds out who calls, before any work on a request. Only the paths in `open_paths` answer to everybody."""

    def __init__(
        self,
        app: ASGIApp,
        authenticator: Authenticator,
        limits: RequestLimits,
        open_paths: Collection[str],
        refuse: Refuse,
        people: People | None = None,
    ) -> None:
        self._app = app
        self._people = people
        self._authenticator = authenticator
        self._limits = limits
        self._open_paths = frozenset(open_paths).union(people.open_paths if people else ())
        self._refuse = refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it."""
        if scope["type"] != "http" or scope["path"] in self._open_paths:
            await self._app(scope, receive, send)
            return
        try:
            caller = await self._caller(scope)
            headers = await self._limits.count(caller)
        except CredentialMissingError as error:
            people = self._people_at(scope)
            answer = people.answer_unknown(scope) if people else None
            await (answer(scope, receive, send) if answer else self._refuse(scope, receive, send, error))
            return
        except (AuthenticationError, IssuerUnavailableError, SessionsUnavailableError, TooManyRequestsError) as error:
            await self._refuse(scope, receive, send, error)
            return
        scope[_PRINCIPAL] = caller
        scope[_RECOGNIZE] = self._caller
        await self._app(scope, receive, _with_headers(send, headers) if headers else send)

    def _people_at(self, scope: Scope) -> People | None:
        return None if scope["path"].startswith(API_BESIDE_PAGES) else self._people

    async def _caller(self, scope: Scope) -> Principal:
        people = self._people_at(scope)
        if people is not None and (person := await people.person(scope)) is not None:
            return person
        try:
            return await self._authenticator.authenticate(Headers(scope=scope))
        except CredentialMissingError:
            # A page that is open in a browser asks again and again after its session has ended.
            if people is None:
                await self._limits.count_failure(scope)
            raise
        except AuthenticationError:
            # Only failures count: a caller that shares an address with an attacker is still served.
            await self._limits.count_failure(scope)
            raise


def _with_headers(send: Send, headers: Mapping[str, str]) -> Send:
    added = [(name.lower().encode(), value.encode()) for name, value in headers.items()]

    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message["headers"], *added]
        await send(message)

    return send_with_headers


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


async def is_still_known(scope: Scope) -> bool:
    """Return whether the credential of a request is still valid, for an answer that takes long.

    A key may be revoked, and a token or session may end, while an answer is being sent. True while the issuer of tokens
    or the database of sessions is away.
    """
    recognize = scope.get(_RECOGNIZE)
    try:
        return recognize is None or (await recognize(scope)).id == scope[_PRINCIPAL].id
    except (AuthenticationError, TooManyRequestsError):
        return False
    except TransientError:
        return True


def identified_caller(scope: Scope) -> Principal:
    """Return who calls. Raises RuntimeError on an open path, which answers to callers who are not known."""
    caller = caller_of(scope)
    if caller is None:
        raise RuntimeError(f"{scope['path']} is an open path, and has no caller")
    return caller


async def caller_of_request(request: Request) -> Principal:
    """Return who calls, for a route's parameter. Raises RuntimeError on an open path."""
    return identified_caller(request.scope)


Caller = Annotated[Principal, Depends(caller_of_request)]
"""The type of a route's parameter that is the caller of the request."""
