"""Places the orders of a plan, and notes what was answered and when."""

import asyncio
import itertools
import time
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence

from operations.load.connection import Connection, NoAnswerError, NotSentError
from operations.load.plan import Plan

ACCEPTED = 202
COME_BACK_LATER = (429, 503)

ANSWER_SECONDS = 30.0
"""An order that is not answered for so long has failed; one that is refused for so long is given up."""

FIRST_PAUSE_SECONDS = 0.05
LONGEST_PAUSE_SECONDS = 1.0


class Placing:
    """One run of placing.

    `done` counts orders that were dealt with in whatever way, `accepted` those answered with 202, `in_doubt` those
    without an answer, of which nobody knows here whether they were accepted, `errors` everything else by kind, also
    what a repetition mended. `latencies` (seconds) are those of the accepted orders: from the moment that the plan's
    rate meant for them, so that waiting for a connection counts.
    """

    def __init__(self, plan: Plan, order_url: str, bodies: Sequence[bytes]) -> None:
        self._plan = plan
        self._url = order_url
        self._bodies = bodies
        self.done = 0
        self.accepted = 0
        self.in_doubt = 0
        self.errors: Counter[str] = Counter()
        self.latencies = array("d")

    async def run(self) -> None:
        """Place all orders; returns when every one was answered or given up."""
        numbers = iter(range(self._plan.orders))
        started = time.monotonic()
        async with asyncio.TaskGroup() as clients:
            for _ in range(min(self._plan.concurrency, self._plan.orders)):
                clients.create_task(self._client(numbers, started))

    async def _client(self, numbers: Iterator[int], started: float) -> None:
        """Place one order after the other; all clients take their numbers from the same iterator."""
        connection = Connection(self._url, "/orders")
        try:
            for number in numbers:
                meant = time.monotonic()
                if self._plan.rate is not None:
                    meant = started + number / self._plan.rate
                    await asyncio.sleep(max(0.0, meant - time.monotonic()))
                await self._place(connection, self._bodies[number % len(self._bodies)], meant)
                self.done += 1
        finally:
            connection.close()

    async def _place(self, connection: Connection, body: bytes, meant: float) -> None:
        give_up_at = time.monotonic() + ANSWER_SECONDS
        for attempt in itertools.count():
            try:
                status = await connection.post(body, ANSWER_SECONDS)
            except NoAnswerError:
                self.errors["no answer"] += 1
                self.in_doubt += 1
                return
            except NotSentError:
                self.errors["not connected"] += 1
            else:
                if status == ACCEPTED:
                    self.accepted += 1
                    self.latencies.append(time.monotonic() - meant)
                    return
                self.errors[f"HTTP {status}"] += 1
                if status not in COME_BACK_LATER:
                    return
            if time.monotonic() > give_up_at:
                self.errors["given up"] += 1
                return
            await asyncio.sleep(min(FIRST_PAUSE_SECONDS * 2**attempt, LONGEST_PAUSE_SECONDS))
