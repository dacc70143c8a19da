"""What the shop of a run sells, and the requests of its clients: drawn from the seed and their number alone."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import aiohttp

from operations.settings import Stack
from shared.services import INVENTORY, PAYMENT, SIMULATOR

GOODS, SERVER = "goods", "server"
PLENTY = 10_000_000
PRICE = 10
PACKAGES, ADDRESSES = 16, 240
MOST_SERVERS = PACKAGES * ADDRESSES
"""An order for a server after these would fail, and wait for an operator."""
ORDERS_PER_SERVER = 50
RETAINERS = 25
"""Balances to pay from. Payments from one balance are made one after the other."""
HOLD_SECONDS = 600

Body = dict[str, Any]
What = Literal["posting", "order"]
Afterwards = Literal["nothing", "cancel", "deliver", "refund", "refund units", "refund all", "deliver and refund"]

_AFTERWARDS: dict[Afterwards, int] = {
    "nothing": 60,
    "cancel": 12,
    "deliver": 8,
    "refund": 6,
    "refund units": 4,
    "refund all": 4,
    "deliver and refund": 6,
}
"""What clients ask for after an order, in percent."""


@dataclass(frozen=True, slots=True)
class Visit:
    """What one client does: a posting, or an order and what comes before and after it."""

    number: int
    what: What
    body: Body
    is_held_first: bool = False
    repeats: int = 0
    afterwards: Afterwards = "nothing"
    is_of_goods: bool = True

    @property
    def customer(self) -> str:
        """The client's name, which nobody else has."""
        return customer_of(self.number)


def customer_of(number: int) -> str:
    """Return the name of a client."""
    return f"customer-{number}"


def body_of_goods(customer: str, **more: Any) -> Body:
    """Return the body of an order of goods."""
    return _body(customer, GOODS, 1, more)


def body_of_server(customer: str, number: int) -> Body:
    """Return the body of an order for a server; `number` spreads them over the packages."""
    return _body(customer, f"{SERVER}-{number % PACKAGES}", 1, {})


def _body(customer: str, product: str, quantity: int, more: Body) -> Body:
    item = {"productId": product, "quantity": quantity, "price": PRICE}
    return {
        "userId": customer,
        "items": [item],
        "totalAmount": PRICE * quantity,
        "payment": {"token": "tok_ok"},
        **more,
    }


def draw(seed: int, number: int, retainers: Sequence[str]) -> Visit:
    """Return what the client of this number does: of each ten, one makes a posting, and two pay from a balance."""
    chance = random.Random(f"{seed}/client {number}")
    customer = customer_of(number)
    servers, rest = divmod(number, ORDERS_PER_SERVER)
    repeats = chance.choices((0, 1, 2), (80, 15, 5))[0]
    if rest == 0 and servers < MOST_SERVERS // 2:
        cancels: Afterwards = "cancel" if chance.random() < 1 / 4 else "nothing"
        return Visit(
            number, "order", body_of_server(customer, servers), repeats=repeats, afterwards=cancels, is_of_goods=False
        )
    if number % 10 == 0:
        return Visit(number, "posting", _posting(chance, retainers), repeats=repeats)
    prepaid = {"payment": {"method": "retainer", "retainerId": chance.choice(retainers)}}
    kinds: dict[int, Body] = {
        1: {"delivery": {"slot": "auto"}},
        2: prepaid,
        3: {"payment": {"token": "tok_declined"}},
        4: prepaid,
        5: {"delivery": {"slot": "auto"}, **prepaid},
    }
    body = _body(customer, GOODS, chance.randint(1, 3), kinds.get(number % 10, {}))
    afterwards = chance.choices(list(_AFTERWARDS), list(_AFTERWARDS.values()))[0]
    return Visit(number, "order", body, number % 10 in (6, 3), repeats, afterwards)


def _posting(chance: random.Random, retainers: Sequence[str]) -> Body:
    """Return what is taken from a retainer, or added to it."""
    operation = chance.choice(("consume", "replenish"))
    return {"retainer": chance.choice(retainers), "operation": operation, "amount": chance.randint(1, 9)}


async def open_shop(session: aiohttp.ClientSession, stack: Stack) -> Sequence[str]:
    """Fill the stock, offer slots and servers, and deposit balances; return the retainers. Raises ClientError."""

    async def send(method: str, service: str, path: str, body: Body) -> Any:
        async with session.request(method, f"{stack.urls[service]}{path}", json=body) as answer:
            answer.raise_for_status()
            return await answer.json()

    await send("PUT", INVENTORY.name, f"/inventory/{GOODS}", {"quantity": PLENTY})
    await send("PUT", INVENTORY.name, "/slots/config", {"capacity": PLENTY})
    names = [f"103.181.{number}" for number in range(PACKAGES)]
    packages = [
        {"id": name, "name": name, "status": "active", "ips": [f"{name}.{last}" for last in range(1, ADDRESSES + 1)]}
        for name in names
    ]
    await send("POST", SIMULATOR.name, "/_control/packages", {"packages": packages})
    for number, name in enumerate(names):
        sold = {"kind": "vps", "package": name, "ram": 4096}
        await send("PUT", INVENTORY.name, f"/products/{SERVER}-{number}", sold)
    deposit = {"clientId": "customers", "retainerType": "prepaid", "initialAmount": PLENTY}
    opened = [await send("POST", PAYMENT.name, "/api/retainers", deposit) for _ in range(RETAINERS)]
    return [str(each["retainer"]["_id"]) for each in opened]
