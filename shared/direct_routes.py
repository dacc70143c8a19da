"""Finds the route of a path without parameters in one step; the router compares the path with one after the other."""

from collections.abc import Sequence

from fastapi import APIRouter
from starlette.routing import BaseRoute, Match, Route
from starlette.types import Receive, Scope, Send

_Address = tuple[str, str]
"""A method and a path."""


class DirectRoutes:
    """Serves what needs no comparison, and leaves everything else to the router; both find the same routes."""

    def __init__(self, router: APIRouter) -> None:
        self._router = router
        self._otherwise = router.middleware_stack
        self._routes: dict[_Address, Route] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request. Routes that are added after the first one are found by the router."""
        if self._routes is None:
            self._routes = _by_address(self._router.routes)
        is_direct = scope["type"] == "http" and not scope.get("root_path")
        route = self._routes.get((scope["method"], scope["path"])) if is_direct else None
        if route is None:
            await self._otherwise(scope, receive, send)
            return
        scope.setdefault("router", self._router)
        scope.update(route.matches(scope)[1])
        await route.handle(scope, receive, send)


def _by_address(routes: Sequence[BaseRoute]) -> dict[_Address, Route]:
    """Return the routes without parameters, unless the router would find another one for their path."""
    found: dict[_Address, Route] = {}
    for route in routes:
        if not isinstance(route, Route) or route.param_convertors:
            continue
        for method in route.methods or ():
            scope: Scope = {"type": "http", "method": method, "path": route.path, "root_path": ""}
            first = next(each for each in routes if each.matches(scope)[0] is Match.FULL)
            if first is route:
                found[method, route.path] = route
    return found
