"""The page about packages of servers: their free addresses, and the orders that hold their locks."""

import asyncio
from datetime import datetime
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Form, Path, Query, Request, Response

from operations.console.dependencies import ConsoleDependencies
from operations.console.forms import Why, actor, redirect
from operations.console.operator_actions import OperatorAction, execute
from operations.console.pages import Pages
from operations.console.upstream import Unavailable, attempt, path
from shared.access.middleware import requires
from shared.access.permissions import Permission

MOST = 200
PackagePath = Annotated[str, Path(min_length=1, max_length=200)]


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
        address, done = path("packages", package), "enabled" if on_sale else "disabled"
        failed = await execute(dependencies, action, "PATCH", "provisioning", address, body=body, done=done)
        return redirect("/packages") if failed is None else show_sale(request, package, not on_sale, failed, why)

    def show_sale(request: Request, package: str, is_open: bool, failed: Any = None, why: str = "") -> Response:
        status = failed.status if failed else HTTPStatus.OK
        address = path("packages", package, "sale")
        return pages.show(
            request,
            "sale.html",
            status,
            what=package,
            is_open=is_open,
            error=failed,
            why=why,
            address=address,
            back="/packages",
        )

    return router


def _locks(items: list[dict[str, Any]] | Unavailable) -> list[dict[str, Any]] | Unavailable:
    """Return the locks, with their times parsed."""
    if isinstance(items, Unavailable):
        return items
    times = ("acquiredAt", "expiresAt", "progressAt")
    return [{**item, **{name: datetime.fromisoformat(item[name]) for name in times if name in item}} for item in items]
