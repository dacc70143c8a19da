"""What the customers and the owner of a shop do, and the provider of its servers, over HTTP."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import aiohttp

from operations.errors import UnreachableError
from operations.settings import Stack
from operations.stack.services import SIMULATOR

POLL_SECONDS = 0.05
PRICE = 10


FINAL = ("CONFIRMED", "COMPLETED", "CANCELLED", "FAILED")


class NotSettledError(Exception):
    """Orders did not come to their end in time."""


@dataclass(frozen=True)
class Orders:
    """Orders, as the order service shows them."""

    documents: Sequence[dict[str, Any]]

    def count(self, status: str) -> int:
        """How many ended so."""
        return sum(order["status"] == status for order in self.documents)

    @property
    def slots(self) -> Counter[str]:
        """The delivery slots that they have, each with how many of them have it."""
        return Counter(order["slot"] for order in self.documents if order["slot"])

    @property
    def addresses(self) -> list[str]:
        """Of the servers that were sold to them, in numerical order where they differ in the last octet."""
        found = [order["server"]["ip"] for order in self.documents if order["server"]]
        return sorted(found, key=lambda ip: int(ip.rpartition(".")[2]))

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


class ShopClient:
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

    async def order(
        self,
        customer: str,
        product: str,
        token: str = "tok_ok",  # noqa: S107 - a demo card
        slot: str | None = None,
    ) -> str:
        """Order one unit, in that delivery slot if one is named; returns the order's id."""
        body: dict[str, Any] = {
            "userId": customer,
            "items": [{"productId": product, "quantity": 1, "price": PRICE}],
            "totalAmount": PRICE,
            "payment": {"token": token},
        }
        if slot is not None:
            body["delivery"] = {"slot": slot}
        placed = await self._call("POST", "order", "/orders", body)
        return str(placed["orderId"])

    async def order_at_once(self, number: int, customer: str, product: str, slot: str | None = None) -> list[str]:
        """Order that many times one unit, all at the same moment."""
        return await asyncio.gather(*(self.order(customer, product, slot=slot) for _ in range(number)))

    async def orders_of(self, customer: str) -> Orders:
        """The last orders of a customer, a hundred at most."""
        page = await self._call("GET", "order", f"/orders?userId={customer}&limit=100")
        return Orders(page["items"])

    async def settled_orders_of(self, customer: str, number: int, within: float = 30) -> Orders:
        """A customer's orders once there are that many and all are settled.

        Raises NotSettledError when that takes longer than so many seconds.
        """
        return await self._orders_once(customer, number, within, "settled", lambda order: order["settled"])

    async def decided_orders_of(self, customer: str, number: int, within: float = 30) -> Orders:
        """A customer's orders once there are that many and each has its final status; a FAILED one's money may be held.

        Raises NotSettledError when that takes longer than so many seconds.
        """
        return await self._orders_once(customer, number, within, "decided", lambda order: order["status"] in FINAL)

    async def _orders_once(
        self, customer: str, number: int, within: float, word: str, is_done: Callable[[dict[str, Any]], bool]
    ) -> Orders:
        deadline = time.monotonic() + within
        while True:
            found = await self.orders_of(customer)
            done = sum(is_done(order) for order in found.documents)
            if done == len(found.documents) == number:
                return found
            if time.monotonic() > deadline:
                raise NotSettledError(f"after {within:.0f} s {done} of {number} orders are {word}: {found.summary}")
            await asyncio.sleep(POLL_SECONDS)

    # --- Delivery slots: when there are any, and how much each takes. ---

    async def deliver(self, opening: datetime, closing: datetime, slots: int, capacity: int) -> None:
        """Have so many slots between these times of the day, each for orders of so much money."""
        rules = {
            "openTime": f"{opening:%H:%M}",
            "closeTime": f"{closing:%H:%M}",
            "durationMinutes": (closing - opening) // slots // timedelta(minutes=1),
            "horizonSlots": slots,
            "capacity": capacity,
        }
        await self._call("PUT", "inventory", "/slots/config", rules)

    async def slots(self) -> list[dict[str, Any]]:
        """The slots on offer, by their start."""
        page = await self._call("GET", "inventory", "/slots")
        return list(page["items"])

    async def set_capacity(self, slot_id: str, capacity: int) -> None:
        """Have one slot take more or less than the others."""
        await self._call("PUT", "inventory", f"/slots/{slot_id}", {"capacity": capacity})

    # --- Servers: what the owner sells of them, decides about failed orders, and what the provider has. ---

    async def sell_servers(self, product: str, package: str) -> None:
        """Have a product be a server with an address of a package of the provider."""
        await self._call("PUT", "inventory", f"/products/{product}", {"kind": "vps", "package": package, "ram": 4096})

    async def retry(self, order: dict[str, Any]) -> None:
        """Have another server sought for an order that has failed."""
        await self._call("POST", "order", f"/orders/{order['orderId']}/retry")

    async def refund(self, order: dict[str, Any]) -> None:
        """Give up an order that has failed: its money goes back."""
        await self._call("POST", "order", f"/orders/{order['orderId']}/refund")

    async def purchases_for(self, order_id: str) -> list[str]:
        """What the job of an order says of its attempts to buy a server."""
        job = await self._call("GET", "provisioning", f"/jobs/{order_id}")
        return [attempt["detail"] for attempt in job["attempts"] if attempt["step"] == "buy"]

    async def provider_has(self, free: Mapping[str, Sequence[str]]) -> None:
        """Set what the provider has to sell, and nothing else: for each package the addresses that are free."""
        packages = [
            {"id": str(number), "name": package, "ips": list(addresses), "status": "active"}
            for number, (package, addresses) in enumerate(free.items(), start=1)
        ]
        await self._call("POST", SIMULATOR, "/_control/packages", {"packages": packages})

    async def provider_loses_its_next_answer(self) -> None:
        """Have the provider sell the next server without saying so: the connection breaks."""
        await self._call("POST", SIMULATOR, "/_control/faults", {"buy": {"loseAnswerNext": 1}})

    async def provider_sold(self) -> list[str]:
        """The addresses of the servers that the provider has sold, in the order of their sale."""
        return [purchase["ip"] for purchase in await self._call("GET", SIMULATOR, "/_control/purchases")]

    async def _call(self, method: str, service: str, path: str, body: object = None) -> Any:
        url = f"{self.stack.urls[service]}{path}"
        try:
            async with self._session.request(method, url, json=body) as answer:
                if not answer.ok:
                    raise UnreachableError(f"{method} {url}: {answer.status} {(await answer.text())[:200]}")
                return await answer.json()
        except (aiohttp.ClientError, TimeoutError) as error:
            raise UnreachableError(f"{method} {url}: {error!r}") from error
