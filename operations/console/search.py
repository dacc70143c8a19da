"""The search box of every page: any id leads to its page, or to a list of what was found and where."""

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from operations.console.dependencies import ConsoleDependencies
from operations.console.forms import redirect
from operations.console.pages import Pages
from operations.console.upstream import why_not
from operations.search.lookups import Lookups
from operations.search.searching import LONGEST, search
from shared.access.middleware import Caller, requires
from shared.access.permissions import Permission


def create_search(dependencies: ConsoleDependencies, pages: Pages) -> APIRouter:
    """Return the route of the search."""
    router = pages.router()
    places = Lookups(dependencies.client, dependencies.prefix).places()

    @router.get("/search")
    @requires(Permission.SELF_READ)
    async def find(
        request: Request, *, text: Annotated[str, Query(alias="q", max_length=LONGEST)] = "", caller: Caller
    ) -> Response:
        """Lead to the page of what has this id, or list what was found; each place needs a permission of its own."""
        text = text.strip()
        if not text:
            return pages.show(request, "search.html", query="", found=None)
        found = await search(places, text, caller, why_not)
        if found.only_page is not None:
            return redirect(found.only_page)
        return pages.show(request, "search.html", query=text, found=found)

    return router
