"""docker-compose.cluster.yml over docker-compose.yml: three nodes and three members, of which some are killed."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pymongo
import pytest

from operations.doctor import broker_cluster
from operations.doctor.replica_set import ELECTIONS, MEMBERS, WRITES
from operations.stack.queue_members import list_members, spread_queues
from shared.broker_rights import VIRTUAL_HOST
from shared.topology import ORDER_INBOX
from tests.compose.orders import (
    Persistent,
    all_settled,
    assert_books_balance,
    assert_eight_settle_with_stock_for_five,
    none_unsettled,
    place,
    put_stock,
)
from tests.compose.stack import CLUSTER_OVERLAY, ComposeStack, all_ready, compose_command, compose_stack
from tests.support.eventually import eventually
from tests.support.order_load import PRODUCT, steady_orders

NODES = ("rabbitmq", "rabbitmq-2", "rabbitmq-3")
DATABASES = ("mongo", "mongo-2", "mongo-3")
WITHIN_SECONDS = 600
"""Three Erlang nodes, three mongod and six processes of ours on what may be two cores."""
RATE = 5.0
"""Orders per second."""
ALL_THERE = {
    MEMBERS: "3, all there",
    ELECTIONS: "a primary that is silent is replaced after 3 s, or 3.2 s if only that one has its last writes",
    WRITES: "the majority, on disk",
}


@pytest.fixture(scope="module")
async def stack() -> AsyncIterator[ComposeStack]:
    """The whole stack on a cluster, ready."""
    command = compose_command()
    if command is None:
        pytest.skip("neither docker compose nor docker-compose is installed")
    with compose_stack(command, overlays=[CLUSTER_OVERLAY]) as running:
        await all_ready(running, WITHIN_SECONDS)
        yield running


@pytest.fixture(scope="module")
async def client(stack: ComposeStack) -> AsyncIterator[httpx.AsyncClient]:
    async with new_client(stack) as client:
        yield client


def new_client(stack: ComposeStack) -> httpx.AsyncClient:
    return stack.client(stack.admin_key())


def control_of(stack: ComposeStack) -> Callable[..., str]:
    """RabbitMQ's tools in the container of the first node, as docs/clusters.md uses them."""

    def control(*words: str, tool: str = "rabbitmqctl") -> str:
        return stack.run("exec", "-T", "rabbitmq", tool, *words)

    return control


def leader(stack: ComposeStack) -> str:
    """The node that leads the inbox of the order service."""
    leaders = {queue.name: queue.leader for queue in list_members(control_of(stack), VIRTUAL_HOST)}
    return leaders[ORDER_INBOX].partition("@")[2]


def primary(stack: ComposeStack) -> str:
    """The member that takes writes. Raises AssertionError while there is none."""
    for member in DATABASES:
        url = f"mongodb://{stack.address(member)}:27017/?directConnection=true"
        with pymongo.MongoClient[dict[str, Any]](url, serverSelectionTimeoutMS=2000) as database:
            if database.admin.command("hello")["isWritablePrimary"]:
                return member
    raise AssertionError("no member is the primary")


def secondary(stack: ComposeStack) -> str:
    leading = primary(stack)
    return next(member for member in DATABASES if member != leading)


VICTIMS: dict[str, Callable[[ComposeStack], str]] = {"leader": leader, "primary": primary, "secondary": secondary}


async def all_is_well(stack: ComposeStack) -> None:
    """Wait until doctor's checks find all servers there, every queue on each node, and nothing to fix."""

    def problems() -> list[str]:
        report = stack.doctor()
        found = {finding["what"]: finding for finding in report["findings"]}
        assert {subject: found[subject]["detail"] for subject in ALL_THERE} == ALL_THERE
        of_nodes = broker_cluster.check_cluster(control_of(stack), VIRTUAL_HOST)
        assert broker_cluster.MEMBERS in {finding.subject for finding in of_nodes}
        return [finding for finding in report["findings"] if finding["outcome"] == "wrong"] + [
            f"{finding.subject}: {finding.detail}" for finding in of_nodes if finding.outcome == "wrong"
        ]

    async def none() -> bool:
        assert await asyncio.to_thread(problems) == []
        return True

    await eventually(none, WITHIN_SECONDS, "doctor to find nothing")


async def test_a_cluster_settles_orders_and_has_nothing_to_fix(
    stack: ComposeStack, client: httpx.AsyncClient, unique_id: str
) -> None:
    product = f"p-{unique_id}"
    await assert_eight_settle_with_stock_for_five(stack, client, product)
    await all_is_well(stack)
    members = {queue.name: queue.members for queue in list_members(control_of(stack), VIRTUAL_HOST)}
    assert set(members.values()) == {frozenset(f"rabbit@{node}" for node in NODES)}
    assert_books_balance(stack, orders=8)


@pytest.mark.parametrize("victim", ["leader", "primary", "secondary", "inventory", "order"])
async def test_orders_settle_while_a_server_or_a_service_is_killed(
    stack: ComposeStack, client: httpx.AsyncClient, victim: str
) -> None:
    """It is restarted, and the others go on meanwhile; clients repeat what got no answer or a 503."""
    await put_stock(stack, client, PRODUCT, 1_000_000)
    persistent = Persistent(stack, client, within=WITHIN_SECONDS, unanswered=True)
    async with steady_orders(persistent, RATE) as load:
        await load.grown_by(10, WITHIN_SECONDS)
        choose = VICTIMS.get(victim, lambda _: victim)
        await killed_and_restarted(stack, await asyncio.to_thread(choose, stack))
        await load.grown_by(10, WITHIN_SECONDS)

    assert load.failures == []
    await all_ready(stack, WITHIN_SECONDS)
    await all_is_well(stack)
    await none_unsettled(stack, client, WITHIN_SECONDS)
    assert_books_balance(stack, orders=len(load.accepted))


async def killed_and_restarted(stack: ComposeStack, service: str) -> None:
    before = stack.inspect(service)
    await asyncio.to_thread(stack.crash, before["Id"])

    def restarted() -> bool:
        after = stack.inspect(service)
        return bool(after["State"]["Running"] and after["RestartCount"] == before["RestartCount"] + 1)

    await eventually(lambda: asyncio.to_thread(restarted), WITHIN_SECONDS, f"{service} to be restarted")


async def test_a_stack_with_data_grows(stack: ComposeStack, unique_id: str) -> None:
    """The last test, because it begins with a new stack of single servers."""
    single = stack.without_overlays()
    stack.down("--volumes")
    single.up()
    await all_ready(single, WITHIN_SECONDS)
    async with new_client(stack) as client:
        await put_stock(stack, client, unique_id, 6)
        before = await all_settled(stack, client, [await place(stack, client, unique_id) for _ in range(3)])

        stack.up()
        await all_ready(stack, WITHIN_SECONDS)
        await eventually(lambda: asyncio.to_thread(grown, stack), WITHIN_SECONDS, "the queues to grow")
        await all_is_well(stack)

        after = await all_settled(stack, client, [await place(stack, client, unique_id) for _ in range(4)])
    assert {status: len(found) for status, found in before.items()} == {"CONFIRMED": 3}
    assert {status: len(found) for status, found in after.items()} == {"CONFIRMED": 3, "CANCELLED": 1}
    assert_books_balance(stack, orders=7)


def grown(stack: ComposeStack) -> bool:
    """Give each queue the members that it lacks, with the commands of docs/clusters.md."""
    spread_queues(control_of(stack), VIRTUAL_HOST)
    return all(len(queue.members) == len(NODES) for queue in list_members(control_of(stack), VIRTUAL_HOST))
