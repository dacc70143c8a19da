"""docs/access.md shows every route with its permission, and no route is without one."""

from pathlib import Path

from shared.http import OPEN_PATHS
from shared.services import SIMULATOR
from tests.support.access_table import guarded_routes, redrawn
from tests.support.api_samples import applications

PAGE = Path(__file__).parents[2] / "docs/access.md"


def test_the_table_is_current() -> None:
    assert redrawn(PAGE.read_text()) == PAGE.read_text(), "run `make docs`"


def test_every_route_declares_a_permission() -> None:
    routes = [route for app in applications() if app.title != SIMULATOR.name for route in guarded_routes(app)]
    assert len(routes) > 80
    assert [route for route in routes if route.permission is None] == []


def test_only_health_and_the_description_of_the_api_answer_to_everybody() -> None:
    assert {path for path in OPEN_PATHS if not path.startswith(("/docs", "/problems/"))} == {
        "/healthz",
        "/readyz",
        "/openapi.json",
        "/asyncapi.json",
    }
