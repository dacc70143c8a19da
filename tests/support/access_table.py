"""The table of docs/access.md: every route and every method of gRPC, the permission it needs, and who has it.

`python -m tests.support.access_table docs/access.md` writes it; `make docs` does.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fastapi import FastAPI

from operations.console.people import OPEN_PATHS as CONSOLE_OPEN_PATHS
from order_service.rpc.methods import OrderMethods
from order_service.rpc.server import SERVICE, work_of
from shared.access.middleware import permission_of
from shared.access.permissions import ROLES, STAFF, Permission, Reach, Role
from shared.http import OPEN_PATHS
from shared.services import CONSOLE, ORDER, SIMULATOR
from tests.support.api_samples import applications
from tests.support.drawn_parts import redraw
from tests.support.routes import routes_of

_FOR_EVERYBODY = ("/docs", "/problems")
SHOWN = {Reach.ALL: "all", Reach.OWNER: "own", Reach.PERSON: "own*"}


@dataclass(frozen=True)
class ServedRoute:
    """A route of a service, and the permission that it declares."""

    service: str
    method: str
    path: str
    permission: Permission | None
    for_staff: bool = False

    def row(self) -> str:
        granted = (SHOWN[reach] if (reach := self.reach(role)) else "" for role in Role)
        return f"| {self.service} | `{self.method} {self.path}` | `{self.permission}` | {' | '.join(granted)} |"

    def reach(self, role: Role) -> Reach | None:
        if self.permission is None or (self.for_staff and role not in STAFF):
            return None
        return ROLES[role].get(self.permission)


def guarded_routes(app: FastAPI) -> Iterator[ServedRoute]:
    """Every route that does not answer to everybody."""
    open_paths = OPEN_PATHS | (CONSOLE_OPEN_PATHS if app.title == CONSOLE.name else frozenset())
    for route in routes_of(app):
        if route.path not in open_paths and not route.path.startswith(_FOR_EVERYBODY):
            for method in sorted(route.methods or ()):
                for_staff = getattr(route, "for_staff", False)
                yield ServedRoute(app.title, method, route.path, permission_of(route.endpoint), for_staff)


def table() -> str:
    """The whole table, in the order in which the services are listed."""
    head = f"| service | route | permission | {' | '.join(Role)} |\n|---|---|---|{'---|' * len(Role)}\n"
    apps = (app for app in applications() if app.title != SIMULATOR.name)
    routes = (
        route for app in apps for route in (*guarded_routes(app), *(grpc_methods() if _takes_orders(app) else ()))
    )
    return head + "".join(f"{route.row()}\n" for route in routes)


def grpc_methods() -> Iterator[ServedRoute]:
    """Every method of the gRPC service."""
    for method in SERVICE.methods:
        yield ServedRoute(
            ORDER.name, "gRPC", f"{SERVICE.name}/{method.name}", permission_of(work_of(OrderMethods, method.name))
        )


def _takes_orders(app: FastAPI) -> bool:
    return app.title == ORDER.name


def redrawn(page: str) -> str:
    """The page with the present table between its marks."""
    return redraw(page, "routes", table())


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.write_text(redrawn(target.read_text()))
