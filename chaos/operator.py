"""What an operator does, as the documentation says and no other way."""

import asyncio
import time
from datetime import UTC, datetime, timedelta

from operations.dead_letters.connection import await_outcome, connect, follow
from operations.dead_letters.filters import Filters
from operations.errors import UnreachableError
from operations.recovery import recover as run_recovery
from operations.settings import Stack
from shared.errors import StartError

BY = "chaos"
RECOVERS_WITHIN = 120.0
AGAIN_AFTER = 0.5
EARLIER = timedelta(minutes=1)
"""How long before a loss `--since` begins: with the events that the notification service had not taken until then."""
OUTCOME_WITHIN = 180.0
"""Seconds after which a replayed letter whose message failed again, and again, has an outcome."""


async def recover(stack: Stack, lost_at: float) -> None:
    """Recover what the broker lost at a time, in Unix seconds: see docs/recovery.md. Again while a server is away.

    Raises UnreachableError if a server stays away, or StartError.
    """
    since = datetime.fromtimestamp(lost_at, UTC) - EARLIER
    deadline = time.monotonic() + RECOVERS_WITHIN
    while True:
        try:
            await run_recovery(stack, by=BY, why="a queue was lost", since=since)
        except (UnreachableError, StartError):
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(AGAIN_AFTER)
        else:
            return


async def replay_letters(stack: Stack) -> int:
    """Replay the open dead letters, and wait for their outcome: see docs/dead-letters.md; return how many were sent.

    Raises UnreachableError.
    """
    async with connect(stack) as connection:
        if not await connection.service.count_replayable(Filters()):
            return 0
        replay_id = await connection.service.start_replay(Filters(), by=BY, why="the fault is over")
        replay = await follow(connection, replay_id, lambda _: None)
        await await_outcome(connection, replay_id, OUTCOME_WITHIN, lambda _: None)
        return int(replay["published"])


async def open_letters(stack: Stack) -> int:
    """Return the number of dead letters that nobody has dealt with. Raises UnreachableError."""
    async with connect(stack) as connection:
        counts = await connection.service.counts()
        return counts["dead"] + counts["replaying"] + counts["pending"]
