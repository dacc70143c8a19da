"""The orders of `benchmarks.kills`: goods, delivery slots, servers, prepaid balances and cards that are declined."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp

from operations.settings import Stack
from shared.services import SIMULATOR

GOODS, SERVER, CUSTOMER = "goods", "server", "prepaid"
PLENTY = 10_000_000
PRICE = 10
PACKAGES, ADDRESSES = 16, 240
MOST_SERVERS = PACKAGES * ADDRESSES
"""An order for a server after these would fail, and wait for an operator."""
ORDERS_PER_SERVER = 50
RETAINERS = 25
"""Balances to pay from. Payments from one balance are made one after the other."""

Body = dict[str, Any]


def body_of_goods(**more: Any) -> Body:
    """Return the body of an order for a piece."""
    return _body(GOODS, more)


def body_of_server(number: int) -> Body:
    """Return the body of an order for a server; `number` spreads them over the packages."""
    return _body(f"{SERVER}-{number % PACKAGES}", {})


def _body(product: str, more: Body) -> Body:
    item = {"productId": product, "quantity": 1, "price": PRICE}
    return {"userId": CUSTOMER, "items": [item], "totalAmount": PRICE, "payment": {"token": "tok_ok"}, **more}


@dataclass(slots=True)
class Mixture:
    """Bodies of orders of all kinds, by number: of each ten, one has a slot, two a balance, one a declined card."""

    retainer_ids: Sequence[str]

    def body(self, number: int) -> Body:
        """Return the body of an order."""
        servers, rest = divmod(number, ORDERS_PER_SERVER)
        if rest == 0 and servers < MOST_SERVERS // 2:
            return body_of_server(servers)
        prepaid = {"payment": {"method": "retainer", "retainerId": self.retainer_ids[number % RETAINERS]}}
        kinds: dict[int, Body] = {
            1: {"delivery": {"slot": "auto"}},
            2: prepaid,
            3: {"payment": {"token": "tok_declined"}},
            4: prepaid,
        }
        return body_of_goods(**kinds.get(number % 10, {}))


async def open_shop(session: aiohttp.ClientSession, stack: Stack) -> Mixture:
    """Fill the stock, offer slots and servers, and deposit balances. Raises aiohttp.ClientError."""

    async def send(method: str, service: str, path: str, body: Body) -> Any:
        async with session.request(method, f"{stack.urls[service]}{path}", json=body) as answer:
            answer.raise_for_status()
            return await answer.json()

    await send("PUT", "inventory", f"/inventory/{GOODS}", {"quantity": PLENTY})
    await send("PUT", "inventory", "/slots/config", {"capacity": PLENTY})
    names = [f"103.181.{number}" for number in range(PACKAGES)]
    packages = [
        {"id": name, "name": name, "status": "active", "ips": [f"{name}.{last}" for last in range(1, ADDRESSES + 1)]}
        for name in names
    ]
    await send("POST", SIMULATOR.name, "/_control/packages", {"packages": packages})
    for number, name in enumerate(names):
        sold = {"kind": "vps", "package": name, "ram": 4096}
        await send("PUT", "inventory", f"/products/{SERVER}-{number}", sold)
    deposit = {"clientId": CUSTOMER, "retainerType": "prepaid", "initialAmount": PLENTY}
    opened = [await send("POST", "payment", "/api/retainers", deposit) for _ in range(RETAINERS)]
    return Mixture([each["retainer"]["_id"] for each in opened])
