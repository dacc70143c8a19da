"""What the forms of all actions have in common: a reason, and the name of who acts, which is remembered."""

from typing import Annotated

from fastapi import APIRouter, Form, Request, Response
from fastapi.responses import RedirectResponse
from pydantic import StringConstraints

from operations.console.dependencies import ConsoleDependencies
from operations.console.operator_name import COOKIE_SECONDS, MOST_OF_A_NAME, OPERATOR_COOKIE, cookie_value, operator_of
from operations.console.pages import Pages
from shared.http import conflict, invalid

Why = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=500)]
"""The reason of an action: for the log, and required."""

Note = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=2000)]
"""What an operator has found out."""

OptionalName = Annotated[str, StringConstraints(strip_whitespace=True, max_length=MOST_OF_A_NAME)]
"""The name that a form asks for where no proxy says who the operator is."""


def create_operator(desk: ConsoleDependencies, pages: Pages) -> APIRouter:
    """The page on which an operator says who it is."""
    router = pages.router()

    @router.get("/operator")
    async def ask(request: Request) -> Response:
        if desk.operator_header:
            raise conflict("The proxy before the console says who you are")
        return pages.show(request, "operator.html")

    @router.post("/operator")
    async def keep(request: Request, by: Annotated[OptionalName, Form()] = "") -> Response:
        return remember(request, desk, RedirectResponse("/", 303), named(request, desk, by))

    return router


def named(request: Request, desk: ConsoleDependencies, given: str) -> str:
    """Return who acts: as the proxy says where one is set, else as the form says or as it said before.

    Raises the 422 problem where nobody is named: nothing is done namelessly.
    """
    known = operator_of(request, desk.operator_header)
    name = known if desk.operator_header else given or known
    if name:
        return name
    if desk.operator_header:
        raise invalid(("by", f"the proxy has not sent the header {desk.operator_header} with the operator's name"))
    raise invalid(("by", "your name is required: it is written to the log of actions"))


def remember(request: Request, desk: ConsoleDependencies, response: Response, name: str) -> Response:
    """Keep the operator's name for the next form, unless a proxy says it."""
    if not desk.operator_header:
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
