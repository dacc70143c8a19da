"""All routes of the operations process: the API for programs, then the pages of the console."""

from fastapi import APIRouter

from operations.api import create_api
from operations.console import ConsoleDependencies, create_router
from operations.console.outages import OutageWatch
from operations.sign_in.sessions import Sessions


def create_routes(dependencies: ConsoleDependencies, sessions: Sessions) -> APIRouter:
    """Return the routes; the console has a page for every address that the API leaves."""
    router, watch = APIRouter(), OutageWatch(dependencies)
    router.include_router(create_api(dependencies, watch))
    router.include_router(create_router(dependencies, sessions, watch))
    return router
