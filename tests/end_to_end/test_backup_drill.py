"""A restore drill: orders of all kinds under way, a backup under load, everything destroyed, and everything settles."""

import asyncio
import gzip
import itertools
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aio_pika
import bson
import pytest

from shared import topology
from tests.support.backups import commands_for, records_of_stack
from tests.support.eventually import eventually
from tests.support.processes import Stack, run_stack
from tests.support.provisioning_processes import SHORT_DELAYS
from tests.support.seeds import IS_LONG_FORM
from tests.support.servers import delete_topology, drop_databases
from tests.support.simulators import Simulator, package, run_simulator

SERVICES = ("order", "inventory", "payment", "provisioning", "console")
QUICK = {"republish_after_seconds": 1, "resend_after_seconds": 3600, "saga_timeout_seconds": 600}
ROUNDS = 60 if IS_LONG_FORM else 3
"""Rounds of orders of all kinds before the backup, and as many at least during it."""
PACKAGE = "103.181.91"

ONE = [{"productId": "p1", "quantity": 1, "price": 10}]
ONE_HELD = [{"productId": "p1", "quantity": 1}]
SERVER = [{"productId": "vps", "quantity": 1, "price": 10}]
RETAINER_AMOUNT = 10_000


@pytest.fixture
async def simulator() -> AsyncIterator[Simulator]:
    async with run_simulator() as running:
        await running.packages([package(PACKAGE, 250)])
        await running.faults(buy={"delaySeconds": 0.3})  # so that servers are always under way
        yield running


@pytest.fixture
async def stack(
    mongodb_url: str, clean_broker: str, database_prefix: str, simulator: Simulator
) -> AsyncIterator[Stack]:
    async with run_stack(
        mongodb_url, clean_broker, database_prefix, **QUICK, **SHORT_DELAYS, **simulator.settings
    ) as running:
        await running.start(*SERVICES)
        yield running


async def send(stack: Stack, service: str, method: str, path: str, **body: Any) -> dict[str, Any]:
    answer = await stack.client.request(method, f"{stack.url(service)}{path}", json=body)
    assert answer.is_success, answer.text
    found: dict[str, Any] = answer.json() if answer.content else {}
    return found


class Shop:
    """Places orders of all kinds, one after the other, until it is told to stop."""

    def __init__(self, stack: Stack, retainer_id: str) -> None:
        self._stack = stack
        self._retainer_id = retainer_id
        self.placed: list[str] = []
        self.rounds = 0
        self.closed = asyncio.Event()

    async def trade(self) -> None:
        """Place a round of orders, again and again."""
        while not self.closed.is_set():
            await self._round()
            self.rounds += 1

    async def _round(self) -> None:
        place = self._place
        await place(items=ONE, payment={"token": "tok_ok"})
        await place(items=ONE, payment={"token": "tok_declined"})
        await place(items=ONE, payment={"token": "tok_timeout"}, delivery={"slot": "auto"})
        await place(items=[{"productId": "scarce", "quantity": 1, "price": 10}], payment={"token": "tok_ok"})
        await place(items=SERVER, payment={"token": "tok_ok"})
        await place(items=ONE, payment={"method": "retainer", "retainerId": self._retainer_id})
        hold = await send(self._stack, "inventory", "POST", "/holds", userId="u1", items=ONE_HELD, ttlSeconds=600)
        await place(items=ONE, payment={"token": "tok_ok"}, holdId=hold["holdId"])
        await send(self._stack, "inventory", "POST", "/holds", userId="u1", items=ONE_HELD, ttlSeconds=600)
        refunded = await place(items=ONE, payment={"token": "tok_ok"})
        await self._stack.client.post(f"{self._stack.url('order')}/orders/{refunded}/cancel", json={})
        if len(self.placed) > 20:
            path = f"{self._stack.url('order')}/orders/{self.placed[-20]}/refunds"
            await self._stack.client.post(path, json={"amount": 1})

    async def _place(self, **body: Any) -> str:
        order_id = await self._stack.place(**body)
        self.placed.append(order_id)
        return order_id


