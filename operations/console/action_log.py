"""The page of the log of actions."""

from typing import Annotated
from urllib.parse import urlencode

from fastapi import APIRouter, Query, Request, Response

from operations.actions import list_actions
from operations.console.dependencies import ConsoleDependencies
from operations.console.pages import Pages
from operations.console.upstream import Unavailable, attempt
from shared.access.middleware import requires
from shared.access.permissions import Permission
from shared.paging import wrong_cursor

PAGE = 50


def create_log(dependencies: ConsoleDependencies, pages: Pages) -> APIRouter:
    """Return the route of the log, of all actions or of one order, letter, group or package."""
    router = pages.router()

    @router.get("/actions")
    @requires(Permission.LETTERS_READ)
    async def actions(
        request: Request,
        subject: Annotated[str, Query(max_length=300)] = "",
        cursor: Annotated[str | None, Query(max_length=1000)] = None,
    ) -> Response:
        subject = subject.strip()
        asked = list_actions(dependencies.operations, subject=subject or None, limit=PAGE, cursor=cursor)
        try:
            found = await attempt(asked, "MongoDB")
        except ValueError:
            raise wrong_cursor() from None
        chosen = {"subject": subject} if subject else {}
        more = None
        if not isinstance(found, Unavailable) and found.next_cursor:
            more = "/actions?" + urlencode({**chosen, "cursor": found.next_cursor})
        return pages.show(request, "actions.html", found=found, more=more, subject=subject)

    return router
