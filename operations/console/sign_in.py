"""Sign-in by OpenID Connect or by a link, and sign-out."""

from http import HTTPStatus
from typing import Annotated
from urllib.parse import quote, urlencode, urlsplit

from fastapi import APIRouter, Form, Query, Request, Response
from pydantic import Field, StringConstraints

from operations.actions import record_action
from operations.console.dependencies import ConsoleDependencies
from operations.console.forms import actor, redirect
from operations.console.pages import Pages
from operations.console.people import (
    SIGN_IN,
    SIGN_IN_CALLBACK,
    SIGN_IN_LINK,
    SIGN_IN_OIDC,
    cookie_name,
    is_secure,
    local_target,
)
from operations.sign_in.links import SignInLinks
from operations.sign_in.oidc import OidcSignIn, read_pending
from operations.sign_in.person import MOST_OF_A_NAME, Person
from operations.sign_in.sessions import Sessions
from shared.access.errors import AuthenticationError
from shared.access.middleware import requires
from shared.access.permissions import STAFF, Permission, Role
from shared.clock import to_rfc3339
from shared.http import Body, ProblemError, View, add_routes, invalid, json_response, new_router

PENDING_COOKIE = "-sign-in"
PENDING_SECONDS = 600
"""The time that a person has to sign in at the issuer."""

_WHY = "to use the console"
Token = Annotated[str, StringConstraints(min_length=1, max_length=200)]


class NewLink(Body):
    """The person whom a link signs in."""

    name: Annotated[str, Field(min_length=1, max_length=MOST_OF_A_NAME)]
    role: str


class Link(View):
    """A link that signs a person in once."""

    path: str
    expires_at: str


def create_sign_in(dependencies: ConsoleDependencies, pages: Pages, sessions: Sessions) -> APIRouter:
    """Return the routes of sign-in and sign-out."""
    router, links = pages.router(), SignInLinks(dependencies.operations, dependencies.clock)
    entrance = Entrance(dependencies, sessions)
    _add_page(router, pages, dependencies.oidc)
    if dependencies.oidc is not None:
        _add_oidc(router, dependencies.oidc, entrance)
    _add_link(router, pages, links, entrance)
    _add_sign_out(router, entrance)
    add_routes(router, _creation_of_links(dependencies, links))
    return router


class Entrance:
    """Signs people in and out: their sessions, the cookie in their browser, and the log."""

    def __init__(self, dependencies: ConsoleDependencies, sessions: Sessions) -> None:
        self._dependencies = dependencies
        self._sessions = sessions

    async def enter(self, request: Request, person: Person, method: str, target: str) -> Response:
        """Begin a new session, whatever the browser had before, and show a page.

        Raises the 403 problem for people without a role of staff.
        """
        if not person.roles & STAFF:
            raise _no_staff(person)
        await self._end(request)
        secret = await self._sessions.begin(person)
        await self._log(person.label, "sign-in", f"by {method}, as {', '.join(sorted(person.roles & STAFF))}")
        response = redirect(target)
        self.set_cookie(response, request, self.cookie(request), secret)
        return response

    async def leave(self, request: Request) -> Response:
        """End the session of the browser."""
        await self._end(request)
        await self._log(actor(request), "sign-out", "signed out")
        response = redirect(SIGN_IN)
        self.set_cookie(response, request, self.cookie(request), "", 0)
        return response

    def cookie(self, request: Request, purpose: str = "") -> str:
        """Return the name of a cookie of the console."""
        return cookie_name(is_secure(request.scope, self._dependencies.public_url), purpose)

    def set_cookie(
        self, response: Response, request: Request, name: str, value: str, seconds: int | None = None
    ) -> None:
        """Set a cookie that scripts cannot read, and that other sites cannot make a browser send with a form."""
        secure = is_secure(request.scope, self._dependencies.public_url)
        response.set_cookie(name, value, max_age=seconds, path="/", secure=secure, httponly=True, samesite="lax")

    def address(self, request: Request, path: str) -> str:
        """Return the address at which browsers reach a path of the console."""
        base = self._dependencies.public_url or f"{request.url.scheme}://{request.url.netloc}"
        return f"{base}{path}"

    async def _end(self, request: Request) -> None:
        if former := request.cookies.get(self.cookie(request)):
            await self._sessions.end(former)

    async def _log(self, by: str, action: str, outcome: str) -> None:
        database = self._dependencies.operations
        await record_action(database, by=by, why=_WHY, action=action, subject="console", outcome=outcome)


def _no_staff(person: Person) -> ProblemError:
    roles = ", ".join(sorted(person.roles)) or "no role"
    return ProblemError(
        HTTPStatus.FORBIDDEN,
        f"The console is for staff ({', '.join(sorted(STAFF))}); {person.label} has {roles}. "
        "Ask an administrator of the issuer for a role, and sign in again",
    )


