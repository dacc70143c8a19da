"""The page about packages of servers: what is left of each, and who is buying from it."""

import asyncio
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Form, Query, Request, Response
from fastapi.responses import RedirectResponse

from operations.console.dependencies import ConsoleDependencies
from operations.console.forms import OptionalName, Why, named, remember
from operations.console.operator_actions import OperatorAction, execute
from operations.console.pages import Pages
from operations.console.upstream import Missing, attempt, path

MOST = 200


def create_packages(desk: ConsoleDependencies, pages: Pages) -> APIRouter:
    """The page, and the clearing of a lock."""
    router = pages.router()

    @router.get("/packages")
    async def packages(request: Request) -> Response:
        offered, locks, seen = await asyncio.gather(
            desk.services.get_list("provisioning", "/packages", MOST),
            desk.services.get_list("provisioning", "/locks", MOST),
            attempt(desk.packages.find().sort("_id").limit(MOST).to_list(None), "MongoDB"),
        )
        return pages.show(
            request,
            "packages.html",
            offered=offered,
            locks=_locks(locks),
            seen=seen,
        )

    @router.get("/locks")
    async def ask(request: Request, package: Annotated[str, Query(max_length=200)]) -> Response:
        """Have the operator confirm that the package is to be free."""
        return pages.show(request, "lock_clear.html", package=package, why="", error=None)

    @router.post("/locks")
    async def clear(
        request: Request,
        package: Annotated[str, Form(max_length=200)],
        why: Annotated[Why, Form()],
        by: Annotated[OptionalName, Form()] = "",
    ) -> Response:
        """Free the package; its holder stops before it buys."""
        operator = named(request, desk, by)
        deed = OperatorAction(operator, why, "lock.clear", package)
        trouble = await execute(desk, deed, "DELETE", "provisioning", path("locks", package), done="cleared")
        if trouble is None:
            return remember(request, desk, RedirectResponse("/packages", 303), operator)
        shown = pages.show(request, "lock_clear.html", trouble.status, package=package, why=why, error=trouble)
        return remember(request, desk, shown, operator)

    return router


def _locks(items: list[dict[str, Any]] | Missing) -> list[dict[str, Any]] | Missing:
    """The locks, with their times as times."""
    if isinstance(items, Missing):
        return items
    times = ("acquiredAt", "expiresAt", "progressAt")
    return [{**item, **{name: datetime.fromisoformat(item[name]) for name in times if name in item}} for item in items]
