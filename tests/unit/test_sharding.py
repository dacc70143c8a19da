"""The watch over commands that a sharded collection refuses; tests/conftest.py applies it to every test."""

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from pymongo.monitoring import CommandStartedEvent

from shared.services import PROCESSES
from tests.support.sharding import RefusedCommands

BY_ID = {"_id": "o1", "version": 3}
NOT_BY_ID = {"_id": {"$in": ["o1"]}, "status": "PENDING"}


@pytest.mark.parametrize(
    ("command", "is_refused"),
    [
        ({"findAndModify": "orders", "query": BY_ID}, False),
        ({"findAndModify": "orders", "query": NOT_BY_ID}, True),
        ({"findAndModify": "orders", "query": {"status": "PENDING"}}, True),
        ({"update": "orders", "updates": [{"q": BY_ID, "u": {}, "upsert": True}]}, False),
        ({"update": "orders", "updates": [{"q": BY_ID, "u": {}}, {"q": NOT_BY_ID, "u": {}}]}, True),
        ({"update": "orders", "updates": [{"q": NOT_BY_ID, "u": {}, "multi": True}]}, False),
        ({"update": "orders", "updates": [{"q": NOT_BY_ID, "u": {}, "multi": True, "upsert": True}]}, True),
        ({"delete": "orders", "deletes": [{"q": BY_ID, "limit": 1}]}, False),
        ({"delete": "orders", "deletes": [{"q": {"status": "PENDING"}, "limit": 1}]}, True),
        ({"delete": "orders", "deletes": [{"q": NOT_BY_ID, "limit": 0}]}, False),
        ({"find": "orders", "filter": NOT_BY_ID}, False),
    ],
)
def test_a_command_for_one_document_needs_its_id(
    command: dict[str, Any], is_refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.support.sharding.sender_of_command", lambda: "order_service/orders.py")
    watching = RefusedCommands()
    watching.started(CommandStartedEvent(command, "shop", 1, ("127.0.0.1", 1), 1))
    assert bool(watching.found) is is_refused


def test_the_page_decides_about_every_collection() -> None:
    page = (Path(__file__).parents[2] / "docs" / "sharding.md").read_text()
    packages = {process.package for name, process in PROCESSES.items() if name != "simulator"}
    declared = {name for package in packages for name in import_module(f"{package}.schema").SCHEMA}
    assert not {name for name in declared if f"`{name}`" not in page.partition("## Operations")[0]}