def _add_page(router: APIRouter, pages: Pages, oidc: OidcSignIn | None) -> None:
    @router.get(SIGN_IN)
    async def ask(request: Request, target: Annotated[str, Query(alias="next", max_length=3000)] = "/") -> Response:
        issuer = urlsplit(oidc.issuer.url).netloc if oidc else None
        start = f"{SIGN_IN_OIDC}?{urlencode({'next': local_target(target)})}"
        return pages.show(request, "sign_in.html", issuer=issuer, start=start)


def _add_oidc(router: APIRouter, oidc: OidcSignIn, entrance: Entrance) -> None:
    @router.get(SIGN_IN_OIDC)
    async def begin(request: Request, target: Annotated[str, Query(alias="next", max_length=3000)] = "/") -> Response:
        """Send the browser to the issuer."""
        address, pending = await oidc.begin(entrance.address(request, SIGN_IN_CALLBACK), local_target(target))
        response, name = redirect(address), entrance.cookie(request, PENDING_COOKIE)
        entrance.set_cookie(response, request, name, pending.as_cookie(), PENDING_SECONDS)
        return response

    @router.get(SIGN_IN_CALLBACK)
    async def finish(
        request: Request,
        code: Annotated[str, Query(max_length=4000)] = "",
        state: Annotated[str, Query(max_length=200)] = "",
        error: Annotated[str, Query(max_length=200)] = "",
    ) -> Response:
        """Sign the person in whom the issuer names."""
        name = entrance.cookie(request, PENDING_COOKIE)
        pending = read_pending(request.cookies.get(name, ""))
        if error:
            raise ProblemError(HTTPStatus.FORBIDDEN, f"The issuer refused the sign-in: {error}")
        if pending is None or not code:
            raise ProblemError(
                HTTPStatus.FORBIDDEN,
                f"This browser has not begun to sign in within the last {PENDING_SECONDS // 60} minutes: try again",
            )
        try:
            person = await oidc.finish(pending, state, code, entrance.address(request, SIGN_IN_CALLBACK))
        except AuthenticationError as failure:
            raise ProblemError(HTTPStatus.FORBIDDEN, str(failure)) from None
        response = await entrance.enter(request, person, "OpenID Connect", local_target(pending.next))
        entrance.set_cookie(response, request, name, "", 0)
        return response


def _add_link(router: APIRouter, pages: Pages, links: SignInLinks, entrance: Entrance) -> None:
    @router.get(SIGN_IN_LINK)
    async def ask(request: Request, token: Annotated[Token, Query()]) -> Response:
        """Show whom the link signs in. Programs that open links in advance do not use it up."""
        who = await links.look(token)
        if who is None:
            raise _no_link()
        return pages.show(request, "sign_in_link.html", who=who, token=token)

    @router.post(SIGN_IN_LINK)
    async def enter(request: Request, token: Annotated[Token, Form()]) -> Response:
        """Sign the person in."""
        who = await links.use(token)
        if who is None:
            raise _no_link()
        return await entrance.enter(request, who, "a link", "/")


def _no_link() -> ProblemError:
    return ProblemError(
        HTTPStatus.GONE, "This link has been used or has expired: run `ordersaga console` again for a new one"
    )


def _add_sign_out(router: APIRouter, entrance: Entrance) -> None:
    @router.post("/sign-out")
    @requires(Permission.SELF_READ)
    async def leave(request: Request) -> Response:
        return await entrance.leave(request)


def _creation_of_links(dependencies: ConsoleDependencies, links: SignInLinks) -> APIRouter:
    router = new_router("sign-in")

    @router.post("/sign-in/links", status_code=201, response_model=Link, include_in_schema=False)
    @requires(Permission.KEYS_MANAGE)
    async def create(request: Request, wanted: NewLink) -> Response:
        """Create a link that signs a person in once, within a minute: `path` below the address of the console."""
        allowed = sorted(STAFF)
        if wanted.role not in allowed:
            raise invalid(("role", f"is {wanted.role[:100]!r}, must be one of {', '.join(allowed)}"))
        if not wanted.name.isprintable() or not wanted.name.strip():
            raise invalid(("name", "must have only printable characters"))
        person = Person(wanted.name, wanted.name, frozenset({Role(wanted.role)}))
        secret, expires = await links.create(person)
        await record_action(
            dependencies.operations,
            by=actor(request),
            why=_WHY,
            action="sign-in.link",
            subject=wanted.name,
            outcome=f"a link as {wanted.role}, valid until {to_rfc3339(expires)}",
        )
        link = Link(path=f"{SIGN_IN_LINK}?token={quote(secret)}", expires_at=to_rfc3339(expires))
        return json_response(link.model_dump(), 201, {"Cache-Control": "no-store"})

    return router
