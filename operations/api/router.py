"""All routes of the operations API."""

from fastapi import APIRouter, Response

from operations.api.bulk_actions import create_bulk_actions
from operations.api.catalogue import create_catalogue
from operations.api.consumers import create_consumers
from operations.api.jobs import create_jobs
from operations.api.letter_groups import create_letter_groups
from operations.api.letters import create_letters
from operations.api.notifications import create_notifications
from operations.api.orders import create_orders
from operations.api.records import create_records
from operations.api.replays import create_replays
from operations.api.routes import staff_router
from operations.api.search import create_search
from operations.api.stack import create_stack
from operations.api.state import create_state
from operations.console.dependencies import ConsoleDependencies
from operations.console.outages import OutageWatch
from shared.access.middleware import API_BESIDE_PAGES, requires
from shared.access.permissions import Permission
from shared.http import add_routes, not_found


def create_api(dependencies: ConsoleDependencies, watch: OutageWatch) -> APIRouter:
    """Return the routes; they come before those of the console, which has a page for every other address."""
    router = APIRouter()
    add_routes(router, create_state(dependencies, watch))
    for create in (
        create_orders,
        create_bulk_actions,
        create_jobs,
        create_catalogue,
        create_letters,
        create_letter_groups,
        create_replays,
        create_records,
        create_stack,
        create_consumers,
        create_notifications,
        create_search,
    ):
        add_routes(router, create(dependencies))
    others = staff_router("state", API_BESIDE_PAGES.rstrip("/"))

    @others.get("/{address:path}", include_in_schema=False)
    @requires(Permission.SELF_READ)
    async def unknown(address: str) -> Response:
        raise not_found(f"The path {API_BESIDE_PAGES}{address[:200]}")

    add_routes(router, others)
    return router
