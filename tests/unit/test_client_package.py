"""The client as a package: it depends on little, knows nothing of the services, and both clients are the same."""

import ast
import inspect
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from ordersaga_client import async_client, client

CLIENT = Path(__file__).parents[2] / "clients/python"


def test_it_depends_on_three_packages_and_imports_no_other() -> None:
    project = tomllib.loads((CLIENT / "pyproject.toml").read_text())["project"]
    dependencies = {re.split(r"[<>=~]", each)[0] for each in project["dependencies"]}
    assert dependencies == {"httpx", "pydantic", "stamina"}
    imported = {name for file in CLIENT.rglob("*.py") for name in _imported(ast.parse(file.read_text()))}
    assert imported - sys.stdlib_module_names - {"ordersaga_client"} == dependencies


def test_it_says_that_it_is_typed() -> None:
    assert (CLIENT / "ordersaga_client/py.typed").exists()


@pytest.mark.parametrize(
    ("blocking", "asynchronous"),
    [
        (client.Client, async_client.AsyncClient),
        (client.Orders, async_client.AsyncOrders),
        (client.Webhooks, async_client.AsyncWebhooks),
    ],
)
def test_both_clients_do_the_same(blocking: type, asynchronous: type) -> None:
    assert _methods(blocking) == _methods(asynchronous)


def _methods(client: type) -> dict[str, tuple[list[Any], str | None]]:
    """The public methods with their parameters and texts."""
    found = {"__init__": client.__init__} | {  # type: ignore[misc]
        name: method for name, method in vars(client).items() if not name.startswith("_")
    }
    renamed = {"aclose": "close"}
    return {
        renamed.get(name, name): (
            [(p.name, p.kind, p.default) for p in inspect.signature(method).parameters.values()],
            method.__doc__,
        )
        for name, method in found.items()
    }


def _imported(tree: ast.Module) -> set[str]:
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    return {name.partition(".")[0] for name in names}
