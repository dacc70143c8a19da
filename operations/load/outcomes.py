"""Waits until all orders of a run are settled and evaluates their outcomes."""

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
UNAVAILABLE_SECONDS = 30.0
POLLING_SHARE = 0.05
"""The share of time that may go into polling, which costs the order service CPU time as well."""


NO_SLOT = "No delivery slot with room"
"""The beginning of the failure reason of an order that found all slots within the horizon full."""


@dataclass(slots=True)
class Outcomes:
    """The outcomes of the orders of a run, measured by the order service's timestamps (seconds).

    `slots` counts the successful orders in each delivery slot, `full` the orders refused because no slot had room.
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
        """The number of orders."""
        return self.statuses.total()

    @property
    def seconds(self) -> float:
        """The time from the first acceptance until the last order is settled."""
        return (self.last - self.first).total_seconds() if self.first and self.last else 0.0

    def add(self, order: dict[str, Any]) -> None:
        """Count one order, as the API returns it."""
        created, updated = datetime.fromisoformat(order["createdAt"]), datetime.fromisoformat(order["updatedAt"])
        self.first = min(self.first or created, created)
        self.statuses[order["status"]] += 1
        if reason := order["failureReason"]:
            self.reasons[reason] += 1
            self.full += reason.startswith(NO_SLOT)
        elif order["slot"]:
            self.slots[order["slot"]] += 1
        # Goods are final for the saga when they are confirmed; they may have been delivered meanwhile.
        of_goods = order["status"] in ("CONFIRMED", "COMPLETED") and order["server"] is None
        if ended := (of_goods and order["confirmedAt"]) or order["completedAt"] or order["cancelledAt"]:
            self.to_final.append((datetime.fromisoformat(ended) - created).total_seconds())
        if order["settled"]:
            self.to_settled.append((updated - created).total_seconds())
            self.last = max(self.last or updated, updated)
        else:
            self.unsettled += 1


class PlacedOrders:
    """The orders of one user in the order service; methods raise UnreachableError."""

    def __init__(self, session: aiohttp.ClientSession, order_url: str, user_id: str) -> None:
        self._session = session
        self._url = f"{order_url}/orders"
        self._user_id = user_id

    async def wait_until_settled(self, within: float) -> bool:
        """Wait until all orders are settled; return False if that takes longer than `within` seconds."""
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
            await asyncio.sleep(max(pause, (now - asked) / POLLING_SHARE))
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)

    async def outcomes(self) -> Outcomes:
        """Read all orders and count their outcomes."""
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
        """Read one page; while the service is unavailable, as after a kill during the test, retry for a while."""
        give_up_at = time.monotonic() + UNAVAILABLE_SECONDS
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
