"""An HTTP client that acts for the customers and the owner of a shop, and controls the simulated provider."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import aiohttp

from operations.errors import CommandError, UnreachableError
from operations.settings import Stack
from shared.outage_words import with_detail
from shared.services import SIMULATOR

POLL_SECONDS = 0.05
PRICE = 10


FINAL = ("CONFIRMED", "COMPLETED", "CANCELLED", "FAILED")


class NotSettledError(CommandError):
    """Orders did not reach their final status in time."""


@dataclass(frozen=True)
class Orders:
    """Orders, as the order service returns them."""

    documents: Sequence[dict[str, Any]]

    def count(self, status: str) -> int:
        """Count the orders with this status."""
        return sum(order["status"] == status for order in self.documents)

    @property
    def slots(self) -> Counter[str]:
        """The number of orders in each delivery slot."""
        return Counter(order["slot"] for order in self.documents if order["slot"])

    @property
    def addresses(self) -> list[str]:
        """The addresses of the servers that these orders bought, sorted by their last octet."""
        found = [order["server"]["ip"] for order in self.documents if order["server"]]
        return sorted(found, key=lambda ip: int(ip.rpartition(".")[2]))

    @property
    def reasons(self) -> Counter[str]:
        """The reasons for which orders failed or were cancelled."""
        return Counter(order["failureReason"] for order in self.documents if order["failureReason"])

    @property
    def payment_statuses(self) -> Counter[str]:
        """The number of orders with each payment status."""
        return Counter(order["paymentStatus"] for order in self.documents)

    @property
    def summary(self) -> str:
        """The number of orders with each status, as text."""
        counts = Counter(order["status"] for order in self.documents)
        return ", ".join(f"{count} {status}" for status, count in sorted(counts.items())) or "no orders"

    def only(self, status: str) -> "Orders":
        """Return the orders with this status."""
        return Orders([order for order in self.documents if order["status"] == status])


class ShopClient:
    """A stack, used over HTTP; methods raise UnreachableError when a service fails to answer as expected."""

    def __init__(self, session: aiohttp.ClientSession, stack: Stack) -> None:
        self._session = session
        self.stack = stack

    async def set_stock(self, product: str, units: int) -> None:
        """Set the available units of a product."""
        await self._call("PUT", "inventory", f"/inventory/{product}", {"quantity": units})

    async def stock_of(self, product: str) -> tuple[int, int]:
        """Return the available and the reserved units of a product."""
        found = await self._call("GET", "inventory", f"/inventory/{product}")
        return found["quantity"], found["reserved"]

    async def order(
        self,
        customer: str,
        product: str,
        token: str = "tok_ok",  # noqa: S107 - a demo card
        slot: str | None = None,
        units: int = 1,
        hold: str | None = None,
    ) -> str:
        """Order units, in the delivery slot if one is given, and from the hold if one is; return the order's id."""
        body: dict[str, Any] = {
            "userId": customer,
            "items": [{"productId": product, "quantity": units, "price": PRICE}],
            "totalAmount": units * PRICE,
            "payment": {"token": token},
        }
        if hold is not None:
            body["holdId"] = hold
        if slot is not None:
            body["delivery"] = {"slot": slot}
        placed = await self._call("POST", "order", "/orders", body)
        return str(placed["orderId"])

    async def order_at_once(self, number: int, customer: str, product: str, slot: str | None = None) -> list[str]:
        """Place that many orders of one unit concurrently."""
        return await asyncio.gather(*(self.order(customer, product, slot=slot) for _ in range(number)))

    async def hold(self, customer: str, product: str, units: int) -> str:
        """Hold units for a customer for ten minutes; return the hold's id."""
        items = [{"productId": product, "quantity": units}]
        held = await self._call("POST", "inventory", "/holds", {"userId": customer, "items": items, "ttlSeconds": 600})
        return str(held["holdId"])

    async def deliver(self, order_id: str) -> None:
        """Say that the goods of an order have left."""
        await self._call("POST", "order", f"/orders/{order_id}/deliver")

    async def refund_part(self, order_id: str, product: str, units: int) -> None:
        """Refund units of an order, and put them back into free stock."""
        items = [{"productId": product, "quantity": units}]
        await self._call("POST", "order", f"/orders/{order_id}/refunds", {"items": items, "restock": True})

    async def order_by_id(self, order_id: str) -> dict[str, Any]:
        """Return an order."""
        found: dict[str, Any] = await self._call("GET", "order", f"/orders/{order_id}")
        return found

    async def orders_of(self, customer: str) -> Orders:
        """Return the last orders of a customer, at most a hundred."""
        page = await self._call("GET", "order", f"/orders?userId={customer}&limit=100")
        return Orders(page["items"])

    async def settled_orders_of(self, customer: str, number: int, within: float = 60) -> Orders:
        """Return a customer's orders once that many exist and all are settled.

        Raises NotSettledError after `within` seconds.
        """
        return await self._orders_once(customer, number, within, "settled", lambda order: order["settled"])

    async def decided_orders_of(self, customer: str, number: int, within: float = 60) -> Orders:
        """Return a customer's orders once that many exist and each has a final status; FAILED ones may hold money.

        Raises NotSettledError after `within` seconds.
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

    # --- Delivery slots ---

    async def configure_slots(self, opening: datetime, closing: datetime, slots: int, capacity: int) -> None:
        """Offer that many slots between these times of the day, each for orders up to a total of `capacity`."""
        rules = {
            "openTime": f"{opening:%H:%M}",
            "closeTime": f"{closing:%H:%M}",
            "durationMinutes": (closing - opening) // slots // timedelta(minutes=1),
            "horizonSlots": slots,
            "capacity": capacity,
        }
        await self._call("PUT", "inventory", "/slots/config", rules)

    async def slots(self) -> list[dict[str, Any]]:
        """Return the slots on offer, sorted by their start."""
        page = await self._call("GET", "inventory", "/slots")
        return list(page["items"])

    async def set_capacity(self, slot_id: str, capacity: int) -> None:
        """Change the capacity of one slot."""
        await self._call("PUT", "inventory", f"/slots/{slot_id}", {"capacity": capacity})

    # --- Servers: products, operators' decisions and the provider ---

    async def sell_as_server(self, product: str, package: str) -> None:
        """Make a product a server with an address from this package of the provider."""
        await self._call("PUT", "inventory", f"/products/{product}", {"kind": "vps", "package": package, "ram": 4096})

    async def retry(self, order: dict[str, Any]) -> None:
        """Retry the purchase of a server for a failed order."""
        await self._call("POST", "order", f"/orders/{order['orderId']}/retry")

    async def refund(self, order: dict[str, Any]) -> None:
        """Refund a failed order."""
        await self._call("POST", "order", f"/orders/{order['orderId']}/refund")

    async def purchases_for(self, order_id: str) -> list[str]:
        """Return the recorded attempts to buy a server for an order."""
        job = await self._call("GET", "provisioning", f"/jobs/{order_id}")
        return [attempt["detail"] for attempt in job["attempts"] if attempt["step"] == "buy"]

    async def set_provider_stock(self, free: Mapping[str, Sequence[str]]) -> None:
        """Replace the provider's offer: the free addresses of each package."""
        packages = [
            {"id": str(number), "name": package, "ips": list(addresses), "status": "active"}
            for number, (package, addresses) in enumerate(free.items(), start=1)
        ]
        await self._call("POST", SIMULATOR.name, "/_control/packages", {"packages": packages})

    async def drop_next_provider_answer(self) -> None:
        """Make the provider sell the next server and close the connection without an answer."""
        await self._call("POST", SIMULATOR.name, "/_control/faults", {"buy": {"loseAnswerNext": 1}})

    async def provider_sales(self) -> list[str]:
        """Return the addresses of the servers that the provider has sold, in order of sale."""
        return [purchase["ip"] for purchase in await self._call("GET", SIMULATOR.name, "/_control/purchases")]

    async def _call(self, method: str, service: str, path: str, body: object = None) -> Any:
        url = f"{self.stack.urls[service]}{path}"
        try:
            async with self._session.request(method, url, json=body) as answer:
                if not answer.ok:
                    raise UnreachableError(f"{method} {url}: {answer.status} {(await answer.text())[:200]}")
                return await answer.json()
        except (aiohttp.ClientError, TimeoutError) as error:
            raise UnreachableError(f"{method} {url}: {with_detail(error)}") from error
