"""`ordersaga upgrade check` over real servers: what it reads, and what it says about it."""

import json
from collections.abc import AsyncIterator
from typing import Any

import aio_pika
import pymongo
import pytest

from operations.stack.broker_topology import apply_topology
from operations.stack.database_schemas import all_schemas
from order_service.orders import NewRecord, Orders
from order_service.saga import SAGA_VERSION
from shared import topology
from shared.release import VERSION
from shared.schema import prepare
from shared.services import SERVICES
from tests.support import warm_processes
from tests.support.builders import an_order, connected
from tests.support.eventually import eventually
from tests.support.processes import Stack, run_stack


@pytest.fixture
async def stack(mongodb_url: str, clean_broker: str, database_prefix: str) -> AsyncIterator[Stack]:
    """Servers that are prepared for this release, without processes."""
    await apply_topology(clean_broker, topology.DEFAULT_OPTIONS)
    for service, collections in all_schemas().items():
        async with connected(mongodb_url, SERVICES[service].database_in(database_prefix)) as database:
            await prepare(database, collections)
    async with run_stack(mongodb_url, clean_broker, database_prefix) as running:
        yield running


def reasons(report: dict[str, Any]) -> dict[str, str]:
    return {
        finding["what"]: f"{finding['detail']}; {finding['mend']}"
        for finding in report["findings"]
        if finding["outcome"] == "wrong"
    }


def versions(report: dict[str, Any]) -> dict[str, str | None]:
    return {process["name"]: process["version"] for process in report["processes"]}


async def insert(stack: Stack, **changes: Any) -> None:
    async with connected(stack.mongodb_url, f"{stack.database_prefix}_orders") as database:
        await Orders(database["orders"]).insert([NewRecord(an_order(**changes))])


async def test_what_this_release_knows_can_be_carried_on(stack: Stack) -> None:
    await insert(stack)
    await insert(stack, settled=True, saga_version=SAGA_VERSION + 1)
    async with await aio_pika.connect(stack.amqp_url) as connection, connection.channel() as channel:
        await channel.default_exchange.publish(aio_pika.Message(b"{}"), topology.ORDER_INBOX)
    await stack.start("provisioning")

    async def with_the_version() -> dict[str, Any] | None:
        found = await stack.command("upgrade", "check")
        return found if versions(found)["provisioning"] is not None else None  # it had 3 s to answer

    report = await eventually(with_the_version, 120, "the process to say its version in time")

    assert report is not None
    assert reasons(report) == {}
    assert (report["version"], report["sagaVersions"]) == (VERSION, [SAGA_VERSION])
    assert report["orders"] == [{"sagaVersion": 1, "status": "PENDING", "number": 1}]
    assert report["queues"] == [{"name": topology.ORDER_INBOX, "messages": 1}]
    assert versions(report) == {name: VERSION if name == "provisioning" else None for name in SERVICES}


async def test_what_only_another_release_knows_is_named_with_what_to_do(stack: Stack) -> None:
    await insert(stack, saga_version=SAGA_VERSION + 1)
    async with pymongo.AsyncMongoClient[dict[str, Any]](stack.mongodb_url) as client:
        letters = client[f"{stack.database_prefix}_operations"]["dead_letters"]
        await letters.insert_one({"status": "dead", "routingKey": "order.frobnicated", "type": None})
        orders = client[f"{stack.database_prefix}_orders"]["orders"]
        await orders.drop_index("due")
        await orders.create_index("userId", name="by_user_once", unique=True)

    report = await stack.command("upgrade", "check")

    found = reasons(report)
    assert found.keys() == {"orders in flight", f"collection {stack.database_prefix}_orders.orders"}
    assert "1 unsettled order (PENDING) began under version 2 of the saga" in found["orders in flight"]
    assert "by_user_once" in found[f"collection {stack.database_prefix}_orders.orders"]
    assert report["deadLetters"] == [{"type": "order.frobnicated", "number": 1}]
    notes = [finding["detail"] for finding in report["findings"] if finding["outcome"] == "note"]
    assert "index due: missing; the service of this release changes it at its start" in notes
    assert "this release does not know the type of order.frobnicated (1)" in notes


async def test_a_topology_of_another_release_is_named_with_what_to_do(stack: Stack) -> None:
    async with await aio_pika.connect(stack.amqp_url) as connection, connection.channel() as channel:
        await channel.queue_delete("payment.retry.2m")
        await channel.queue_delete(topology.ORDER_INBOX)
        await channel.declare_queue(topology.ORDER_INBOX, durable=True, arguments={"x-queue-type": "quorum"})
    found = reasons(await stack.command("upgrade", "check"))
    assert found.keys() == {"queues"}
    assert f"{topology.ORDER_INBOX} differs (PRECONDITION_FAILED" in found["queues"]
    assert found["queues"].endswith(
        "payment.retry.2m does not exist; `ordersaga topology apply` creates what is missing; "
        "`ordersaga migrate` replaces a queue that differs, and keeps its messages"
    )


async def test_partitions_that_the_settings_name_must_be_there(stack: Stack) -> None:
    environment = stack.command_environment | {"ORDERSAGA_PARTITIONS": "2"}
    _, output, _ = await warm_processes.run("operations.cli", "upgrade", "check", "--json", environment=environment)
    found = reasons(json.loads(output))
    assert found.keys() == {"exchanges", "queues"}
    assert "order.inbox.2 does not exist" in found["queues"]


async def test_a_recovery_leaves_the_orders_of_a_newer_release_to_that_release(stack: Stack) -> None:
    await insert(stack)
    await insert(stack, saga_version=SAGA_VERSION + 1)

    report = await stack.command("recover", "--dry-run")

    assert not report["ok"]
    assert (report["orders"], report["ordersOfNewerRelease"]) == (1, 1)
