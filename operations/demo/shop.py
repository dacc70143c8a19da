"""What the customers and the owner of a shop do, over HTTP."""

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp

from operations.settings import Stack, UnreachableError

POLL_SECONDS = 0.05
PRICE = 10


class NotSettledError(Exception):
    """Orders did not come to their end in time."""


@dataclass(frozen=True)
class Orders:
    """Settled orders, as the order service shows them."""

    documents: Sequence[dict[str, Any]]

    def count(self, status: str) -> int:
        """How many ended so."""
        return sum(order["status"] == status for order in self.documents)

    @property
    def reasons(self) -> Counter[str]:
        """Why orders failed or were cancelled."""
        return Counter(order["failureReason"] for order in self.documents if order["failureReason"])

    @property
    def summary(self) -> str:
        """How many ended how, in words."""
        counts = Counter(order["status"] for order in self.documents)
        return ", ".join(f"{count} {status}" for status, count in sorted(counts.items())) or "no orders"

    def only(self, status: str) -> "Orders":
        """Those that ended so."""
        return Orders([order for order in self.documents if order["status"] == status])


class Shop:
    """One stack, used over HTTP; methods raise UnreachableError when a service does not answer as it should."""

    def __init__(self, session: aiohttp.ClientSession, stack: Stack) -> None:
        self._session = session
        self.stack = stack

    async def put_on_shelf(self, product: str, units: int) -> None:
        """Set what is free to sell of a product."""
        await self._call("PUT", "inventory", f"/inventory/{product}", {"quantity": units})

    async def shelf(self, product: str) -> tuple[int, int]:
        """Units of a product that are free, and that are reserved."""
        found = await self._call("GET", "inventory", f"/inventory/{product}")
        return found["quantity"], found["reserved"]

    async def order(self, customer: str, product: str, token: str = "tok_ok") -> str:  # noqa: S107 - a demo card
        """Order one unit; returns the order's id."""
        body = {
            "userId": customer,
            "items": [{"productId": product, "quantity": 1, "price": PRICE}],
            "totalAmount": PRICE,
            "payment": {"token": token},
        }
        placed = await self._call("POST", "order", "/orders", body)
        return str(placed["orderId"])

    async def order_at_once(self, number: int, customer: str, product: str) -> list[str]:
        """Order that many times one unit, all at the same moment."""
        return await asyncio.gather(*(self.order(customer, product) for _ in range(number)))

    async def orders_of(self, customer: str) -> Orders:
        """The last orders of a customer, five hundred at most."""
        page = await self._call("GET", "order", f"/orders?userId={customer}&limit=500")
        return Orders(page["items"])

    async def settled_orders_of(self, customer: str, number: int, within: float = 30) -> Orders:
        """A customer's orders once there are that many and all are settled.

        Raises NotSettledError when that takes longer than so many seconds.
        """
        deadline = time.monotonic() + within
        while True:
            found = await self.orders_of(customer)
            settled = sum(order["settled"] for order in found.documents)
            if settled == len(found.documents) == number:
                return found
            if time.monotonic() > deadline:
                raise NotSettledError(f"after {within:.0f} s {settled} of {number} orders are settled")
            await asyncio.sleep(POLL_SECONDS)

    async def _call(self, method: str, service: str, path: str, body: object = None) -> Any:
        url = f"{self.stack.urls[service]}{path}"
        try:
            async with self._session.request(method, url, json=body) as answer:
                if not answer.ok:
                    raise UnreachableError(f"{method} {url}: {answer.status} {(await answer.text())[:200]}")
                return await answer.json()
        except (aiohttp.ClientError, TimeoutError) as error:
            raise UnreachableError(f"{method} {url}: {error!r}") from error
