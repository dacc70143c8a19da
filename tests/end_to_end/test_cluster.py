"""`ordersaga up --cluster`: three nodes and three members, what doctor finds on them, and the loss of two of them."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import aio_pika
import httpx
import pymongo
import pytest

from operations.doctor import broker_cluster, replica_set
from operations.doctor.finding import Finding
from operations.stack.layout import Layout
from operations.stack.mongod import find_mongod
from operations.stack.queue_members import list_members, spread_queues
from operations.stack.rabbitmq import find_rabbitmq
from operations.stack.rabbitmq_cluster import NET_TICK_SECONDS, RabbitMQCluster
from operations.stack.state import read_state
from shared.broker_rights import VIRTUAL_HOST
from shared.topology import EVENTS, ORDER_INBOX
from tests.end_to_end.test_up_native import CommandLine
from tests.support.builders import order_body
from tests.support.eventually import eventually
from tests.support.seeds import IS_LONG_FORM
from tests.support.stack_users import mongodb_url_of

UP_WITHIN = 400
"""Three Erlang nodes on a loaded machine with two cores."""
NODES = ("rabbitmq", "rabbitmq-2", "rabbitmq-3")
MEMBERS = ("mongodb", "mongodb-2", "mongodb-3")


class Cluster(CommandLine):
    """A stack of three nodes and three members."""

    def start(self, *words: str) -> None:
        done = self.run("up", "--detach", *words, within=UP_WITHIN)
        assert done.returncode == 0, done.stdout + done.stderr

    @property
    def broker(self) -> RabbitMQCluster:
        """The nodes, for RabbitMQ's tools."""
        layout = Layout(self.data_directory)
        state = read_state(layout)
        return RabbitMQCluster(find_rabbitmq(), layout.rabbitmq, state.node, state.ports)

    @property
    def amqp_url(self) -> str:
        """The URL of the deployer."""
        url = read_state(Layout(self.data_directory)).amqp_url
        assert url is not None
        return url

    @contextmanager
    def mongodb(self) -> Iterator["pymongo.MongoClient[dict[str, Any]]"]:
        with pymongo.MongoClient[dict[str, Any]](mongodb_url_of(self.data_directory)) as client:
            yield client

    def primary(self) -> str:
        """Return the name of the process that is the primary."""
        with self.mongodb() as client:
            address = client.admin.command("hello")["primary"]
        return next(str(process["name"]) for process in self.status()["processes"] if address in process["url"])

    def leader(self, queue: str) -> str:
        """Return the name of the process that leads a queue."""
        leaders = {found.name: found.leader for found in list_members(self.broker.control, VIRTUAL_HOST)}
        return next(node.name for node in self.broker.nodes if node.node == leaders[queue])

    async def findings_of_broker(self) -> dict[str, Finding]:
        found = await asyncio.to_thread(broker_cluster.check_cluster, self.broker.control, VIRTUAL_HOST)
        return {finding.subject: finding for finding in found}

    async def findings_of_database(self) -> dict[str, Finding]:
        async with pymongo.AsyncMongoClient[dict[str, Any]](mongodb_url_of(self.data_directory)) as client:
            return {found.subject: found for found in await replica_set.check_members(client, is_own=True)}


@pytest.fixture(scope="module")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    """A whole stack on a cluster: doctor has something to say of an inbox without its service."""
    own = Cluster(tmp_path_factory.mktemp("cluster"))
    try:
        await asyncio.to_thread(own.start, "--cluster")
        yield own
    finally:
        await asyncio.to_thread(own.run, "down")


async def test_a_cluster_has_three_of_each_server(cluster: Cluster) -> None:
    status = cluster.status()
    assert status["cluster"]
    assert [process["name"] for process in status["processes"]][:6] == [*MEMBERS, *NODES]
    assert len({process["url"] for process in status["processes"]}) == len(status["processes"])


