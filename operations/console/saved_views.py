"""Saved views: the filters of a list under a name, as links above it, for everybody who may see the list.

A view is saved by anybody who may see the list, and deleted by who saved it, or by who may decide about orders: one
that nobody needs any more must not stay because somebody has left.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Form, Path, Request, Response
from pydantic import StringConstraints

from operations.actions import record_action
from operations.console.dependencies import ConsoleDependencies
from operations.console.forms import actor, redirect
from operations.console.pages import Pages
from operations.console.upstream import Unavailable, attempt
from operations.saved_views.query import LISTS, MOST_CHARACTERS, NOT_KEPT, ListPage, address_of, kept_query
from operations.saved_views.records import LONGEST_NAME, MOST_VIEWS, SavedView, SavedViews
from shared.access.middleware import caller_of, requires
from shared.access.permissions import Permission
from shared.http import ProblemError, conflict, invalid, not_found

VIEW_SAVE, VIEW_DELETE = "view.save", "view.delete"
Name = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=LONGEST_NAME)]


@dataclass(frozen=True, slots=True)
class ShownViews:
    """The views above a list, and what can be saved or deleted there."""

    page: ListPage
    items: Sequence[SavedView] | Unavailable
    query: str
    left_out: Sequence[str]
    caller: str
    decides: bool

    @property
    def current(self) -> SavedView | None:
        """The view that is shown; None if the filters are those of no view."""
        if isinstance(self.items, Unavailable) or not self.query:
            return None
        return next((view for view in self.items if view.query == self.query), None)

    @property
    def deletable(self) -> bool:
        """True if the caller may delete the view that is shown."""
        return self.current is not None and (self.decides or self.current.by == self.caller)

    @property
    def full(self) -> bool:
        """True if there is no room for another view."""
        return not isinstance(self.items, Unavailable) and len(self.items) >= MOST_VIEWS


async def views_of(request: Request, dependencies: ConsoleDependencies, path: str) -> ShownViews:
    """Return what the page of a list shows of its views."""
    page = LISTS[path]
    query = kept_query(page, request.url.query)
    return ShownViews(
        page,
        await attempt(SavedViews(dependencies.operations).of(page), "MongoDB"),
        query,
        [name for name in NOT_KEPT if request.query_params.get(name, "").strip()],
        actor(request),
        _decides(request),
    )


def create_saved_views(dependencies: ConsoleDependencies, pages: Pages) -> APIRouter:
    """Return the routes that save and delete views, for each list with the permission to see it."""
    router, views = pages.router(), SavedViews(dependencies.operations, dependencies.clock)
    for page in LISTS.values():
        _add_page(router, dependencies, views, page)
    return router


def _add_page(router: APIRouter, dependencies: ConsoleDependencies, views: SavedViews, page: ListPage) -> None:
    async def log(request: Request, action: str, name: str, outcome: str) -> None:
        logged = {"by": actor(request), "why": "", "action": action, "subject": name}
        await record_action(dependencies.operations, **logged, outcome=outcome)

    @router.post(f"{page.path}/views")
    @requires(page.permission)
    async def save(
        request: Request,
        name: Annotated[Name, Form()],
        query: Annotated[str, Form(max_length=MOST_CHARACTERS)] = "",
    ) -> Response:
        """Save the filters of the list under a name, and show them."""
        kept = kept_query(page, query)
        if not kept:
            raise invalid(("query", "has no filter of this list: choose some, and save them then"))
        if not await views.add(page, name, kept, actor(request)):
            raise conflict(f"The list has a view {name} already, or {MOST_VIEWS} views: delete one first")
        await log(request, VIEW_SAVE, name, f"saved for {address_of(page, kept)}")
        return redirect(address_of(page, kept))

    @router.post(f"{page.path}/views/{{view_id}}/delete")
    @requires(page.permission)
    async def delete(request: Request, view_id: Annotated[str, Path(max_length=32)]) -> Response:
        """Delete a view, and show the list as it was shown."""
        view = await views.find(page, view_id)
        if view is None:
            raise not_found(f"The view {view_id}")
        if view.by != actor(request) and not _decides(request):
            raise ProblemError(
                HTTPStatus.FORBIDDEN, f"{view.by} saved this view: deleting it needs {Permission.ORDERS_DECIDE}"
            )
        await views.remove(view)
        await log(request, VIEW_DELETE, view.name, f"deleted from {page.path}; {view.by} had saved it")
        return redirect(view.address)


def _decides(request: Request) -> bool:
    caller = caller_of(request.scope)
    return caller is not None and caller.may(Permission.ORDERS_DECIDE)
