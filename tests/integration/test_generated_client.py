"""A client that a public generator makes of the published document works against the real service."""

import importlib
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from shared.access.permissions import Role
from shared.services import ORDER
from tests.support.access import KEYS, key_authenticator
from tests.support.api_samples import ROOT, document_path, wired
from tests.support.builders import connected, order_body
from tests.support.consoles import serve

GENERATOR = ROOT / ".venv/.tools/bin/openapi-python-client"
NAME = "generated_order_client"


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    assert GENERATOR.exists(), "run `make setup-tests`"
    folder = tmp_path_factory.mktemp("generated")
    (folder / "config.yml").write_text("post_hooks: []\n")
    command: list[str | Path] = [GENERATOR, "generate", "--meta", "none", "--path", ROOT / document_path(ORDER.name)]
    command += ["--output-path", folder / NAME, "--config", folder / "config.yml"]
    run = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "COLUMNS": "200"})
    assert run.returncode == 0, run.stdout + run.stderr
    assert "WARNING" not in run.stdout + run.stderr, run.stdout + run.stderr
    sys.path.insert(0, str(folder))
    yield importlib.import_module(NAME)
    sys.path.remove(str(folder))


@pytest.fixture
async def url(mongodb_url: str, database_prefix: str) -> AsyncIterator[str]:
    async with (
        connected(mongodb_url, ORDER.database_in(database_prefix)) as database,
        serve(wired(ORDER, database, key_authenticator())) as served,
    ):
        yield served


def module(name: str) -> Any:
    return importlib.import_module(f"{NAME}.{name}")


async def test_it_places_reads_and_lists_orders_and_understands_problems(generated: ModuleType, url: str) -> None:
    new, problem = module("models.new_order").NewOrder, module("models.problem").Problem
    place, get, list_ = (module(f"api.orders.{name}") for name in ("place_order", "get_order", "list_orders"))
    async with generated.AuthenticatedClient(base_url=url, token=KEYS[Role.ADMIN]) as client:
        body = new.from_dict(order_body())
        placed = await place.asyncio(client=client, body=body, idempotency_key="k1")
        again = await place.asyncio(client=client, body=body, idempotency_key="k1")
        assert placed.order_id == again.order_id
        found = await get.asyncio(placed.order_id, client=client)
        assert (found.status, found.failure_code, found.created_at) == ("PENDING", None, placed.created_at)
        page = await list_.asyncio(client=client, limit=1)
        assert [order.order_id for order in page.items] == [placed.order_id]

        wrong = new.from_dict(order_body(totalAmount=1))
        refused = await place.asyncio(client=client, body=wrong)
        assert isinstance(refused, problem)
        assert refused.type_ == "/problems/invalid-request"
        assert [error.field for error in refused.errors] == ["totalAmount"]
        missing = await get.asyncio("none", client=client)
        assert isinstance(missing, problem)
        assert missing.type_ == "/problems/not-found"


async def test_it_needs_a_key(generated: ModuleType, url: str) -> None:
    get = module("api.orders.get_order")
    async with generated.Client(base_url=url) as client:
        answer = await get.asyncio("none", client=client)
    assert answer.type_ == "/problems/credential-missing"
