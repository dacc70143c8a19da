"""Fields that all forms share: the reason, and the operator's name, which is remembered."""

from typing import Annotated

from fastapi import APIRouter, Form, Request, Response
from fastapi.responses import RedirectResponse
from pydantic import StringConstraints

from operations.console.dependencies import ConsoleDependencies
from operations.console.operator_name import COOKIE_SECONDS, MOST_OF_A_NAME, OPERATOR_COOKIE, cookie_value, operator_of
from operations.console.pages import Pages
from shared.access.middleware import requires
from shared.access.permissions import Permission
from shared.http import conflict, invalid

Why = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=500)]
"""The reason for an action, required for the log."""

Note = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=2000)]
"""An operator's note on a group."""

OptionalName = Annotated[str, StringConstraints(strip_whitespace=True, max_length=MOST_OF_A_NAME)]
"""The operator's name, which a form asks for unless a proxy sends it."""


def create_operator(dependencies: ConsoleDependencies, pages: Pages) -> APIRouter:
    """Return the routes of the page on which operators enter their name."""
    router = pages.router()

    @router.get("/operator")
    @requires(Permission.SELF_READ)
    async def ask(request: Request) -> Response:
        if dependencies.operator_header:
            raise conflict("The proxy in front of the console sends your name")
        return pages.show(request, "operator.html")

    @router.post("/operator")
    @requires(Permission.SELF_READ)
    async def keep(request: Request, by: Annotated[OptionalName, Form()] = "") -> Response:
        return redirect(request, dependencies, "/", named(request, dependencies, by))

    return router


def named(request: Request, dependencies: ConsoleDependencies, given: str) -> str:
    """Return the operator's name: from the proxy's header if one is set, else from the form or the cookie.

    Raises the 422 problem if there is no name: no action is anonymous.
    """
    known = operator_of(request, dependencies.operator_header)
    name = known if dependencies.operator_header else given or known
    if name:
        return name
    if dependencies.operator_header:
        raise invalid(
            ("by", f"the proxy did not send the operator's name in the header {dependencies.operator_header}")
        )
    raise invalid(("by", "your name is required for the log of actions"))


def redirect(request: Request, dependencies: ConsoleDependencies, address: str, name: str) -> Response:
    """Redirect to a page after an action, and remember the operator's name."""
    return remember(request, dependencies, RedirectResponse(address, 303), name)


def remember(request: Request, dependencies: ConsoleDependencies, response: Response, name: str) -> Response:
    """Remember the operator's name in a cookie, unless a proxy sends it."""
    if not dependencies.operator_header:
        secure = request.url.scheme == "https"
        response.set_cookie(
            OPERATOR_COOKIE,
            cookie_value(name),
            max_age=COOKIE_SECONDS,
            httponly=True,
            samesite="strict",
            secure=secure,
        )
    return response
