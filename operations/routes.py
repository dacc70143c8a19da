"""All routes of the operations process: the API for programs, then the pages of the console."""

from fastapi import APIRouter

from operations.api import create_api
from operations.api.routes import PREFIX
from operations.console import ConsoleDependencies, create_router
from operations.console.outages import OutageWatch, StackChecks
from operations.sign_in.sessions import Sessions
from shared.http import add_routes

OF_OUTAGES = (f"{PREFIX}/outages", f"{PREFIX}/overview")
"""What the API says while servers are away."""


def explains_outages(path: str) -> bool:
    """Return True for a page, which shows what it can without MongoDB, and for what the API says about outages."""
    return not path.startswith(f"{PREFIX}/") or path in OF_OUTAGES


def create_routes(dependencies: ConsoleDependencies, sessions: Sessions, checks: StackChecks) -> APIRouter:
    """Return the routes; the console has a page for every address that the API leaves."""
    router, watch = APIRouter(), OutageWatch(dependencies, checks)
    add_routes(router, create_api(dependencies, watch), create_router(dependencies, sessions, watch))
    return router
