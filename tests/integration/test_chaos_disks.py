"""Small disks that get full, and disks that get slow, under real servers."""

import asyncio
import errno
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aio_pika
import pymongo
import pytest
from pymongo.errors import PyMongoError

from chaos import disks
from chaos.disks import SmallDisk, slow_down
from operations.stack.mongod import Mongod, find_mongod
from operations.stack.ports import PortClaims
from operations.stack.processes import Child
from operations.stack.rabbitmq import Epmd, RabbitMQ, find_rabbitmq
from operations.stack.start import start
from tests.support.eventually import eventually
from tests.support.isolation import isolated

WITHIN_SECONDS = 60.0
DELAY_SECONDS = 0.2
WRITES = 100
Client = pymongo.AsyncMongoClient[dict[str, Any]]


@asynccontextmanager
async def running(program: Any, root: Path) -> AsyncIterator[Child]:
    child = await start(program, root / "logs", root)
    try:
        yield child
    finally:
        child.kill()
        await child.wait()


@asynccontextmanager
async def mounted(directory: Path) -> AsyncIterator[SmallDisk]:
    disk = SmallDisk(directory)
    disk.mount()
    try:
        yield disk
    finally:
        disk.unmount()
    disk.unmount()
    assert not directory.is_mount()


@isolated
async def test_a_full_disk_takes_nothing_more_and_keeps_what_it_has(tmp_path: Path) -> None:
    async with mounted(tmp_path / "disk") as disk:
        kept, refused = disk.directory / "kept", disk.directory / "refused"
        kept.write_bytes(b"x" * 100_000)
        disk.fill(left=8192)
        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
            refused.write_bytes(b"x" * 100_000)
        disk.empty()
        disk.empty()
        refused.write_bytes(b"x" * 100_000)
        assert kept.read_bytes() == b"x" * 100_000


@pytest.mark.extended
@isolated
async def test_mongod_ends_on_a_full_disk_and_has_all_that_it_acknowledged_afterwards(tmp_path: Path) -> None:
    with PortClaims() as claims:
        program = Mongod(find_mongod(), tmp_path / "mongodb", claims.claim_free())
        async with mounted(tmp_path / "mongodb") as disk, Client(program.url, timeoutMS=5000) as client:
            async with running(program, tmp_path) as child:
                await client.test.things.insert_many([{"text": "x" * 10_000} for _ in range(WRITES)])
                disk.fill()
                with pytest.raises(PyMongoError):
                    await client.admin.command("fsync")
                assert await child.wait() != 0
            disk.empty()
            async with running(program, tmp_path):
                assert await client.test.things.count_documents({}) == WRITES


@pytest.mark.extended
@isolated
async def test_rabbitmq_blocks_publishers_on_a_disk_that_is_nearly_full(tmp_path: Path) -> None:
    installation = find_rabbitmq()
    with PortClaims() as claims:
        ports = {name: claims.claim_free() for name in ("amqp", "distribution", "epmd")}
        node = RabbitMQ(installation, tmp_path / "rabbitmq", f"t{ports['amqp']}", ports)
        async with (
            mounted(tmp_path / "rabbitmq") as disk,
            running(Epmd(installation, ports["epmd"]), tmp_path),
            running(node, tmp_path),
        ):

            async def alarms() -> str:
                return await asyncio.to_thread(node.control, "eval", "rabbit_alarm:get_alarms().")

            assert (await alarms()).strip() == "[]"
            disk.fill(left=disks.BELOW_ALARM)

            async def raised() -> bool:
                return "disk" in await alarms()

            await eventually(raised, WITHIN_SECONDS, "the alarm")
            async with await aio_pika.connect(node.url) as connection:
                channel = await connection.channel()
                queue = await channel.declare_queue("q", durable=True, arguments={"x-queue-type": "quorum"})
                publishing = asyncio.create_task(
                    channel.default_exchange.publish(aio_pika.Message(b"x"), routing_key="q")
                )
                assert not (await asyncio.wait([publishing], timeout=1))[0]
                disk.empty()
                await publishing
                assert (await queue.get(timeout=WITHIN_SECONDS)).body == b"x"


async def seconds_of_a_write(client: Client) -> float:
    """Return how long the quickest of some writes to the journal takes."""

    async def write() -> float:
        began = time.perf_counter()
        await client.test.things.insert_one({})
        return time.perf_counter() - began

    return min([await write() for _ in range(5)])


@pytest.mark.skipif(disks.slowing_missing() is not None, reason=str(disks.slowing_missing()))
async def test_a_slow_disk_lets_each_write_of_mongod_wait_until_the_fault_ends(tmp_path: Path) -> None:
    with PortClaims() as claims:
        program = Mongod(find_mongod(), tmp_path / "mongodb", claims.claim_free())
        async with running(program, tmp_path) as child, Client(program.url) as client:
            log = tmp_path / "logs" / "strace.log"
            for end in (Child.kill, lambda slowing: slowing.end(5)):
                slowing = await slow_down(child.pid, DELAY_SECONDS, log, tmp_path)
                assert await seconds_of_a_write(client) >= DELAY_SECONDS
                if (ending := end(slowing)) is not None:
                    await ending
                await slowing.wait()

                async def fast() -> bool:
                    return await seconds_of_a_write(client) < DELAY_SECONDS

                await eventually(fast, WITHIN_SECONDS, "writes to be fast again")
        with pytest.raises(LookupError):
            await slow_down(child.pid, DELAY_SECONDS, log, tmp_path)
