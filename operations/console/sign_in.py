"""Signing in to the console and out of it: who has a session, the pages for it, and who is acting."""

from collections.abc import Collection
from http import HTTPStatus
from typing import Annotated
from urllib.parse import quote, urlsplit

from fastapi import APIRouter, Form, Query, Request, Response
from fastapi.responses import PlainTextResponse, RedirectResponse
from pydantic import StringConstraints
from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send

from operations.console.acting import acting
from operations.console.dependencies import ConsoleDependencies
from operations.console.pages import Pages
from operations.sessions import LIFETIME, Person, Sessions
from shared.access.authenticator import Authenticates
from shared.access.errors import CredentialMissingError
from shared.access.middleware import Refusal, requires
from shared.access.permissions import STAFF, Permission, Role, parse_role
from shared.access.principal import Principal
from shared.http import Body, answer_refused, invalid, json_response, new_router

SIGN_IN = "/sign-in"
SIGN_OUT = "/sign-out"
LINKS = "/sign-in/links"
COOKIE = "ordersaga-session"
SECURE_COOKIE = f"__Host-{COOKIE}"
"""Browsers take a cookie of this name only over https, for the whole site, and from no other host."""

PersonName = Annotated[str, StringConstraints(strip_whitespace=True, pattern=r"^[^\x00-\x1f\x7f;]{1,100}$")]
Token = Annotated[str, StringConstraints(min_length=1, max_length=200)]


class NewLink(Body):
    """Who is to sign in, and with which role."""

    person: PersonName
    role: Annotated[str, StringConstraints(max_length=100)]


class SignIn:
    """Recognizes people by their session; whoever has none is led to the page for signing in."""

    def __init__(self, dependencies: ConsoleDependencies, assets: Collection[str]) -> None:
        """`assets` are the paths of the files that the page for signing in needs."""
        self._dependencies = dependencies
        self.sessions = Sessions(dependencies.operations, dependencies.clock)
        self.open_paths = frozenset({SIGN_IN, *assets})

    def authenticator(self, base: Authenticates) -> Authenticates:
        """Return an authenticator that also knows sessions, and the proxy that names the operator."""
        return _WithSessions(base, self.sessions)

    async def refuse(self, scope: Scope, receive: Receive, send: Send, error: Refusal) -> None:
        """Lead a person to the page for signing in; answer everybody else with a problem."""
        headers = Headers(scope=scope)
        if not isinstance(error, CredentialMissingError) or "text/html" not in headers.get("accept", ""):
            await answer_refused(scope, receive, send, error)
            return
        if "hx-request" in headers:  # a part of a page that is open: the whole page must go
            response: Response = PlainTextResponse(str(error), HTTPStatus.UNAUTHORIZED, {"HX-Redirect": SIGN_IN})
            await response(scope, receive, send)
            return
        query = scope.get("query_string", b"").decode("latin-1")
        here = scope["path"] + (f"?{query}" if query else "") if scope["method"] in ("GET", "HEAD") else "/"
        response = RedirectResponse(f"{SIGN_IN}?next={quote(here, safe='')}", HTTPStatus.SEE_OTHER)
        await response(scope, receive, send)


class _WithSessions:
    def __init__(self, base: Authenticates, sessions: Sessions) -> None:
        self._base = base
        self._sessions = sessions

    async def authenticate(self, headers: Headers) -> Principal:
        acting.set(None)
        token = session_token(headers)
        if token is None or "authorization" in headers:
            return await self._base.authenticate(headers)
        person = await self._sessions.find(token)
        if person is None:
            raise CredentialMissingError("Your session has ended: sign in again")
        caller = person.principal()
        acting.set(caller)
        return caller


def session_token(headers: Headers) -> str | None:
    """Return the token of the session in the request's cookie."""
    cookies = Request({"type": "http", "headers": headers.raw}).cookies
    return cookies.get(SECURE_COOKIE) or cookies.get(COOKIE)


def create_sign_in(pages: Pages, sessions: Sessions) -> APIRouter:
    """Return the pages for signing in and out, and the route that creates links."""
    router = pages.router()

    @router.get(SIGN_IN)
    async def ask(
        request: Request,
        link: Annotated[Token | None, Query()] = None,
        next: Annotated[str, Query()] = "/",  # noqa: A002
    ) -> Response:
        return pages.show(request, "sign_in.html", link=link, next=local_path(next), failed=False)

    @router.post(SIGN_IN)
    async def sign_in(
        request: Request,
        link: Annotated[Token, Form()],
        next: Annotated[str, Form()] = "/",  # noqa: A002
    ) -> Response:
        person = await sessions.use_link(link)
        if person is None:
            return pages.show(request, "sign_in.html", HTTPStatus.FORBIDDEN, link=None, next="/", failed=True)
        return _with_session(request, RedirectResponse(local_path(next), 303), await sessions.start(person))

    @router.post(SIGN_OUT)
    @requires(Permission.SELF_READ)
    async def sign_out(request: Request) -> Response:
        if token := session_token(request.headers):
            await sessions.end(token)
        response = RedirectResponse(SIGN_IN, 303)
        response.delete_cookie(SECURE_COOKIE, secure=True, httponly=True)
        response.delete_cookie(COOKIE, httponly=True)
        return response

    router.include_router(_link_routes(sessions))
    return router


def _link_routes(sessions: Sessions) -> APIRouter:
    """Return the route for the command line, which answers JSON as the services do."""
    router = new_router("console")

    @router.post(LINKS, include_in_schema=False)
    @requires(Permission.KEYS_MANAGE)
    async def create_link(new: NewLink) -> Response:
        """Create a link that signs this person in once."""
        token = await sessions.create_link(Person(new.person, frozenset({_staff_role(new.role)})))
        return json_response({"path": f"{SIGN_IN}?link={token}"}, HTTPStatus.CREATED)

    return router


def _staff_role(name: str) -> Role:
    try:
        role = parse_role(name)
    except ValueError as error:
        raise invalid(("role", str(error))) from None
    if role not in STAFF:
        raise invalid(("role", f"{role} has no access to the console; allowed are {', '.join(sorted(STAFF))}"))
    return role


def local_path(address: str) -> str:
    """Return the address if it is a page of this console, else that of the first page.

    A browser takes `//host`, `/\\host` and a scheme for another site.
    """
    try:
        parts = urlsplit(address)
    except ValueError:
        return "/"
    strange = parts.scheme or parts.netloc or "\\" in address or any(ord(character) < 33 for character in address)
    return "/" if strange or not address.startswith("/") or address.startswith("//") else address


def _with_session(request: Request, response: Response, token: str) -> Response:
    secure = request.url.scheme == "https"
    response.set_cookie(
        SECURE_COOKIE if secure else COOKIE,
        token,
        max_age=int(LIFETIME.total_seconds()),
        httponly=True,
        samesite="lax",
        secure=secure,
        path="/",
    )
    return response