async def opened_shop(stack: Stack) -> Shop:
    """Stock, a slot of today, a server for sale, a retainer with money, and a dead letter."""
    await stack.stock("p1", 100_000)
    await stack.stock("scarce", 2)
    await send(stack, "inventory", "PUT", "/slots/config", durationMinutes=60, capacity=1_000_000, leadMinutes=0)
    await send(stack, "inventory", "PUT", "/products/vps", kind="vps", package=PACKAGE)
    retainer = await send(
        stack,
        "payment",
        "POST",
        "/api/retainers",
        clientId="u1",
        retainerType="monthly",
        initialAmount=RETAINER_AMOUNT,
    )
    async with await aio_pika.connect(stack.amqp_url) as connection:
        channel = await connection.channel()
        poison = aio_pika.Message(b"no JSON", type="stock.release", message_id="poison")
        await channel.default_exchange.publish(poison, topology.INVENTORY_INBOX)

    async def recorded() -> bool:
        return "poison" in await messages_of_letters(stack)

    await eventually(recorded, 120, "the dead letter to be recorded")
    return Shop(stack, retainer["retainer"]["_id"])


async def messages_of_letters(stack: Stack) -> set[str]:
    records = await records_of_stack(stack.mongodb_url, stack.database_prefix)
    letters = records.get(f"{stack.database_prefix}_operations.dead_letters", {})
    return {letter["messageId"] for letter in letters.values()}


def orders_in(backup: Path, prefix: str) -> list[dict[str, Any]]:
    content = gzip.decompress((backup / f"{prefix}_orders" / "orders.bson.gz").read_bytes())
    return bson.decode_all(content)


@pytest.mark.long_form
async def test_a_destroyed_stack_comes_back_and_settles(stack: Stack, simulator: Simulator, tmp_path: Path) -> None:
    commands = commands_for(stack.mongodb_url, stack.amqp_url, stack.database_prefix, **simulator.settings)
    shop, backup = await opened_shop(stack), tmp_path / "backup"
    async with asyncio.TaskGroup() as group:
        group.create_task(shop.trade())
        await eventually(lambda: shop.rounds >= ROUNDS, 300, "orders of all kinds")
        made = await commands.must("backup", str(backup))
        rounds = shop.rounds
        await eventually(lambda: shop.rounds > rounds, 300, "orders that the backup does not have")
        shop.closed.set()
    for process in itertools.chain.from_iterable(map(stack.processes, SERVICES)):
        await stack.kill(process)
    await drop_databases(stack.mongodb_url, stack.database_prefix)
    await delete_topology(stack.amqp_url)

    restored = await commands.must("restore", str(backup), "--yes", "--why", "drill")
    assert sum(restored["documents"].values()) == made["documents"]
    orders = orders_in(backup, stack.database_prefix)
    assert 0 < len(orders) < len(shop.placed)
    assert any(not order["settled"] for order in orders), "the backup was not made under load"
    found = await records_of_stack(stack.mongodb_url, stack.database_prefix)
    assert found[f"{stack.database_prefix}_orders.orders"].keys() == {order["_id"] for order in orders}

    await simulator.faults(buy={"delaySeconds": 0})
    await stack.start(*SERVICES)
    await asyncio.gather(*(stack.settled(order["_id"], 300) for order in orders))
    await stack.assert_books_balance()
    known = await records_of_stack(stack.mongodb_url, stack.database_prefix)
    owned = known[f"{stack.database_prefix}_provisioning.addresses"].keys()
    bought = {purchase["ip"] for purchase in await simulator.purchases()}
    listed = {server.partition(" ")[0] for server in restored["unknownServers"]}
    assert bought - owned <= listed, "a server is neither known nor listed"
    assert "poison" in await messages_of_letters(stack)
    log = known[f"{stack.database_prefix}_operations.actions"].values()
    assert [entry["why"] for entry in log if entry["action"] == "stack.restore"] == ["drill"]
    assert json.loads((backup / "manifest.json").read_bytes())["audit"]["ok"] is True
