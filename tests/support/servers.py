"""The MongoDB and RabbitMQ that the tests run against: real ones, from the first source available.

In this order: the URLs in ORDERSAGA_TEST_MONGODB_URL and ORDERSAGA_TEST_AMQP_URL; containers, where a Docker
engine answers; processes of this machine. In every case, a test run has its own virtual host.
"""

import asyncio
import contextlib
import os
import re
import secrets
import shutil
import signal
import tempfile
import urllib.parse
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aio_pika
import aiohttp
import pymongo

from operations.stack.layout import Layout
from operations.stack.mongod import Mongod, find_mongod
from operations.stack.ports import PortClaims
from operations.stack.processes import Child
from operations.stack.program import Program
from operations.stack.rabbitmq import Epmd, RabbitMQ, find_rabbitmq
from operations.stack.start import start
from operations.stack.state import AlreadyRunsError, acquire_lock
from shared import topology
from tests.support.eventually import eventually

MONGODB_URL_VARIABLE = "ORDERSAGA_TEST_MONGODB_URL"
AMQP_URL_VARIABLE = "ORDERSAGA_TEST_AMQP_URL"
AMQP_MANAGEMENT_URL_VARIABLE = "ORDERSAGA_TEST_AMQP_MANAGEMENT_URL"
DIRECTORY_PREFIX = "ordersaga-tests-"


@dataclass(frozen=True)
class Servers:
    """The URLs of this test run's servers, and their source: given, containers or native."""

    mongodb_url: str
    amqp_url: str
    origin: str = "given"
    native: "NativeServers | None" = None
    """Stops and starts the servers if both are processes of this machine."""


class NativeServers:
    """A separate MongoDB and RabbitMQ, as processes that can be stopped and started again.

    Data and ports stay the same over a stop and a start. Every method returns when the server is up, or gone.
    """

    def __init__(self, directory: Path, ports: dict[str, int]) -> None:
        self._directory = directory
        installation = find_rabbitmq()
        self._database = Mongod(find_mongod(), directory / "mongodb", ports["mongodb"])
        self._names = Epmd(installation, ports["epmd"])
        self.broker = RabbitMQ(installation, directory / "rabbitmq", f"tests-{secrets.token_hex(4)}", ports)
        self._running: dict[str, Child] = {}

    @property
    def mongodb_url(self) -> str:
        return self._database.url

    @property
    def amqp_url(self) -> str:
        return self.broker.url

    async def start(self) -> None:
        """Start both servers."""
        await asyncio.gather(self.start_database(), self.start_broker())

    async def stop(self) -> None:
        """End both servers."""
        await asyncio.gather(self.stop_database(), self.stop_broker())
        await self._stop(self._names, kill=False)

    async def start_database(self) -> None:
        await self._start(self._database)
        await _write_journal_often(self.mongodb_url)

    async def start_broker(self) -> None:
        await self._start(self._names)
        await self._start(self.broker)

    async def stop_database(self, *, kill: bool = False) -> None:
        """End MongoDB; with `kill` by SIGKILL, as in a crash."""
        await self._stop(self._database, kill)

    @contextlib.contextmanager
    def database_paused(self) -> Iterator[None]:
        """Pause MongoDB: connections stay open, and nothing is answered."""
        pid = self._running[self._database.name].pid
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)

    async def stop_broker(self, *, kill: bool = False) -> None:
        """End RabbitMQ; with `kill` by SIGKILL, as in a crash."""
        if kill:
            # RabbitMQ writes down where a new quorum queue is half a second later. A node that is killed before has
            # a queue that it can never use again, which is not what a test of ours is about.
            await asyncio.to_thread(self.rabbitmqctl, "eval", "[dets:sync(Table) || Table <- dets:all()].")
        await self._stop(self.broker, kill)

    async def wipe_broker(self) -> None:
        """End RabbitMQ, delete all its data, and start it again."""
        await self.stop_broker()
        await asyncio.to_thread(shutil.rmtree, self._directory / "rabbitmq" / "data")
        await self.start_broker()

    def rabbitmqctl(self, *arguments: str) -> str:
        """Run rabbitmqctl on the broker; it takes a second or two."""
        return self.broker.control(*arguments)

    async def _start(self, program: Program) -> None:
        running = self._running.get(program.name)
        if running is None or not running.running:
            self._running[program.name] = await start(program, self._directory / "logs", self._directory)

    async def _stop(self, program: Program, kill: bool) -> None:
        child = self._running.pop(program.name, None)
        if child is None:
            return
        if kill:
            child.kill()
        await child.end(program.grace_seconds)


@contextlib.asynccontextmanager
async def native_servers() -> AsyncIterator[NativeServers]:
    """Start servers in a temporary directory; both end, and their data goes, when the context does."""
    _remove_what_killed_runs_left()
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=DIRECTORY_PREFIX)))
        stack.enter_context(acquire_lock(Layout(directory)))
        claims = stack.enter_context(PortClaims())
        ports = claims.claim_preferred(["mongodb", "amqp", "distribution", "epmd"])
        servers = NativeServers(directory, ports)
        try:
            await servers.start()
            yield servers
        finally:
            await servers.stop()


