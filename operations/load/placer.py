"""Places the orders of a plan and records answers and latencies."""

import asyncio
import itertools
import time
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from operations.load.connection import Answer, Connection, NoAnswerError, NotSentError
from operations.load.plan import LoadPlan

ACCEPTED = 202
RETRYABLE = (429, 503)

ANSWER_SECONDS = 30.0
"""Timeout of a request."""

_NOT_CONNECTED = Answer(0)

FIRST_PAUSE_SECONDS = 0.05
LONGEST_PAUSE_SECONDS = 1.0


class OrderPlacer:
    """Places the orders of one load test.

    `done` counts all orders that have been dealt with, `accepted` those answered with 202, `in_doubt` those without an
    answer, which may have been accepted or not, `refused` those that were given up after answers of 429 or 503.
    `errors` counts everything else by kind, including errors that a retry fixed. `latencies` (seconds) are those of
    accepted orders. With a rate they start at the scheduled time of the order, so the wait for a free connection
    counts.
    """

    def __init__(
        self, plan: LoadPlan, order_url: str, bodies: Sequence[bytes], headers: Mapping[str, str] | None = None
    ) -> None:
        self._plan = plan
        self._url = order_url
        self._bodies = bodies
        self._headers = headers or {}
        self.done = 0
        self.accepted = 0
        self.in_doubt = 0
        self.refused = 0
        self.errors: Counter[str] = Counter()
        self.latencies = array("d")

    async def run(self) -> None:
        """Place all orders; return when each was answered or given up."""
        numbers = iter(range(self._plan.orders))
        started = time.monotonic()
        async with asyncio.TaskGroup() as clients:
            for _ in range(min(self._plan.concurrency, self._plan.orders)):
                clients.create_task(self._client(numbers, started))

    async def _client(self, numbers: Iterator[int], started: float) -> None:
        """Place one order after the other; all clients take their numbers from the same iterator."""
        connection = Connection(self._url, "/orders", self._headers)
        try:
            for number in numbers:
                scheduled_at = time.monotonic()
                if self._plan.rate is not None:
                    scheduled_at = started + number / self._plan.rate
                    await asyncio.sleep(max(0.0, scheduled_at - time.monotonic()))
                await self._place(connection, self._bodies[number % len(self._bodies)], scheduled_at)
                self.done += 1
        finally:
            connection.close()

    async def _place(self, connection: Connection, body: bytes, scheduled_at: float) -> None:
        give_up_at = time.monotonic() + self._plan.patience
        for attempt in itertools.count():
            refusal = await self._refusal(connection, body, scheduled_at)
            if refusal is None:
                return
            pause = refusal.retry_after or min(FIRST_PAUSE_SECONDS * 2**attempt, LONGEST_PAUSE_SECONDS)
            if time.monotonic() + pause > give_up_at:
                self.errors["given up"] += 1
                self.refused += refusal.status in RETRYABLE
                return
            await asyncio.sleep(pause)

    async def _refusal(self, connection: Connection, body: bytes, scheduled_at: float) -> Answer | None:
        """Post an order once and count the result; return the answer if the order was refused for the moment only."""
        try:
            answer = await connection.post(body, ANSWER_SECONDS)
        except NoAnswerError:
            self.errors["no answer"] += 1
            self.in_doubt += 1
            return None
        except NotSentError:
            self.errors["not connected"] += 1
            return _NOT_CONNECTED
        if answer.status == ACCEPTED:
            self.accepted += 1
            self.latencies.append(time.monotonic() - scheduled_at)
            return None
        self.errors[f"HTTP {answer.status}"] += 1
        return answer if answer.status in RETRYABLE else None
