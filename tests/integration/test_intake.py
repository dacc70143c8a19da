"""New orders are refused while those in progress do not settle. One process after the other, over real servers."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from order_service.backlog import FEW
from shared.access.permissions import Role
from tests.support.access import KEYS, bearer
from tests.support.builders import order_body
from tests.support.eventually import eventually
from tests.support.processes import Stack, run_stack
from tests.support.servers import delete_topology

PRODUCT = "p1"
ORDERS = 2 * FEW


@pytest.fixture
async def stack(servers: Any, database_prefix: str) -> AsyncIterator[Stack]:
    """Only the order service runs, so no order settles. What is accepted has more time than the test takes."""
    async with run_stack(
        servers.mongodb_url, servers.amqp_url, database_prefix, max_settle_seconds=1, saga_timeout_seconds=3600
    ) as running:
        await running.start("order")
        yield running
    # Services that later tests start must not find messages about the orders that were left unfinished here.
    await delete_topology(servers.amqp_url)


async def post(stack: Stack, key: str | None = None, body: Any = None) -> Any:
    headers = {"Idempotency-Key": key} if key else {}
    return await stack.client.post(f"{stack.url('order')}/orders", json=body or order_body(), headers=headers)


async def refused(stack: Stack) -> Any:
    """Place orders until one is refused; return its answer."""
    answers: list[Any] = []

    async def is_refused() -> bool:
        answers.append(await post(stack))
        return bool(answers[-1].status_code != 202)

    await eventually(is_refused, 60, "an order to be refused")
    return answers[-1]


async def metric(stack: Stack, name: str) -> float:
    text = (await stack.client.get(f"{stack.url('order')}/metrics")).text
    return float(next(line for line in text.splitlines() if line.startswith(f"{name} ")).split()[1])


async def test_orders_that_would_wait_too_long_are_refused_until_those_before_them_are_settled(stack: Stack) -> None:
    placed = await post(stack, "key-0")
    assert placed.status_code == 202
    answer = await refused(stack)
    problem = answer.json()
    assert (answer.status_code, problem["type"]) == (503, "/problems/overloaded")
    assert 1 <= int(answer.headers["retry-after"]) <= 10
    assert await metric(stack, "order_intake_refused_total") >= 1
    assert await metric(stack, "order_intake_in_progress") >= FEW
    assert await metric(stack, "order_intake_expected_seconds") > 0.5

    again = await post(stack, "key-0")
    assert (again.status_code, again.json()["orderId"]) == (202, placed.json()["orderId"])
    assert again.headers["idempotent-replayed"] == "true"
    assert (await post(stack, "key-0", order_body(userId="another"))).status_code == 422
    assert (await post(stack, "a new key")).status_code == 503
    # Decided by the headers alone, so that a request that is refused costs little.
    unread = await stack.client.post(f"{stack.url('order')}/orders", content=b"not JSON")
    assert unread.status_code == 503
    foreign = await stack.client.post(f"{stack.url('order')}/orders", headers=bearer(KEYS[Role.VIEWER]))
    assert foreign.status_code == 403

    await stack.kill(stack.processes("order")[0])
    await stack.start("order")
    await refused(stack)  # it has taken over what its earlier life accepted

    await stack.start("inventory", "payment")
    await stack.stock(PRODUCT, 1000)

    async def is_accepted() -> bool:
        return bool((await post(stack)).status_code == 202)

    await eventually(is_accepted, 120, "an order to be accepted again")


async def test_while_an_operator_has_paused_what_orders_wait_for_they_are_accepted(stack: Stack) -> None:
    paused = await stack.client.post(f"{stack.url('order')}/consumer/pause", json={"reason": "a repair"})
    assert paused.status_code == 200, paused.text

    async def is_accepted_though_others_wait() -> bool:
        answer = await post(stack)
        return bool(answer.status_code == 202 and await metric(stack, "order_intake_expected_seconds") > 2)

    await eventually(is_accepted_though_others_wait, 60, "orders to be accepted during a pause")
    resumed = await stack.client.post(f"{stack.url('order')}/consumer/resume", json={"reason": "repaired"})
    assert resumed.status_code == 200, resumed.text
    await refused(stack)


async def test_without_a_limit_every_order_is_accepted(stack: Stack) -> None:
    await stack.kill(stack.processes("order")[0])
    await stack.start("order", max_settle_seconds="off")
    headers = bearer(KEYS[Role.CLIENT])
    for _ in range(ORDERS):
        answer = await stack.client.post(f"{stack.url('order')}/orders", json=order_body(), headers=headers)
        assert answer.status_code == 202
    assert await metric(stack, "order_intake_in_progress") == 0