def _remove_what_killed_runs_left() -> None:
    """Delete the directories of runs that were killed; their servers ended with them."""
    for directory in Path(tempfile.gettempdir()).glob(f"{DIRECTORY_PREFIX}*/"):
        with contextlib.suppress(AlreadyRunsError, OSError), acquire_lock(Layout(directory)):
            shutil.rmtree(directory, ignore_errors=True)


@contextlib.asynccontextmanager
async def run_servers(announce: Callable[[str], None]) -> AsyncIterator[Servers]:
    """Provide the servers of one test run from the first available source, and announce it."""
    async with contextlib.AsyncExitStack() as stack:
        mongodb_url, amqp_url = os.environ.get(MONGODB_URL_VARIABLE), os.environ.get(AMQP_URL_VARIABLE)
        if mongodb_url and amqp_url:
            announce(f"servers: given by {MONGODB_URL_VARIABLE} and {AMQP_URL_VARIABLE}")
            yield Servers(mongodb_url, await stack.enter_async_context(_own_virtual_host(amqp_url)))
            return
        found = await _started(stack, announce)
        if mongodb_url or amqp_url:
            found = Servers(mongodb_url or found.mongodb_url, amqp_url or found.amqp_url, found.origin)
        yield found


async def _started(stack: contextlib.AsyncExitStack, announce: Callable[[str], None]) -> Servers:
    from tests.support import containers

    obstacle = await asyncio.to_thread(containers.obstacle)
    if obstacle is None:
        announce("servers: containers")
        found = stack.enter_context(containers.start_containers())
    else:
        announce(f"servers: processes of this machine ({obstacle})")
        native = await stack.enter_async_context(native_servers())
        return Servers(native.mongodb_url, native.amqp_url, "native", native)
    await _write_journal_often(found.mongodb_url)
    return found


async def _write_journal_often(mongodb_url: str) -> None:
    """Have what waits for the journal's next write, as dropping a database does, wait 25 ms for it and not 100.

    A shorter interval costs CPU: at 5 ms, an idle MongoDB takes 2 % of a core.
    """
    async with pymongo.AsyncMongoClient[dict[str, Any]](mongodb_url) as client:
        await client.admin.command({"setParameter": 1, "journalCommitInterval": 25})


async def drop_databases(mongodb_url: str, prefix: str) -> None:
    """Drop the databases `<prefix>` and `<prefix>_...`."""
    async with pymongo.AsyncMongoClient[dict[str, Any]](mongodb_url) as client:
        await drop_databases_of(client, prefix)


async def drop_databases_of(client: pymongo.AsyncMongoClient[dict[str, Any]], prefix: str) -> None:
    """Do so over this client: to open one costs more than to drop a small database. All wait for the same journal."""
    await asyncio.gather(*(client.drop_database(name) for name in await _database_names(client, prefix)))


async def empty_databases(mongodb_url: str, prefix: str) -> None:
    """Delete all documents of the databases `<prefix>` and `<prefix>_...`, and keep their collections and indexes."""
    async with pymongo.AsyncMongoClient[dict[str, Any]](mongodb_url) as client:
        await empty_databases_of(client, prefix)


async def empty_databases_of(client: pymongo.AsyncMongoClient[dict[str, Any]], prefix: str) -> None:
    """Do so over this client."""
    for name in await _database_names(client, prefix):
        for collection in await client[name].list_collection_names():
            await client[name][collection].delete_many({})


async def _database_names(client: pymongo.AsyncMongoClient[dict[str, Any]], prefix: str) -> list[str]:
    return [name for name in await client.list_database_names() if re.match(f"{prefix}(_|$)", name)]


async def delete_topology(amqp_url: str) -> None:
    """Delete every queue and exchange that the services declare, or that an earlier release did.

    A broker that has just started again refuses queues for a moment: their leaders are not elected yet.
    """

    async def delete() -> bool:
        async with await aio_pika.connect(amqp_url) as connection:
            channel = await connection.channel()
            declared = topology.all_queues(topology.DEFAULT_OPTIONS)
            for queue in declared:
                await channel.queue_delete(queue.name)
            for name in topology.FORMER_RETRY_QUEUES:
                await channel.queue_delete(name)
            for exchange in topology.exchanges():
                await channel.exchange_delete(exchange.name)
        return True

    await eventually(delete, 60, "the queues to be deleted")


@contextlib.asynccontextmanager
async def _own_virtual_host(amqp_url: str) -> AsyncIterator[str]:
    """Create a virtual host for this run on a broker that was given, if its management API was given too."""
    management = os.environ.get(AMQP_MANAGEMENT_URL_VARIABLE)
    if not management:
        yield amqp_url
        return
    name = f"tests-{secrets.token_hex(4)}"
    address = urllib.parse.urlsplit(amqp_url)
    login = aiohttp.BasicAuth(address.username or "guest", address.password or "guest")
    host, everything = f"{management.rstrip('/')}/api/vhosts/{name}", {"configure": ".*", "write": ".*", "read": ".*"}
    permissions = f"{management.rstrip('/')}/api/permissions/{name}/{login.login}"
    async with aiohttp.ClientSession(auth=login, raise_for_status=True) as session:
        await (await session.put(host, json={})).release()
        await (await session.put(permissions, json=everything)).release()
        try:
            yield address._replace(path=f"/{name}").geturl()
        finally:
            await (await session.delete(host)).release()
