"""What shows that a migration is under way: a lock while one runs, and a marker until it is finished.

The lock is an exclusive queue, which the broker deletes with the connection that declared it. The marker is an
exchange, which outlives an interrupted run and says when the first one began.
"""

import asyncio
import time
from datetime import datetime

from aio_pika.abc import AbstractConnection
from aiormq.exceptions import ChannelLockedResource

from operations.errors import CommandError
from operations.migration.differences import read
from shared import topology
from shared.bus.declaring import Declarer
from shared.clock import to_rfc3339, utc_now
from shared.topology import Exchange

LOCK = f"{topology.MIGRATION.name}.lock"

LOCK_SECONDS = 5.0
"""For how long the lock of a run that was killed just now may still be there."""

_POLL_SECONDS = 0.2

_BEGAN = "alternate-exchange"
"""The only argument of an exchange that the broker compares, so its refusal tells the value. No exchange has the name
that stands there, and nothing is published to the marker."""

_BEGAN_PREFIX = f"{topology.MIGRATION.name}.began."


class MigrationRunsError(CommandError):
    """Another migration runs on this broker."""


async def hold_lock(connection: AbstractConnection) -> None:
    """Hold the lock until the connection ends. Raises MigrationRunsError if another one holds it."""
    give_up_at = time.monotonic() + LOCK_SECONDS
    while True:
        channel = await connection.channel()
        try:
            await channel.declare_queue(LOCK, exclusive=True, arguments={"x-queue-type": "classic"})
        except ChannelLockedResource:
            if time.monotonic() > give_up_at:
                raise MigrationRunsError("another migration runs: wait until it has ended") from None
            await asyncio.sleep(_POLL_SECONDS)
        else:
            await channel.close()
            return


async def mark_begun(declarer: Declarer) -> datetime:
    """Declare the marker, unless an interrupted run has left one; return when the first run began."""
    if await declarer.exchange_exists(topology.MIGRATION):
        return await _when_begun(declarer)
    now = utc_now()
    marker = Exchange(topology.MIGRATION.name, topology.MIGRATION.kind, {_BEGAN: f"{_BEGAN_PREFIX}{to_rfc3339(now)}"})
    await declarer.declare_exchange(marker)
    return now


async def _when_begun(declarer: Declarer) -> datetime:
    found = read(await declarer.difference(topology.MIGRATION) or "")
    value = str(found.theirs) if found else ""
    if not value.startswith(_BEGAN_PREFIX):  # somebody else has declared it
        return utc_now()
    return datetime.fromisoformat(value.removeprefix(_BEGAN_PREFIX))