@pytest.mark.extended
async def test_doctor_names_a_queue_with_one_member_and_a_start_adds_the_others(cluster: Cluster) -> None:
    arguments: dict[str, Any] = {"x-queue-type": "quorum", "x-quorum-initial-group-size": 1}
    async with await aio_pika.connect(cluster.amqp_url.split(",")[0]) as connection:
        channel = await connection.channel()
        queue = await channel.declare_queue("lonely", durable=True, arguments=arguments)
        try:
            found = (await cluster.findings_of_broker())[broker_cluster.MEMBERS]
            assert found.outcome == "wrong"
            assert found.detail.endswith("have fewer than 3: lonely")
            await asyncio.to_thread(spread_queues, cluster.broker.control, VIRTUAL_HOST)  # as at a start
            assert (await cluster.findings_of_broker())[broker_cluster.MEMBERS].outcome == "ok"
        finally:
            await queue.delete(if_unused=False, if_empty=False)


@pytest.mark.extended
async def test_doctor_names_settings_that_make_the_loss_of_a_node_slow_or_dangerous(cluster: Cluster) -> None:
    last = cluster.broker.nodes[-1]

    def change(tick: int, handling: str) -> None:
        handle = f"application:set_env(rabbit, cluster_partition_handling, {handling})"
        last.control("-q", "eval", f"net_kernel:set_net_ticktime({tick}, 0), {handle}.")

    try:
        await asyncio.to_thread(change, 60, "ignore")
        found = await cluster.findings_of_broker()
    finally:
        await asyncio.to_thread(change, NET_TICK_SECONDS, "pause_minority")
    assert found[broker_cluster.TICK].outcome == "note"
    assert "after up to 75 s" in found[broker_cluster.TICK].detail
    assert found[broker_cluster.PARTITIONS].outcome == "wrong"
    assert found[broker_cluster.PARTITIONS].detail.startswith(f"ignore on {last.node}: ")
    assert {finding.outcome for finding in (await cluster.findings_of_broker()).values()} <= {"ok", "note"}


async def test_doctor_names_settings_that_make_elections_slow_or_writes_uncertain(cluster: Cluster) -> None:
    with cluster.mongodb() as client:
        good = client.admin.command("replSetGetConfig")["config"]
        assert {member["priority"] for member in good["members"]} == {1}, "any member may lead"
        settings = good["settings"] | {"electionTimeoutMillis": 10_000}
        bad = good | {"settings": settings, "version": good["version"] + 1, "writeConcernMajorityJournalDefault": False}
        client.admin.command("replSetReconfig", bad)
        try:
            found = await cluster.findings_of_database()
        finally:
            client.admin.command("replSetReconfig", good | {"version": bad["version"] + 1})
    assert found[replica_set.ELECTIONS].outcome == "note"
    assert "after 10 s" in found[replica_set.ELECTIONS].detail
    assert found[replica_set.WRITES].outcome == "wrong"
    assert {finding.outcome for finding in (await cluster.findings_of_database()).values()} == {"ok"}


async def test_orders_settle_when_the_leader_of_a_queue_and_the_primary_are_killed(cluster: Cluster) -> None:
    urls = {process["name"]: process["url"] for process in cluster.status()["processes"]}
    async with httpx.AsyncClient(timeout=30, headers=cluster.headers) as client:
        stock = await client.put(f"{urls['inventory']}/inventory/p1", json={"quantity": 1000})
        stock.raise_for_status()
        orders = [await _place(client, urls["order"]) for _ in range(10)]
        victims = [cluster.leader(ORDER_INBOX), cluster.primary()]
        for name in victims:
            os.kill(cluster.process(name)["pid"], signal.SIGKILL)
        orders += await asyncio.gather(*(_place(client, urls["order"]) for _ in range(40)))

        async def settled() -> bool:
            found = [(await client.get(f"{urls['order']}/orders/{order}")).json() for order in orders]
            return all(order["settled"] for order in found)

        await eventually(settled, within=120, message="all orders to settle")
    assert len(set(orders)) == 50
    await eventually(lambda: cluster.status()["ready"], within=120, message="what was killed to be back")
    assert all(cluster.process(name)["restarts"] >= 1 for name in victims)
    assert "50 orders" in cluster.must("audit")
    await nothing_is_to_fix(cluster)


