"""A process whose clock jumps: its time of day moves, its durations do not, and its libraries work."""

import asyncio
import json
import os
import sys
import time
from pathlib import Path

import pytest

from chaos import clocks
from chaos.clocks import FakedClock
from shared.clock import utc_now
from tests.support.eventually import eventually

WITHIN_SECONDS = 60.0
JUMP_SECONDS = 500.0
"""Much more than two processes differ that ask for the time after each other on a busy machine."""

pytestmark = pytest.mark.skipif(clocks.missing() is not None, reason=str(clocks.missing()))

PROGRAM = """
import asyncio, json, sys, time
import pymongo, uvloop
from shared.clock import utc_now

async def run(url, database):
    async with pymongo.AsyncMongoClient(url) as client:
        while line := await asyncio.to_thread(sys.stdin.readline):
            await asyncio.wait_for(asyncio.sleep(0.01), 60)
            await client[database].times.insert_one({"at": utc_now()})
            count = await client[database].times.count_documents({})
            print(json.dumps([utc_now().timestamp(), time.monotonic(), count]), flush=True)

uvloop.run(run(*sys.argv[1:]))
"""


async def test_the_clock_of_a_process_jumps_and_nothing_else_of_it(
    tmp_path: Path, mongodb_url: str, database_prefix: str
) -> None:
    clock = FakedClock(tmp_path / "clock")
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", PROGRAM, mongodb_url, f"{database_prefix}_clocks"),
        env={**os.environ, **clock.environment(), "PYTHONPATH": os.pathsep.join(sys.path)},
        stdin=pipe,
        stdout=pipe,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    asked = 0
    try:
        for ahead in (0.0, JUMP_SECONDS, -JUMP_SECONDS, 0.0):
            clock.set_ahead(ahead)

            async def jumped(ahead: float = ahead) -> bool:
                nonlocal asked
                asked += 1
                assert process.stdin is not None
                assert process.stdout is not None
                process.stdin.write(b"\n")
                now, monotonic, count = json.loads(await process.stdout.readline())
                assert abs(monotonic - time.monotonic()) < JUMP_SECONDS / 2
                assert count == asked
                return float(abs(now - utc_now().timestamp() - ahead)) < JUMP_SECONDS / 2

            await eventually(jumped, WITHIN_SECONDS, f"the clock to be ahead by {ahead:g} s")
    finally:
        process.kill()
        await process.communicate()
        for left in Path("/dev/shm").glob(f"*faketime_*_{process.pid}"):
            left.unlink()
