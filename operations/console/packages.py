"""The page about packages of servers: their free addresses, and the orders that hold their locks."""

import asyncio
from collections.abc import Mapping, Sequence
from datetime import datetime
from http import HTTPStatus
from typing import Annotated, Any, NamedTuple

from fastapi import APIRouter, Form, Path, Query, Request, Response

from operations.console.dependencies import ConsoleDependencies
from operations.console.forms import Why, actor, redirect
from operations.console.lists import PageLinks, address, page_links
from operations.console.operator_actions import OperatorAction, ServiceCall, execute
from operations.console.pages import Pages
from operations.console.upstream import Unavailable, attempt, path
from shared.access.middleware import requires
from shared.access.permissions import Permission
from shared.database import Document

PAGE = 50
Cursor = Annotated[str, Query(max_length=1000)]
Page = Annotated[int, Query(ge=1, le=10_000)]
PackagePath = Annotated[str, Path(min_length=1, max_length=200)]


class ListPage(NamedTuple):
    """A page of a list of the service, how many there are on all pages, and the first page and the next one."""

    items: Sequence[Mapping[str, Any]]
    total: int | None
    first: str | None
    more: str | None


class LastKnown(NamedTuple):
    """A page of the packages as they were last seen, and its links."""

    items: Sequence[Document]
    links: PageLinks


def create_packages(dependencies: ConsoleDependencies, pages: Pages) -> APIRouter:
    """Return the routes of the page, and those that clear a lock."""
    router = pages.router()

    @router.get("/packages")
    @requires(Permission.PROVISIONING_READ)
    async def packages(request: Request, cursor: Cursor = "", locks: Cursor = "", seen: Page = 1) -> Response:
        asked = {"cursor": cursor, "locks": locks, "seen": str(seen) if seen > 1 else ""}
        offered, held = await asyncio.gather(
            _read_page(dependencies, "/packages", "cursor", asked), _read_page(dependencies, "/locks", "locks", asked)
        )
        last_known = await _read_last_known(dependencies, seen, asked) if isinstance(offered, Unavailable) else None
        return pages.show(
            request,
            "packages.html",
            offered=offered,
            locks=held if isinstance(held, Unavailable) else held._replace(items=_locks(held.items)),
            seen=last_known,
        )

    @router.get("/locks")
    @requires(Permission.LOCKS_CLEAR)
    async def ask(request: Request, package: Annotated[str, Query(max_length=200)]) -> Response:
        """Ask for confirmation and a reason."""
        return pages.show(request, "lock_clear.html", package=package, why="", error=None)

    @router.post("/locks")
    @requires(Permission.LOCKS_CLEAR)
    async def clear(
        request: Request,
        package: Annotated[str, Form(max_length=200)],
        why: Annotated[Why, Form()],
    ) -> Response:
        """Clear the lock of a package; its holder stops before the next purchase."""
        action = OperatorAction(actor(request), why, "lock.clear", package)
        failed = await execute(
            dependencies, action, ServiceCall("DELETE", "provisioning", path("locks", package)), done="cleared"
        )
        if failed is None:
            return redirect("/packages")
        return pages.show(request, "lock_clear.html", failed.status, package=package, why=why, error=failed)

    @router.get("/packages/{package}/sale")
    @requires(Permission.CATALOGUE_WRITE)
    async def ask_sale(request: Request, package: PackagePath, disabled: bool = False) -> Response:
        """Ask for confirmation and a reason."""
        return show_sale(request, package, is_open=not disabled)

    @router.post("/packages/{package}/sale")
    @requires(Permission.CATALOGUE_WRITE)
    async def switch(
        request: Request, package: PackagePath, on_sale: Annotated[bool, Form()], why: Annotated[Why, Form()]
    ) -> Response:
        """Have no more servers of a package bought, or buy again, and log it."""
        action = OperatorAction(actor(request), why, "package.sale", package)
        body = {"disabled": not on_sale} | ({} if on_sale else {"reason": why})
        where, done = path("packages", package), "enabled" if on_sale else "disabled"
        failed = await execute(dependencies, action, ServiceCall("PATCH", "provisioning", where, body), done=done)
        return redirect("/packages") if failed is None else show_sale(request, package, not on_sale, failed, why)

    def show_sale(request: Request, package: str, is_open: bool, failed: Any = None, why: str = "") -> Response:
        status = failed.status if failed else HTTPStatus.OK
        return pages.show(
            request,
            "sale.html",
            status,
            what=package,
            is_open=is_open,
            error=failed,
            why=why,
            address=path("packages", package, "sale"),
            back="/packages",
        )

    return router


async def _read_page(
    dependencies: ConsoleDependencies, which: str, parameter: str, asked: Mapping[str, str]
) -> ListPage | Unavailable:
    """Read a page of the list with this path, whose cursor the page of packages has in this parameter."""
    cursor = {"cursor": asked[parameter]} if asked[parameter] else {}
    found = await dependencies.services.get("provisioning", which, limit=PAGE, **cursor)
    if isinstance(found, Unavailable):
        return found
    following = found.body.get("nextCursor")
    return ListPage(
        found.body.get("items", []),
        # A service of an earlier release does not say how many there are.
        found.body.get("total"),
        address("/packages", asked, **{parameter: ""}) if cursor else None,
        address("/packages", asked, **{parameter: following}) if following else None,
    )


async def _read_last_known(
    dependencies: ConsoleDependencies, page: int, asked: Mapping[str, str]
) -> LastKnown | Unavailable:
    """Read a page of the packages as the provisioning service last saw them."""
    records = dependencies.packages
    skipped = (page - 1) * PAGE
    found, total = await asyncio.gather(
        attempt(records.find().sort("_id").skip(skipped).limit(PAGE).to_list(None), "MongoDB"),
        attempt(records.count_documents({}), "MongoDB"),
    )
    if isinstance(found, Unavailable):
        return found
    if isinstance(total, Unavailable):
        return total
    others = {name: value for name, value in asked.items() if name != "seen"}
    links = page_links("/packages", others, page=page, size=PAGE, shown=len(found), total=total, parameter="seen")
    return LastKnown(found, links)


def _locks(items: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the locks, with their times parsed."""
    times = ("acquiredAt", "expiresAt", "progressAt")
    return [{**item, **{name: datetime.fromisoformat(item[name]) for name in times if name in item}} for item in items]
