"""Counts false alarms among the nodes of a RabbitMQ cluster, on slow links, with pauses and on a busy machine.

    .venv/bin/python -m benchmarks.net_tick
    .venv/bin/python -m benchmarks.net_tick --ticks 4,8 --seconds 60

Starts three nodes that reach each other through a link whose latency can be set: their name server (epmd) is ours, and
answers with a port of the link. Meanwhile, messages are published to a queue and consumed. Each line of the table is
about one condition, and shows

    missed     how often a node gave up another one
    elections  how many queues got another leader
    confirm    the median and the longest time until a publication was confirmed, in seconds
"""

import argparse
import asyncio
import contextlib
import os
import random
import re
import secrets
import signal
import statistics
import struct
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path

import psutil
import uvloop
from rich.console import Console
from rich.table import Table

from operations.stack.layout import CLUSTER_PORTS
from operations.stack.ports import PortClaims
from operations.stack.processes import Child
from operations.stack.rabbitmq import find_rabbitmq
from operations.stack.rabbitmq_cluster import NET_TICK_SECONDS, RabbitMQCluster
from operations.stack.start import start
from shared import topology
from shared.bus import Envelope
from shared.bus.rabbitmq import RabbitBus
from shared.errors import BusUnavailableError

START_SECONDS = 300
QUEUE = topology.ORDER_INBOX
PUBLISH_EVERY = 0.02
LATENCIES = (0.1, 0.25, 0.5, 1.0)
"""Round trips, in seconds; up to half of it is added at random."""
PAUSES = (1, 2, 3, 4, 6)
"""In seconds; at the end one that every net tick below 5 s has to notice. RabbitMQ 3.10 then parts the nodes."""
BUSY_LOOPS = 8
AFTER_SECONDS = 3.0
"""The time between two pauses, and after each condition, in which its consequences appear."""
_MISSED = re.compile(r"Removing \(timedout\) connection")
_ELECTED = re.compile(r"candidate -> leader")
_ALIVE, _ALIVE_ANSWER, _PORT, _PORT_ANSWER = 120, 118, 122, 119


class Link:
    """Forwards connections to other ports of this machine, with a latency."""

    def __init__(self) -> None:
        self.round_trip = 0.0
        self._ports: dict[int, int] = {}

    async def port_to(self, port: int) -> int:
        """Return a port that leads to another one."""
        if port not in self._ports:

            async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                to_reader, to_writer = await asyncio.open_connection("127.0.0.1", port)
                await asyncio.gather(self._forward(reader, to_writer), self._forward(to_reader, writer))

            server = await asyncio.start_server(accept, "127.0.0.1")
            self._ports[port] = server.sockets[0].getsockname()[1]
        return self._ports[port]

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        due: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        writing = asyncio.create_task(_write_when_due(due, writer))
        at = 0.0
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65_536):
                latency = self.round_trip / 2 * random.uniform(1, 1.5)
                at = max(at, time.monotonic() + latency)  # nothing overtakes
                due.put_nowait((at, data))
        due.put_nowait((at, b""))
        await writing


