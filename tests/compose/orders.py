"""Stock, orders and their books in a stack of containers, and a client that sends a request again."""

import asyncio
import collections
import itertools
import json
import secrets
import time
from typing import Any

import httpx

from tests.compose.stack import ComposeError, ComposeStack
from tests.support.eventually import eventually

# Longer than the saga takes, shorter than its timeout: no order here may need that.
SETTLED_WITHIN_SECONDS = 180
PAUSE_SECONDS = 0.2


async def put_stock(stack: ComposeStack, client: httpx.AsyncClient, product: str, quantity: int) -> None:
    async def put() -> bool:  # again after a 503, which a busy machine may cause
        answer = await client.put(f"{stack.url('inventory')}/inventory/{product}", json={"quantity": quantity})
        return bool(answer.raise_for_status().is_success)

    await eventually(put, within=SETTLED_WITHIN_SECONDS, message=f"stock of {product}")


async def stock_of(stack: ComposeStack, client: httpx.AsyncClient, product: str) -> dict[str, Any]:
    answer = await client.get(f"{stack.url('inventory')}/inventory/{product}")
    stock: dict[str, Any] = answer.raise_for_status().json()
    return {name: stock[name] for name in ("productId", "quantity", "reserved", "shipped")}


async def place(stack: ComposeStack, client: httpx.AsyncClient, product: str, slot: str | None = None) -> str:
    """Order one unit, paid with a card that is never declined; returns the order's id."""
    order: dict[str, Any] = {
        "userId": "u1",
        "items": [{"productId": product, "quantity": 1, "price": 10}],
        "totalAmount": 10,
        "payment": {"method": "card", "token": "tok_ok"},
    }
    if slot is not None:
        order["delivery"] = {"slot": slot}
    answer = await Persistent(stack, client).post("/orders", order, secrets.token_hex(8))
    assert answer.status_code == httpx.codes.ACCEPTED, answer.text
    return str(answer.json()["orderId"])


async def settled(stack: ComposeStack, client: httpx.AsyncClient, order_id: str) -> dict[str, Any]:
    """Wait until an order is settled and return it."""

    async def final() -> dict[str, Any] | None:
        answer = await client.get(f"{stack.url('order')}/orders/{order_id}")
        order: dict[str, Any] = answer.raise_for_status().json()
        return order if order["settled"] else None

    order: dict[str, Any] | None = await eventually(
        final, within=SETTLED_WITHIN_SECONDS, message=f"order {order_id} to settle"
    )
    assert order is not None
    return order


async def all_settled(
    stack: ComposeStack, client: httpx.AsyncClient, orders: list[str]
) -> dict[str, list[dict[str, Any]]]:
    """Wait until all orders are settled; returns them by status."""
    by_status = collections.defaultdict(list)
    for order in await asyncio.gather(*(settled(stack, client, order) for order in orders)):
        by_status[order["status"]].append(order)
    return by_status


async def assert_eight_settle_with_stock_for_five(stack: ComposeStack, client: httpx.AsyncClient, product: str) -> None:
    """Place eight orders of a new product."""
    await put_stock(stack, client, product, 5)
    by_status = await all_settled(stack, client, [await place(stack, client, product) for _ in range(8)])
    assert {status: len(found) for status, found in by_status.items()} == {"CONFIRMED": 5, "CANCELLED": 3}


async def charged(stack: ComposeStack, client: httpx.AsyncClient, order: dict[str, Any]) -> str:
    answer = await client.get(f"{stack.url('payment')}/payments/{order['orderId']}")
    return str(answer.raise_for_status().json()["status"])


def assert_books_balance(stack: ComposeStack, orders: int) -> None:
    """Audit at least so many orders in a container of the image; its exit status 1 would raise, with what is wrong."""
    said = _audit(stack)
    verdict = json.loads(said)

    assert verdict["ok"], said
    assert verdict["checked"]["orders"] >= orders
    assert verdict["information"]["deadLetters"] == 0


def _audit(stack: ComposeStack, attempts: int = 3) -> str:
    """The verdict, asked for again where a server of a busy machine did not answer: exit status 3."""
    try:
        return stack.command("audit", "--json")
    except ComposeError as error:
        if attempts == 1 or "exited with 3" not in str(error):
            raise
        return _audit(stack, attempts - 1)


class Persistent:
    """A client of the order service that sends a request again, under the same key, after a 503.

    At most `attempts` times if that is given, and no longer than `within` seconds; then it returns or raises what came
    last. With `unanswered`, it does the same when a connection ends without an answer. `seen` counts answers by their
    status, and connections that ended without one under 0.
    """

    def __init__(
        self,
        stack: ComposeStack,
        client: httpx.AsyncClient,
        *,
        attempts: int | None = None,
        within: float = 60.0,
        unanswered: bool = False,
    ) -> None:
        self._url = stack.url("order")
        self._client = client
        self._own = secrets.token_hex(4)  # several loads use the same keys
        self._attempts = attempts
        self._within = within
        self._unanswered = unanswered
        self.seen = collections.Counter[int]()

    async def post(self, path: str, json: Any = None, key: str | None = None) -> httpx.Response:
        """Send a request, with the key if there is one."""
        headers = {} if key is None else {"Idempotency-Key": f"{self._own}-{key}"}
        deadline = time.monotonic() + self._within
        for number in itertools.count(1):
            is_last = number == self._attempts or time.monotonic() > deadline
            try:
                answer = await self._client.post(f"{self._url}{path}", json=json, headers=headers)
            except httpx.TransportError:
                self.seen[0] += 1
                if is_last or not self._unanswered:
                    raise
            else:
                self.seen[answer.status_code] += 1
                if is_last or answer.status_code != httpx.codes.SERVICE_UNAVAILABLE:
                    return answer
            await asyncio.sleep(PAUSE_SECONDS)
        raise AssertionError("the last attempt returns or raises")


async def none_unsettled(stack: ComposeStack, client: httpx.AsyncClient, within: float) -> None:
    """Wait until every order of the stack is settled."""

    async def none_left() -> bool:
        answer = await client.get(f"{stack.url('order')}/orders", params={"settled": "false", "limit": 1})
        return bool(answer.raise_for_status().json()["items"] == [])

    await eventually(none_left, within, "all orders to settle")
