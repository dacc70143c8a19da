"""Waits until all orders of a run are settled, and reads from the order service what became of them."""

import asyncio
import time
from array import array
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import aiohttp
import orjson

from operations.errors import UnreachableError
from shared.urls import hide_credentials

PAGE = 100
FIRST_PAUSE_SECONDS = 0.05
LONGEST_PAUSE_SECONDS = 1.0
AWAY_SECONDS = 30.0
QUESTION_SHARE = 0.05
"""Of the time that may go into asking: the question is the order service's work too."""


NO_SLOT = "No delivery slot with room"
"""How the reason begins for which an order is refused when all slots within the horizon are full."""


@dataclass(slots=True)
class Outcomes:
    """What became of the orders of a run, by the order service's own times (seconds).

    `slots` has the orders of each delivery slot that go through, `full` are refused because no slot has room.
    """

    statuses: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    slots: Counter[str] = field(default_factory=Counter)
    full: int = 0
    unsettled: int = 0
    to_final: "array[float]" = field(default_factory=lambda: array("d"))
    to_settled: "array[float]" = field(default_factory=lambda: array("d"))
    first: datetime | None = None
    last: datetime | None = None

    @property
    def orders(self) -> int:
        """How many orders there are."""
        return self.statuses.total()

    @property
    def seconds(self) -> float:
        """From the first order's acceptance to the last one's settling."""
        return (self.last - self.first).total_seconds() if self.first and self.last else 0.0

    def add(self, order: dict[str, Any]) -> None:
        """Count one order as the API shows it."""
        created, updated = datetime.fromisoformat(order["createdAt"]), datetime.fromisoformat(order["updatedAt"])
        self.first = min(self.first or created, created)
        self.statuses[order["status"]] += 1
        if reason := order["failureReason"]:
            self.reasons[reason] += 1
            self.full += reason.startswith(NO_SLOT)
        elif order["slot"]:
            self.slots[order["slot"]] += 1
        if ended := order["completedAt"] or order["cancelledAt"]:
            self.to_final.append((datetime.fromisoformat(ended) - created).total_seconds())
        if order["settled"]:
            self.to_settled.append((updated - created).total_seconds())
            self.last = max(self.last or updated, updated)
        else:
            self.unsettled += 1


class OrderBook:
    """The orders of one user, as the order service lists them; methods raise UnreachableError."""

    def __init__(self, session: aiohttp.ClientSession, order_url: str, user_id: str) -> None:
        self._session = session
        self._url = f"{order_url}/orders"
        self._user_id = user_id

    async def wait_until_settled(self, within: float) -> bool:
        """Whether all of them settle within that many seconds."""
        deadline = time.monotonic() + within
        pause = FIRST_PAUSE_SECONDS
        while True:
            asked = time.monotonic()
            open_orders = await self._list(limit="1", settled="false")
            now = time.monotonic()
            if not open_orders["items"]:
                return True
            if now > deadline:
                return False
            await asyncio.sleep(max(pause, (now - asked) / QUESTION_SHARE))
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)

    async def outcomes(self) -> Outcomes:
        """What became of them."""
        outcomes = Outcomes()
        after: dict[str, str] = {}
        while True:
            page = await self._list(limit=str(PAGE), **after)
            for order in page["items"]:
                outcomes.add(order)
            if page["nextCursor"] is None:
                return outcomes
            after = {"cursor": page["nextCursor"]}

    async def _list(self, **query: str) -> Any:
        """One page; a service that is away for a moment, as when it is killed during the test, is waited for."""
        give_up_at = time.monotonic() + AWAY_SECONDS
        while True:
            try:
                async with self._session.get(self._url, params={"userId": self._user_id, **query}) as answer:
                    answer.raise_for_status()
                    return orjson.loads(await answer.read())
            except (aiohttp.ClientError, TimeoutError) as error:
                if time.monotonic() > give_up_at:
                    why = f"{hide_credentials(self._url)}: {hide_credentials(str(error))}"
                    raise UnreachableError(f"the order service does not answer on {why}") from error
            await asyncio.sleep(LONGEST_PAUSE_SECONDS)
