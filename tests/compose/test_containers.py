"""The servers that a test run gets as containers."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aio_pika
import docker
import pymongo
import pytest

from deploy.container.initiate_replica_set import WrongReplicaSetError, initiate
from tests.support import containers
from tests.support.servers import Servers

ROOT = Path(__file__).parents[2]
HOLD = """
import sys
from tests.support.containers import start_containers
with start_containers():
    print("started", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(scope="module")
def engine() -> Iterator[docker.DockerClient]:
    if problem := containers.obstacle():
        pytest.skip(problem)
    client = docker.from_env()
    yield client
    client.close()


@pytest.fixture(scope="module")
def started(engine: docker.DockerClient) -> Iterator[Servers]:
    with containers.start_containers() as servers:
        yield servers


def owned_by(engine: docker.DockerClient, pid: int) -> list[str]:
    found = engine.containers.list(all=True, filters={"label": containers.OWNER_LABEL})
    return [one.id for one in found if one.labels[containers.OWNER_LABEL].endswith(f":{pid}")]


async def test_the_database_commits_transactions(started: Servers, unique_id: str) -> None:
    async with (
        pymongo.AsyncMongoClient[dict[str, Any]](started.mongodb_url) as client,
        client.start_session() as session,
    ):
        notes = client[unique_id]["notes"]
        async with await session.start_transaction():
            await notes.insert_one({"_id": 1}, session=session)
        assert await notes.count_documents({}) == 1
        await client.drop_database(unique_id)


def test_a_replica_set_under_another_address_is_refused_at_once(started: Servers) -> None:
    address = pymongo.uri_parser.parse_uri(started.mongodb_url)["nodelist"][0]
    url = f"mongodb://{address[0]}:{address[1]}/"

    with pytest.raises(WrongReplicaSetError, match="not elsewhere:27017 of rs0"):
        initiate(url, "rs0", "elsewhere:27017", within=5)
    initiate(url, "rs0", f"{address[0]}:{address[1]}", within=5)


async def test_the_broker_takes_a_quorum_queue_in_a_separate_virtual_host(started: Servers, unique_id: str) -> None:
    async with await aio_pika.connect(started.amqp_url) as connection:
        channel = await connection.channel()
        queue = await channel.declare_queue(unique_id, durable=True, arguments={"x-queue-type": "quorum"})
        await channel.default_exchange.publish(aio_pika.Message(b"body"), routing_key=unique_id)
        message = await queue.get(timeout=5)

    assert message is not None
    assert message.body == b"body"
    assert started.amqp_url.rpartition("/")[2].startswith("tests-")


def test_ports_are_published_on_loopback_only(engine: docker.DockerClient, started: Servers) -> None:
    addresses = {
        binding["HostIp"]
        for one in owned_by(engine, os.getpid())
        for bindings in engine.containers.get(one).ports.values()
        for binding in bindings or ()
    }

    assert addresses == {"127.0.0.1"}


def test_what_a_killed_run_left_behind_goes_when_the_next_one_starts(engine: docker.DockerClient) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as run:
        assert run.stdout is not None
        assert run.stdout.readline() == "started\n"
        run.send_signal(signal.SIGKILL)
    assert len(owned_by(engine, run.pid)) == 2

    with containers.start_containers():
        assert owned_by(engine, run.pid) == []


def test_containers_go_when_the_run_is_interrupted(engine: docker.DockerClient) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as run:
        assert run.stdout is not None
        assert run.stdout.readline() == "started\n"
        run.send_signal(signal.SIGINT)

    assert owned_by(engine, run.pid) == []


def test_an_image_that_cannot_be_had_is_named(engine: docker.DockerClient, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = "127.0.0.1:9/nothing:1"  # no registry listens on the discard port
    monkeypatch.setattr(containers, "MONGO_IMAGE", missing)

    problem = containers.obstacle()

    assert problem is not None
    assert missing in problem
    assert "\n" not in problem
    assert containers.engine_answers()
    with pytest.raises(containers.ContainersUnavailableError, match="cannot be pulled"), containers.start_containers():
        pass


def test_no_engine_is_said_plainly(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/docker.sock")

    assert not containers.engine_answers()
    assert containers.obstacle() == "no Docker engine answers"
