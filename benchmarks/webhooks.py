"""The rate at which events are delivered to webhooks, and what endpoints that hang or are slow cost the others.

    python -m benchmarks.webhooks "mongodb://127.0.0.1:27017/?replicaSet=rs0" [--events 5000]

Handler and dispatcher of one notification process run in this process, over a real database; the receiver is a process
of its own on this machine, which answers 204 at once, on the path /slow after 3 s, or on the path /hang not at all. The
CPU time is that of this process, the receiver and MongoDB (whatever else it does), for each delivery that is waited
for. The benchmark uses its own database and drops it at the end.
"""

import argparse
import asyncio
import multiprocessing
import os
import re
import secrets
import statistics
import time
from collections.abc import AsyncIterator, Sequence
from datetime import timedelta
from multiprocessing.connection import Connection
from typing import NamedTuple, cast

import psutil
import uvloop
from cryptography.fernet import Fernet
from rich.console import Console
from rich.table import Table

from notification_service.__main__ import limits_from
from notification_service.deliveries import COLLECTION, Deliveries
from notification_service.delivery import Status
from notification_service.dispatcher import Dispatcher
from notification_service.endpoint import Endpoint, Secret
from notification_service.endpoints import Endpoints
from notification_service.handlers import EventHandlers
from notification_service.schema import SCHEMA
from notification_service.sender import Sender
from notification_service.settings import NotificationSettings
from notification_service.signing import sign
from notification_service.signing_secrets import SecretVault, new_secret
from shared import database, schema
from shared.clock import utc_now
from shared.contracts import OrderConfirmed
from shared.database import Collection, Database
from shared.failpoints import nothing_fails
from shared.settings import ServiceSettings

NAME = "ordersaga_benchmark_webhooks"
BATCH = 100
"""The messages in one batch of the handler."""
WITHIN = 110.0
HANG, SLOW = MISBEHAVING = ("/hang", "/slow")
SLOW_SECONDS = 3.0
RUNS: Sequence[tuple[str, Sequence[str]]] = (
    ("1 endpoint", ("/a",)),
    ("3 endpoints", ("/a", "/b", "/c")),
    ("2 endpoints", ("/a", "/b")),
    ("2 endpoints beside one that hangs and a slow one", ("/a", "/b", HANG, SLOW)),
)


class Receiver(asyncio.Protocol):
    """Answers every request with 204: at once, late or never."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember the connection."""
        # uvloop's transports are no subclass of asyncio's.
        self._transport, self._read = cast(asyncio.Transport, transport), b""

    def data_received(self, data: bytes) -> None:
        """Answer each request that is complete."""
        self._read += data
        while (end := self._read.find(b"\r\n\r\n")) >= 0:
            length = re.search(rb"(?i)content-length: (\d+)", self._read[:end])
            size = end + 4 + (int(length[1]) if length else 0)
            if len(self._read) < size:
                return
            request, self._read = self._read[:size], self._read[size:]
            match request.split(b" ", 2)[1].decode():
                case path if path == SLOW:
                    asyncio.get_running_loop().call_later(SLOW_SECONDS, self._answer)
                case path if path != HANG:
                    self._answer()

    def _answer(self) -> None:
        self._transport.write(b"HTTP/1.1 204 No Content\r\n\r\n")


class Receiving(NamedTuple):
    """The process that receives."""

    url: str
    pid: int


def receive(pipe: Connection) -> None:
    """Serve until killed, after telling the port."""

    async def serve() -> None:
        server = await asyncio.get_running_loop().create_server(Receiver, "127.0.0.1", 0)
        pipe.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    uvloop.run(serve())


def messages(number: int, owner: str) -> list[OrderConfirmed]:
    """Return confirmations of orders, with the fields that a small order has."""
    found = []
    for _ in range(number):
        order_id = secrets.token_hex(16)
        item = {"productId": "p1", "quantity": 1, "price": 10}
        order = {"orderId": order_id, "userId": "u1", "status": "CONFIRMED", "items": [item], "totalAmount": 10}
        message = OrderConfirmed(
            order_id=order_id, user_id="u1", owner_id=owner, total_amount=1000, at=utc_now(), order=order
        )
        found.append(message)
    return found


