"""The page about packages of servers: their free addresses, and the orders that hold their locks."""

import asyncio
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Form, Query, Request, Response

from operations.console.dependencies import ConsoleDependencies
from operations.console.forms import Why, actor, redirect
from operations.console.operator_actions import OperatorAction, execute
from operations.console.pages import Pages
from operations.console.upstream import Unavailable, attempt, path
from shared.access.middleware import requires
from shared.access.permissions import Permission

MOST = 200


def create_packages(dependencies: ConsoleDependencies, pages: Pages) -> APIRouter:
    """Return the routes of the page, and those that clear a lock."""
    router = pages.router()

    @router.get("/packages")
    @requires(Permission.PROVISIONING_READ)
    async def packages(request: Request) -> Response:
        offered, locks, seen = await asyncio.gather(
            dependencies.services.get_list("provisioning", "/packages", MOST),
            dependencies.services.get_list("provisioning", "/locks", MOST),
            attempt(dependencies.packages.find().sort("_id").limit(MOST).to_list(None), "MongoDB"),
        )
        return pages.show(
            request,
            "packages.html",
            offered=offered,
            locks=_locks(locks),
            seen=seen,
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
        failed = await execute(dependencies, action, "DELETE", "provisioning", path("locks", package), done="cleared")
        if failed is None:
            return redirect("/packages")
        return pages.show(request, "lock_clear.html", failed.status, package=package, why=why, error=failed)

    return router


def _locks(items: list[dict[str, Any]] | Unavailable) -> list[dict[str, Any]] | Unavailable:
    """Return the locks, with their times parsed."""
    if isinstance(items, Unavailable):
        return items
    times = ("acquiredAt", "expiresAt", "progressAt")
    return [{**item, **{name: datetime.fromisoformat(item[name]) for name in times if name in item}} for item in items]
