"""The overlay deploy/tls over the stack of docker-compose.yml: every connection is encrypted."""

import json
import subprocess
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit

import aio_pika
import httpx
import pymongo
import pytest
from pymongo.errors import ServerSelectionTimeoutError

from tests.compose.stack import ROOT, SERVICES, ComposeStack, all_ready, compose_command, compose_stack, place_over_grpc
from tests.support.builders import order_body
from tests.support.eventually import eventually

READY_WITHIN_SECONDS = 300


@pytest.fixture(scope="module")
async def stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ComposeStack]:
    command = compose_command()
    if command is None:
        pytest.skip("neither docker compose nor docker-compose is installed")
    certificates = tmp_path_factory.mktemp("tls") / "certificates"
    subprocess.run([ROOT / "deploy/tls/make-certificates", certificates], check=True, capture_output=True)
    for key in certificates.glob("*.key"):
        key.chmod(0o644)  # whatever user an image has
    for directory in (certificates, *certificates.parents[:2]):
        directory.chmod(0o755)
    with compose_stack(command, certificates) as running:
        await all_ready(running, READY_WITHIN_SECONDS)
        yield running


async def test_an_order_is_carried_out_with_every_connection_encrypted(stack: ComposeStack) -> None:
    key = stack.admin_key()
    async with stack.client(key) as client:
        stock = await client.put(f"{stack.url('inventory')}/inventory/p1", json={"quantity": 5})
        stock.raise_for_status()
        order = order_body(payment={"method": "card", "token": "tok_ok"})
        placed = await client.post(f"{stack.url('order')}/orders", json=order)
        url = f"{stack.url('order')}/orders/{placed.json()['orderId']}"

        async def settled() -> bool:
            return bool((await client.get(url)).json()["settled"])

        await eventually(settled, 60, "the order to settle")
        assert (await client.get(url)).json()["status"] == "CONFIRMED"
        assert await place_over_grpc(stack, key, "p1") == "ORDER_STATUS_CONFIRMED"
        page = await client.get(f"{stack.url('console')}/orders")
        assert page.status_code == 200, page.text
    assert json.loads(stack.command("audit", "--json"))["ok"]
    assert json.loads(stack.command("status", "--json"))["ready"]


async def test_nothing_answers_without_tls(stack: ComposeStack) -> None:
    async with httpx.AsyncClient() as client:
        for service in set(SERVICES) - {"simulator"}:
            with pytest.raises(httpx.HTTPError):
                await client.get(stack.url(service).replace("https:", "http:") + "/healthz")
    broker = stack.amqp_url("deployer")
    assert broker.startswith("amqp://")
    with pytest.raises(OSError, match="onnect"):
        await aio_pika.connect(broker)
    address = urlsplit(stack.mongodb_url("order")).netloc.rpartition("@")[2]
    url = f"mongodb://{address}/?directConnection=true"
    async with pymongo.AsyncMongoClient[dict[str, Any]](url, serverSelectionTimeoutMS=2000) as database:
        with pytest.raises(ServerSelectionTimeoutError):
            await database.admin.command("ping")