async def measure(
    source: Database, receiver: Receiving, vault: SecretVault, paths: Sequence[str], events: int
) -> Sequence[str]:
    """Record events, wait until those to endpoints that behave are delivered, and return a row of the table."""
    settings = NotificationSettings(webhook_allow_private=True)
    owner = secrets.token_hex(8)
    endpoints, deliveries = Endpoints(source), Deliveries(source, timedelta(days=1))
    for path in paths:
        now, name = utc_now(), f"wh_{secrets.token_hex(8)}"
        secret = Secret(vault.seal(name, new_secret()), now)
        await endpoints.insert(Endpoint(name, f"{receiver.url}{path}", ("order.*",), (secret,), now, now, owner))
    working = [
        each.id for each in await endpoints.of_owners([owner], for_staff=False) if not each.url.endswith(MISBEHAVING)
    ]
    sender = Sender(allow_private=True, timeout=settings.webhook_timeout_seconds)
    dispatcher = Dispatcher(
        endpoints, deliveries, vault, sender, sign, limits_from(settings), clock=utc_now, failpoint=nothing_fails
    )
    handlers = EventHandlers(endpoints, deliveries, utc_now, dispatcher.wake)
    all_messages = messages(events, owner)
    delivering = asyncio.create_task(dispatcher.run())
    started, before = time.perf_counter(), await cpu_seconds(source, receiver)
    try:
        for first in range(0, events, BATCH):
            await handlers.record(all_messages[first : first + BATCH])
        await all_delivered(source[COLLECTION], working)
        seconds, after = time.perf_counter() - started, await cpu_seconds(source, receiver)
    finally:
        delivering.cancel()
        await asyncio.wait([delivering])
        await sender.close()
    number = events * len(working)
    waits = [wait async for wait in waits_of(source[COLLECTION], working)]
    p50, p99 = statistics.median(waits), statistics.quantiles(waits, n=100)[98]
    return (
        f"{events / seconds:,.0f}",
        f"{number / seconds:,.0f}",
        *(f"{(used - unused) / number * 1000:.2f}" for used, unused in zip(after, before, strict=True)),
        f"{p50:.2f}",
        f"{p99:.2f}",
    )


async def all_delivered(deliveries: Collection, endpoint_ids: Sequence[str]) -> None:
    """Wait until nothing is pending. Raises TimeoutError after the time for one line of the table."""
    pending = {"endpointId": {"$in": list(endpoint_ids)}, "status": Status.PENDING}
    async with asyncio.timeout(WITHIN):
        while await deliveries.find_one(pending, {"_id": True}):
            await asyncio.sleep(0.05)


async def waits_of(deliveries: Collection, endpoint_ids: Sequence[str]) -> AsyncIterator[float]:
    """Yield the seconds from the record of each delivery to its successful attempt."""
    query = {"endpointId": {"$in": list(endpoint_ids)}, "status": Status.DELIVERED}
    async for each in deliveries.find(query, {"createdAt": True, "deliveredAt": True}):
        yield (each["deliveredAt"] - each["createdAt"]).total_seconds()


async def cpu_seconds(source: Database, receiver: Receiving) -> Sequence[float]:
    """Return the CPU time that this process, the receiver and MongoDB have used."""
    processes = [psutil.Process(pid).cpu_times() for pid in (os.getpid(), receiver.pid)]
    mongod = (await source.client.admin.command("serverStatus"))["extra_info"]
    return *(times.user + times.system for times in processes), (
        mongod["user_time_us"] + mongod["system_time_us"]
    ) / 1e6


async def run(url: str, receiver: Receiving, events: int) -> None:
    """Measure every line and print the table."""
    mongo = database.client(ServiceSettings(mongodb_url=url))
    columns = ("to", "events/s", "deliveries/s", "CPU ms", "receiver", "MongoDB", "p50 s", "p99 s until sent")
    table, vault = Table(*columns), SecretVault(Fernet.generate_key().decode())
    try:
        await mongo.drop_database(NAME)  # a run that was killed leaves endpoints
        await schema.prepare(mongo[NAME], SCHEMA)
        for name, paths in RUNS:
            table.add_row(name, *await measure(mongo[NAME], receiver, vault, paths, events))
            await asyncio.gather(*(mongo[NAME][each].delete_many({}) for each in SCHEMA))
    finally:
        await mongo.drop_database(NAME)
        await database.close(mongo)
    Console().print(table)


def main() -> None:
    """Read the arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", help="a MongoDB replica set")
    parser.add_argument("--events", type=int, default=5000, help="events for each line")
    arguments = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=receive, args=(theirs,), daemon=True)
    process.start()
    try:
        receiver = Receiving(f"http://127.0.0.1:{ours.recv()}", process.pid or 0)
        uvloop.run(run(arguments.url, receiver, arguments.events))
    finally:
        process.kill()


if __name__ == "__main__":
    main()
