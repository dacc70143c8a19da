"""More orders than are carried out, and a service that is killed meanwhile: what is accepted settles, the rest is told.

`make overload` is the long form, which measures times as well.
"""

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from tests.support.builders import order_body
from tests.support.eventually import eventually
from tests.support.order_load import new_client
from tests.support.processes import Stack, run_stack

CLIENTS = 10
PAUSE_SECONDS = 0.1
"""What a client waits after a refusal: less than it is told."""
PRODUCT = "p1"
REFUSED = 30
"""Orders that are refused while the service is away, before it is started again."""
ACCEPTED_AFTERWARDS = 30


@dataclass
class Shop:
    """Clients that place one order after the other."""

    stack: Stack
    statuses: Counter[int] = field(default_factory=Counter)
    accepted: list[str] = field(default_factory=list)
    refused_keys: list[str] = field(default_factory=list)
    closed: bool = False

    async def client(self, number: int) -> None:
        async with new_client(self.stack) as client:
            for turn in range(10**6):
                if self.closed:
                    return
                key = f"{number}-{turn}"
                answer = await client.post(
                    f"{self.stack.url('order')}/orders", json=order_body(), headers={"Idempotency-Key": key}
                )
                self.note(key, answer)
                if answer.status_code != 202:
                    await asyncio.sleep(PAUSE_SECONDS)

    def note(self, key: str, answer: Any) -> None:
        self.statuses[answer.status_code] += 1
        if answer.status_code == 202:
            self.accepted.append(answer.json()["orderId"])
        elif answer.json()["type"] == "/problems/overloaded":
            assert int(answer.headers["retry-after"]) >= 1
            self.refused_keys.append(key)

    async def refuses(self, more: int) -> None:
        before = len(self.refused_keys)

        async def has() -> bool:
            return len(self.refused_keys) >= before + more

        await eventually(has, 240, f"{more} orders to be refused")

    async def accepts(self, more: int) -> None:
        before = len(self.accepted)

        async def has() -> bool:
            return len(self.accepted) >= before + more

        await eventually(has, 240, f"{more} orders to be accepted")


async def test_what_is_accepted_in_an_overload_settles_and_the_rest_is_refused(
    servers: Any, database_prefix: str
) -> None:
    async with run_stack(servers.mongodb_url, servers.amqp_url, database_prefix, max_settle_seconds=1) as stack:
        await stack.start()
        await stack.stock(PRODUCT, 10**6)
        shop = Shop(stack)
        async with asyncio.TaskGroup() as clients:
            for number in range(CLIENTS):
                clients.create_task(shop.client(number))
            await shop.accepts(CLIENTS)
            await stack.kill(stack.processes("inventory")[0])
            await shop.refuses(REFUSED)
            accepted = len(shop.accepted)
            assert len(shop.refused_keys) >= REFUSED
            await stack.start("inventory")
            await shop.accepts(ACCEPTED_AFTERWARDS)
            shop.closed = True
        assert set(shop.statuses) == {202, 503}, shop.statuses
        assert accepted < len(shop.accepted)

        async def all_are_settled() -> bool:
            return bool(await listed(stack, settled="false") == [])

        await eventually(all_are_settled, 240, "all orders to be settled")
        assert await listed(stack, status="CANCELLED") == []  # nothing has timed out
        for order_id in shop.accepted[:: len(shop.accepted) // 20]:
            assert (await stack.order(order_id))["status"] == "CONFIRMED"
        await stack.assert_books_balance()


async def listed(stack: Stack, **wanted: str) -> Any:
    answer = await stack.client.get(f"{stack.url('order')}/orders", params=wanted)
    assert answer.status_code == 200, answer.text
    return answer.json()["items"]