async def _write_when_due(due: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while True:
            at, data = await due.get()
            await asyncio.sleep(max(0.0, at - time.monotonic()))
            if not data:
                break
            writer.write(data)
            await writer.drain()
    writer.close()


class NameServer:
    """Erlang's name server, with the link's ports in place of those of the nodes."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._nodes: dict[bytes, bytes] = {}
        """What each node said of itself: its port, and the rest that others get to know."""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one question; a node that names itself is known as long as its connection lasts."""
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            (size,) = struct.unpack(">H", await reader.readexactly(2))
            question = await reader.readexactly(size)
            if question[0] == _ALIVE:
                await self._register(question, reader, writer)
            elif question[0] == _PORT:
                writer.write(await self._describe(question[1:]))
                await writer.drain()
        writer.close()

    async def _register(self, said: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        (length,) = struct.unpack_from(">H", said, 9)
        name = said[11 : 11 + length]
        self._nodes[name] = said
        writer.write(struct.pack(">BBI", _ALIVE_ANSWER, 0, secrets.randbelow(2**31) + 4))
        await writer.drain()
        await reader.read()
        del self._nodes[name]

    async def _describe(self, name: bytes) -> bytes:
        said = self._nodes.get(name)
        if said is None:
            return struct.pack(">BB", _PORT_ANSWER, 1)
        (port,) = struct.unpack_from(">H", said, 1)
        about = said[3 : 11 + len(name)]
        return struct.pack(">BBH", _PORT_ANSWER, 0, await self._link.port_to(port)) + about + b"\0\0"


class Nodes:
    """Three nodes that run, and what their logs say."""

    def __init__(self, cluster: RabbitMQCluster, children: Sequence[Child], directory: Path) -> None:
        self.cluster = cluster
        self._second = psutil.Process(children[1].pid)
        self._logs = [log for node in cluster.nodes for log in (directory / node.name / "log").glob("*localhost.log")]

    def count(self, event: re.Pattern[str]) -> int:
        """Return how often the logs of all nodes name an event."""
        return sum(len(event.findall(log.read_text(errors="replace"))) for log in self._logs)

    async def set_tick(self, seconds: int) -> None:
        """Change the net tick of all nodes."""
        change = f"[rpc:call(N, net_kernel, set_net_ticktime, [{seconds}, 0]) || N <- [node() | nodes()]]."
        await asyncio.to_thread(self.cluster.nodes[0].control, "-q", "eval", change)

    async def pause(self, seconds: float, until: float) -> None:
        """Stop one node for some seconds, again and again."""
        while time.monotonic() < until:
            self._second.send_signal(signal.SIGSTOP)
            await asyncio.sleep(seconds)
            self._second.send_signal(signal.SIGCONT)
            await asyncio.sleep(AFTER_SECONDS)


@contextlib.asynccontextmanager
async def running_nodes(link: Link) -> AsyncIterator[Nodes]:
    """Start three nodes over a link, in a temporary directory, and end them."""
    with tempfile.TemporaryDirectory(prefix="ordersaga-net-tick-") as temporary, PortClaims() as claims:
        directory = Path(temporary)
        ports = claims.claim_preferred([name for name in CLUSTER_PORTS if not name.startswith("mongodb")])
        await asyncio.start_server(NameServer(link).serve, "127.0.0.1", ports["epmd"])
        cluster = RabbitMQCluster(find_rabbitmq(), directory / "rabbitmq", f"n{secrets.token_hex(4)}", ports)
        children: list[Child] = []
        try:
            for node in cluster.nodes:
                child = await start(node, directory / "logs", directory, START_SECONDS)
                children.append(child)
            yield Nodes(cluster, children, directory)
        finally:
            for child in children:
                child.kill()
            await asyncio.gather(*(child.wait() for child in children))


async def consume(bus: RabbitBus) -> None:
    """Acknowledge every message."""
    while True:
        await bus.acknowledge(await bus.receive(100))


async def publish(bus: RabbitBus, waited: list[float]) -> None:
    """Publish one message after the other, and note how long each took to be confirmed."""
    message = Envelope(b"x" * 300, "", QUEUE, "", "", "", mandatory=False)
    while True:
        since = time.monotonic()
        with contextlib.suppress(BusUnavailableError):
            await bus.publish([message])
        waited.append(time.monotonic() - since)
        await asyncio.sleep(PUBLISH_EVERY)


@contextlib.asynccontextmanager
async def busy(loops: int) -> AsyncIterator[None]:
    """Keep the processors busy."""
    processes = [await asyncio.create_subprocess_exec(sys.executable, "-c", "while True: pass") for _ in range(loops)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            await process.wait()


async def measure(ticks: Sequence[int], seconds: float, table: Table) -> None:
    """Add a line for each net tick and condition."""
    link = Link()
    async with running_nodes(link) as nodes:
        bus, waited = RabbitBus(nodes.cluster.url, name="net-tick"), list[float]()
        await bus.start(QUEUE)
        traffic = [asyncio.create_task(consume(bus)), asyncio.create_task(publish(bus, waited))]

        async def observe(tick: int, condition: str, act: Callable[[], Awaitable[object]]) -> None:
            before = [nodes.count(event) for event in (_MISSED, _ELECTED)]
            waited.clear()
            await act()
            await asyncio.sleep(AFTER_SECONDS)
            missed, elected = (
                nodes.count(event) - earlier for event, earlier in zip((_MISSED, _ELECTED), before, strict=True)
            )
            times = waited or [0.0]
            confirm = f"{statistics.median(times):.2f} / {max(times):.2f}"
            table.add_row(str(tick), condition, str(missed), str(elected), confirm, f"{os.getloadavg()[0]:.0f}")

        async def with_busy_loops() -> None:
            async with busy(BUSY_LOOPS):
                await asyncio.sleep(seconds)

        for tick in ticks:
            await nodes.set_tick(tick)
            await observe(tick, "none", lambda: asyncio.sleep(seconds))
            for link.round_trip in LATENCIES:
                await observe(tick, f"round trips of {link.round_trip:g} s", lambda: asyncio.sleep(seconds))
            link.round_trip = 0.0
            await observe(tick, f"{BUSY_LOOPS} busy loops", with_busy_loops)
            for pause in PAUSES:
                until = time.monotonic() + seconds
                await observe(tick, f"pauses of {pause} s", lambda: nodes.pause(pause, until))  # noqa: B023
        for task in traffic:
            task.cancel()
        await bus.close()


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ticks", default=str(NET_TICK_SECONDS), help="values of net_ticktime, with commas")
    parser.add_argument("--seconds", type=float, default=60, help="the length of each condition")
    options = parser.parse_args()
    table = Table("net_ticktime", "condition", "missed", "elections", "confirm p50 / max", "load")
    uvloop.run(measure([int(tick) for tick in options.ticks.split(",")], options.seconds, table))
    Console(width=None if sys.stdout.isatty() else 120).print(table)


if __name__ == "__main__":
    main()
