"""Processes that are cut off from each other on one machine: really silent, and whole again afterwards."""

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator, Iterator, Sequence

import pytest

from chaos import network
from chaos.network import Cut, Endpoint
from tests.support.broker_clusters import BrokerCluster, broker_cluster
from tests.support.eventually import eventually
from tests.support.isolation import isolated
from tests.support.replica_set import Member, replica_set

WITHIN_SECONDS = 60.0
pytestmark = pytest.mark.skipif(network.missing() is not None, reason=str(network.missing()))

ECHO = """
import asyncio

async def answer(reader, writer):
    while line := await reader.readline():
        writer.write(line)

async def serve():
    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()

asyncio.run(serve())
"""

CLIENT = """
import socket, sys

def ask(connection):
    connection.settimeout(1)
    connection.sendall(b"x")
    connection.sendall(b"\\n")
    return connection.recv(2) != b""

old = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
print(ask(old), flush=True)
for command in sys.stdin:
    try:
        if command == "old\\n":
            print("answered" if ask(old) else "closed", flush=True)
        else:
            with socket.create_connection(old.getpeername(), timeout=1) as new:
                print("answered" if ask(new) else "closed", flush=True)
    except TimeoutError:
        print("silent", flush=True)
"""


class Program:
    """A small Python program that answers lines with lines."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.pid = process.pid
        self._process = process

    async def line(self) -> str:
        assert self._process.stdout is not None
        return (await self._process.stdout.readline()).decode().strip()

    async def ask(self, command: str) -> str:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{command}\n".encode())
        return await self.line()


@contextlib.asynccontextmanager
async def program(text: str, *arguments: object) -> AsyncIterator[Program]:
    pipe = asyncio.subprocess.PIPE
    argv = [sys.executable, "-c", text, *map(str, arguments)]
    process = await asyncio.create_subprocess_exec(*argv, stdin=pipe, stdout=pipe)
    try:
        yield Program(process)
    finally:
        process.kill()
        await process.communicate()


@contextlib.contextmanager
def made(cut: Cut) -> Iterator[None]:
    cut.make()
    try:
        yield
    finally:
        cut.heal()
    cut.heal()
    assert not has_groups(cut)


def has_groups(cut: Cut) -> bool:
    return any(network._group_of(endpoint.pid).exists() for endpoint in (cut.one, *cut.others))


@isolated
async def test_a_client_that_is_cut_off_hears_nothing_on_old_and_new_connections_and_others_do() -> None:
    async with program(ECHO) as server:
        port = int(await server.line())
        async with program(CLIENT, port) as one, program(CLIENT, port) as other:
            assert [await one.line(), await other.line()] == ["True", "True"]
            with made(Cut(Endpoint(one.pid), [Endpoint(server.pid, (port,))])):
                assert [await one.ask(each) for each in ("old", "new")] == ["silent", "silent"]
                assert [await other.ask(each) for each in ("old", "new")] == ["answered", "answered"]
            assert await one.ask("new") == "answered"

            async def old_answers() -> bool:
                return await one.ask("old") == "answered"

            await eventually(old_answers, WITHIN_SECONDS, "the old connection to go on")


@isolated
async def test_a_cut_of_a_process_that_has_ended_leaves_nothing() -> None:
    async with program(ECHO) as server:
        port = int(await server.line())
        async with program(CLIENT, port) as ended:
            await ended.line()
        cut = Cut(Endpoint(ended.pid), [Endpoint(server.pid, (port,))])
        with pytest.raises(LookupError):
            cut.make()
        assert not has_groups(cut)


@isolated
async def test_what_a_killed_run_has_left_goes_with_the_next_cut() -> None:
    async with program(ECHO) as ended:
        await ended.line()
    left = network._group_of(ended.pid)
    left.mkdir()
    async with program(ECHO) as server:
        port = int(await server.line())
        with made(Cut(Endpoint(server.pid, (port,)), [])):
            pass
    assert not left.exists()


def cut_off(one: Member, members: Sequence[Member]) -> Cut:
    def endpoint(member: Member) -> Endpoint:
        return Endpoint(member.process.pid, (member.port,))

    return Cut(endpoint(one), [endpoint(member) for member in members if member is not one])


UNREACHABLE = "(not reachable/healthy)"


async def seen_by(member: Member) -> dict[str, str]:
    """Return in which state a member sees each of them."""
    status = await member.command({"replSetGetStatus": 1})
    return {other["name"]: other["stateStr"] for other in status["members"]}


@isolated
async def test_a_primary_that_is_cut_off_steps_down_and_follows_its_successor_afterwards() -> None:
    async with replica_set() as members:
        await members.can_roll_back()
        primary = await members.primary()
        others = {member.address for member in members.members} - {primary.address}
        with made(cut_off(primary, members.members)):
            successor = await members.primary(other_than=primary)

            async def stepped_down() -> bool:
                seen = await seen_by(primary)
                return seen[primary.address] == "SECONDARY" and {seen[address] for address in others} == {UNREACHABLE}

            async def is_missed() -> bool:
                return (await seen_by(successor))[primary.address] == UNREACHABLE

            await eventually(stepped_down, WITHIN_SECONDS, "the old primary to step down, and to reach no other member")
            await eventually(is_missed, WITHIN_SECONDS, "the new primary not to reach the old one")
        await members.caught_up()


async def running_nodes(cluster: BrokerCluster, asked: int) -> list[str]:
    status = json.loads(await asyncio.to_thread(cluster.rabbitmqctl, asked, "cluster_status", "--formatter", "json"))
    return sorted(status["running_nodes"])


@pytest.mark.extended
@isolated
async def test_a_broker_node_that_is_cut_off_pauses_and_returns_by_itself() -> None:
    async with broker_cluster() as cluster:
        everyone = await running_nodes(cluster, 0)
        assert len(everyone) == 3
        last, *others = [cluster.endpoint(number) for number in (2, 0, 1)]
        with made(Cut(last, others)):

            async def parted() -> bool:
                return len(await running_nodes(cluster, 0)) == 2

            await eventually(parted, WITHIN_SECONDS, "the others to miss the node")
            paused = await asyncio.to_thread(cluster.rabbitmqctl, 2, "eval", "whereis(rabbit).")
            assert paused.strip() == "undefined"

        async def whole() -> bool:
            return [await running_nodes(cluster, number) for number in range(3)] == [everyone] * 3

        await eventually(whole, 3 * WITHIN_SECONDS, "the node to return")
