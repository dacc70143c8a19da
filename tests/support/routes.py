"""The routes of an application, for tests that look at each of them."""

from collections.abc import Iterator

from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.routing import Route


def routes_of(app: FastAPI) -> Iterator[APIRoute]:
    """Yield all routes that are declared for the API or as pages.

    What `include_router` adds is no route but the whole router: its routes would be passed over without a word.
    """
    for route in app.routes:
        assert isinstance(route, Route), f"{app.title} has {route!r}: add its routes with shared.http.add_routes"
        if isinstance(route, APIRoute):
            yield route
