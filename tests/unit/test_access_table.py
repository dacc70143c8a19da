"""docs/access.md shows every route with its permission, and no route is without one."""

from pathlib import Path

import pytest
from fastapi import FastAPI

from shared.http import OPEN_PATHS, new_router
from shared.services import SIMULATOR
from tests.support.access_table import guarded_routes, redrawn
from tests.support.api_samples import applications
from tests.support.console_pages import routes_for_get

PAGE = Path(__file__).parents[2] / "docs/access.md"


def test_the_table_is_current() -> None:
    assert redrawn(PAGE.read_text()) == PAGE.read_text(), "run `make docs`"


def test_every_route_declares_a_permission() -> None:
    routes = [route for app in applications() if app.title != SIMULATOR.name for route in guarded_routes(app)]
    assert len(routes) > 80
    assert [route for route in routes if route.permission is None] == []


def test_routes_that_no_test_would_see_are_an_error() -> None:
    app = FastAPI(title="late")
    app.include_router(new_router("late"))
    for look in (guarded_routes, routes_for_get):
        with pytest.raises(AssertionError, match=r"add its routes with shared\.http\.add_routes"):
            list(look(app))


def test_only_health_and_the_description_of_the_api_answer_to_everybody() -> None:
    assert {path for path in OPEN_PATHS if not path.startswith(("/docs", "/problems/"))} == {
        "/healthz",
        "/readyz",
        "/openapi.json",
        "/asyncapi.json",
    }
