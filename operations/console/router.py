"""All routes of the console."""

from fastapi import APIRouter, Request, Response
from fastapi.responses import FileResponse

from operations.console.action_log import create_log
from operations.console.approvals import create_approvals
from operations.console.assets import ASSETS
from operations.console.audit import create_audit
from operations.console.bulk import create_bulk
from operations.console.consumers import create_consumers
from operations.console.dead_letters import create_dead_letters
from operations.console.dependencies import ConsoleDependencies
from operations.console.incidents import create_incidents
from operations.console.jobs import create_jobs
from operations.console.notifications import create_notifications
from operations.console.orders import create_orders
from operations.console.outages import OutageWatch, read_runbook
from operations.console.overview import create_overview
from operations.console.packages import create_packages
from operations.console.pages import STATIC, Pages
from operations.console.saved_views import create_saved_views
from operations.console.search import create_search
from operations.console.sign_in import create_sign_in
from operations.console.slots import create_slots
from operations.console.stock import create_stock
from operations.console.webhooks import create_webhooks
from operations.sign_in.sessions import Sessions
from shared.access.middleware import requires
from shared.access.permissions import Permission
from shared.http import add_routes, not_found


def create_router(dependencies: ConsoleDependencies, sessions: Sessions, watch: OutageWatch) -> APIRouter:
    """Return the console's pages; the caller closes `dependencies.services` at the end.

    `sessions` are those that `ConsolePeople` looks up, so that a sign-out is effective at once; `watch` knows what is
    away, for all pages.
    """
    pages = Pages(dependencies, watch)
    router = pages.router()
    for create in (
        create_overview,
        create_orders,
        create_bulk,
        create_stock,
        create_slots,
        create_packages,
        create_jobs,
        create_consumers,
        create_webhooks,
        create_audit,
        create_incidents,
        create_notifications,
        create_dead_letters,
        create_log,
        create_approvals,
        create_search,
        create_saved_views,
    ):
        add_routes(router, create(dependencies, pages))
    add_routes(router, create_sign_in(dependencies, pages, sessions))

    @router.get("/outages")
    @requires(Permission.SELF_READ)
    async def outages(request: Request) -> Response:
        await pages.refresh_outages()
        return pages.show(request, "outages.html")

    @router.get("/runbooks/{name}")
    @requires(Permission.SELF_READ)
    async def runbook(request: Request, name: str) -> Response:
        text = read_runbook(name)
        if text is None:
            raise not_found(f"The runbook {name}")
        return pages.show(request, "runbook.html", name=name, text=text)

    @router.get("/static/{name}")
    @requires(Permission.SELF_READ)
    async def asset(name: str) -> Response:
        if name not in ASSETS:
            raise not_found(f"The file {name}")
        headers = {"Cache-Control": "max-age=3600", "X-Content-Type-Options": "nosniff"}
        return FileResponse(STATIC / name, media_type=ASSETS[name], headers=headers)

    @router.get("/{address:path}")
    @requires(Permission.SELF_READ)
    async def unknown(address: str) -> Response:
        raise not_found(f"The page /{address[:200]}")

    return router