async def nothing_is_to_fix(cluster: Cluster) -> None:
    """Wait until doctor finds all copies of all data, and settings with which the loss of a server is short."""
    queues = {queue.name: queue for queue in list_members(cluster.broker.control, VIRTUAL_HOST)}
    assert {ORDER_INBOX, EVENTS} < queues.keys()
    assert {len(queue.members) for queue in queues.values()} == {3}

    async def found() -> str | None:
        done = await asyncio.to_thread(cluster.run, "doctor", within=UP_WITHIN)
        return done.stdout if done.returncode == 0 else None

    shown = await eventually(found, within=UP_WITHIN, message="doctor to find nothing to fix")
    assert shown is not None
    for line in (
        "✓ replica set members: 3, all there",
        "✓ elections: a primary that is silent is replaced after 3 s, or 3.2 s if only that one has its last writes",
        "✓ write concern: the majority, on disk",
        "✓ user maintenance of MongoDB: has its rights and no others",
        "✓ cluster nodes: all 3 run",
        f"✓ queue members: at least 3 of each of {len(queues)} queues and streams",
        f"✓ net tick: a silent node is missed after {NET_TICK_SECONDS} to {NET_TICK_SECONDS * 5 // 4} s",
        "✓ partitions: a node without the majority pauses",
    ):
        assert line in shown


async def _place(client: httpx.AsyncClient, url: str) -> str:
    """Place an order as a client does: again with the same key until it is accepted."""
    headers = {"Idempotency-Key": str(uuid4())}
    body = order_body(payment={"method": "card", "token": "tok_ok"})

    async def accepted() -> str:
        answer = await client.post(f"{url}/orders", json=body, headers=headers)
        assert answer.status_code == httpx.codes.ACCEPTED, answer.text
        order_id: str = answer.json()["orderId"]
        return order_id

    return await eventually(accepted, within=120, message="the order to be accepted")


@pytest.fixture
async def with_a_broken_member(tmp_path: Path, clean_broker: str) -> AsyncIterator[Cluster]:
    """Members of which the third does not start, and a broker that runs."""
    mongod = tmp_path / "mongod"
    mongod.write_text(f'#!/bin/sh\ncase "$*" in *mongodb-3*) exit 7;; esac\nexec {find_mongod()} "$@"\n')
    mongod.chmod(0o700)
    own = Cluster(tmp_path, {"ORDERSAGA_AMQP_URL": clean_broker, "ORDERSAGA_MONGOD": str(mongod)})
    yield own
    await asyncio.to_thread(own.run, "down")


@pytest.mark.extended
async def test_a_first_start_that_fails_does_not_decide_the_kind_of_a_stack(with_a_broken_member: Cluster) -> None:
    stack = with_a_broken_member
    failed = await asyncio.to_thread(stack.run, "up", "--only", "", "--cluster", within=UP_WITHIN)
    assert failed.returncode == 1
    assert "mongodb-3 ended during its start with exit status 7" in failed.stderr
    await asyncio.to_thread(stack.start, "--only", "")
    assert [process["name"] for process in stack.status()["processes"]] == ["mongodb"]
    events = Layout(stack.data_directory).supervisor_log.read_text()
    assert "the servers of a cluster were never all ready here, so they start anew, without data" in events


@pytest.mark.long_form
@pytest.mark.skipif(not IS_LONG_FORM, reason="three more starts of servers take a minute: make test-seeds")
async def test_single_servers_grow_to_a_cluster_with_their_data(tmp_path: Path) -> None:
    stack = Cluster(tmp_path)
    try:
        await asyncio.to_thread(stack.start, "--only", "")
        with stack.mongodb() as client:
            client["kept"]["documents"].insert_one({"_id": 1})
        async with await aio_pika.connect(stack.amqp_url) as connection:
            exchange = (await connection.channel()).default_exchange
            await exchange.publish(aio_pika.Message(b"{}", delivery_mode=2), ORDER_INBOX)
        stack.must("down")
        await asyncio.to_thread(stack.start, "--only", "", "--cluster")
        assert (await stack.findings_of_broker())[broker_cluster.MEMBERS].outcome == "ok"
        assert (await stack.findings_of_database())[replica_set.MEMBERS].detail == "3, all there"
        with stack.mongodb() as client:
            assert client["kept"]["documents"].count_documents({}) == 1
        async with await aio_pika.connect(stack.amqp_url.split(",")[0]) as connection:
            kept = await (await connection.channel()).declare_queue(ORDER_INBOX, passive=True)
            assert kept.declaration_result.message_count == 1
        stack.must("down")
        await asyncio.to_thread(stack.start, "--only", "")
        assert stack.status()["cluster"], "a directory with a cluster stays one"
    finally:
        await asyncio.to_thread(stack.run, "down")
