"""A client that a public generator makes of the published document works against the real service."""

import compileall
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shared.access.permissions import Role
from shared.services import ORDER
from tests.support.access import KEYS, key_authenticator
from tests.support.api_compatibility import current
from tests.support.api_samples import wired
from tests.support.builders import connected, order_body
from tests.support.consoles import serve
from tests.support.generated_clients import generate, generated

Modules = Callable[[str], Any]


@pytest.fixture(scope="module")
def module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Modules]:
    with generated(ORDER.name, tmp_path_factory.mktemp("generated")) as modules:
        yield modules


@pytest.fixture
async def url(mongodb_url: str, database_prefix: str) -> AsyncIterator[str]:
    async with (
        connected(mongodb_url, ORDER.database_in(database_prefix)) as database,
        serve(wired(ORDER, database, key_authenticator())) as served,
    ):
        yield served


@pytest.mark.parametrize("name", [name for name in current() if name not in (ORDER.name, "asyncapi")])
def test_every_other_document_makes_a_client_too(name: str, tmp_path: Path) -> None:
    package = generate(name, tmp_path)
    assert compileall.compile_dir(tmp_path / package, quiet=1)


async def test_it_places_reads_and_lists_orders_and_understands_problems(module: Modules, url: str) -> None:
    new, problem = module("models.new_order").NewOrder, module("models.problem").Problem
    place, get, list_ = (module(f"api.orders.{name}") for name in ("place_order", "get_order", "list_orders"))
    async with module("").AuthenticatedClient(base_url=url, token=KEYS[Role.ADMIN]) as client:
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


async def test_it_needs_a_key(module: Modules, url: str) -> None:
    get = module("api.orders.get_order")
    async with module("").Client(base_url=url) as client:
        answer = await get.asyncio("none", client=client)
    assert answer.type_ == "/problems/credential-missing"
