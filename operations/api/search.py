"""The route of the search over everything that has an id."""

from typing import Annotated

from fastapi import APIRouter, Query, Response
from pydantic import Field

from operations.api.routes import staff_router
from operations.console.dependencies import ConsoleDependencies
from operations.console.upstream import why_not
from operations.search.lookups import Lookups
from operations.search.searching import LONGEST, search
from shared.access.middleware import Caller, requires
from shared.access.permissions import Permission
from shared.http import View, invalid, json_response


class HitView(View):
    """Something that was found."""

    what: str = Field(examples=["order"])
    name: str
    detail: str
    exact: bool = Field(description="whether it is the thing itself; others name it, or begin so")
    page: str | None = Field(description="the page of the console that it has")


class PlaceView(View):
    """A place in which it was not looked, and why."""

    name: str
    failed: str | None = Field(description="why it could not be looked in")
    needs: str | None = Field(description="the permission that it needs, and the caller does not have")


class SearchResult(View):
    """What was found, the exact hits first; where it was looked, and where not."""

    hits: list[HitView]
    looked_in: list[str]
    not_looked_in: list[PlaceView]


def create_search(dependencies: ConsoleDependencies) -> APIRouter:
    """Return the route."""
    router = staff_router("state")
    places = Lookups(dependencies.client, dependencies.prefix).places()

    @router.get("/search", response_model=SearchResult)
    @requires(Permission.SELF_READ)
    async def find_anything(
        text: Annotated[str, Query(alias="q", max_length=LONGEST, description="An id, a number, a name or a part")],
        *,
        caller: Caller,
    ) -> Response:
        """What has this id, and what names it: orders, letters, products, servers, accounts, users and more.

        Each place needs a permission of its own; the answer says in which the caller may not look.
        """
        if not text.strip():
            raise invalid(("q", "must have at least 1 character"))
        return json_response((await search(places, text.strip(), caller, why_not)).as_json())

    return router
