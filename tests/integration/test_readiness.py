"""A MongoDB of the test's own is paused, killed and restarted: services report it and refuse requests at once.

The order service is degraded meanwhile, because it has a long grace; the console, which has none, is unready.

Times are not asserted, as the machine may be busy; what is asserted is that the service answered without MongoDB.
"""

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest

from operations.stack.services import ask_readiness
from shared.service import DATABASE_IS_AWAY
from tests.support.builders import order_body
from tests.support.eventually import eventually
from tests.support.monitoring import scrape, value
from tests.support.processes import Process, Stack, run_stack
from tests.support.servers import NativeServers

SERVICES = ("order", "console")
WITHIN_SECONDS = 60.0
"""For a busy machine; the services need a few seconds."""


@pytest.fixture
async def stack(own_servers: NativeServers, unique_id: str) -> AsyncIterator[Stack]:
    patience = {"database_timeout_seconds": 3}  # of requests that come before the outage is noticed
    async with run_stack(own_servers.mongodb_url, own_servers.amqp_url, f"t{unique_id}", **patience) as stack:
        processes = [
            await stack.launch("order", ready_grace_seconds=3600),
            await stack.launch("console", ready_grace_seconds=0),
        ]
        await asyncio.gather(*map(stack.ready, processes))
        yield stack


async def test_a_database_outage_is_reported_and_requests_are_refused_at_once(
    own_servers: NativeServers, stack: Stack
) -> None:
    await _gauge_shows(stack, 1.0)
    await _is_accepted(stack)
    with own_servers.database_paused():
        await _an_outage_is_reported(stack)
    await _all_is_ready_again(stack)
    await own_servers.stop_database(kill=True)
    await _an_outage_is_reported(stack)
    await own_servers.start_database()
    await _all_is_ready_again(stack)


async def _an_outage_is_reported(stack: Stack) -> None:
    await _gauge_shows(stack, 0.0)
    (order,), (console,) = stack.processes("order"), stack.processes("console")
    for process, status in ((order, 200), (console, 503)):
        ready = await stack.client.get(f"{process.url}/readyz")
        assert ready.status_code == status
        assert ready.json()["down"].keys() >= {"mongodb"} <= ready.json()["since"].keys()
    shown = await asyncio.to_thread(ask_readiness, order.url)
    assert shown.unhealthy_reason is None
    assert "mongodb: " in (shown.degraded or "")
    await eventually(lambda: _refused(stack, order), WITHIN_SECONDS, "the order service to refuse at once")
    for path in ("/healthz", "/metrics", "/openapi.json"):
        assert (await stack.client.get(order.url + path)).status_code == 200
    page = await stack.client.get(f"{console.url}/")
    assert page.status_code == 200
    assert "MongoDB" in page.text
    await eventually(lambda: _api_refuses(stack, console), WITHIN_SECONDS, "the operations API to refuse at once")
    outages = await stack.client.get(f"{console.url}/api/v1/outages")
    assert "MongoDB" in [outage["name"] for outage in outages.raise_for_status().json()["items"]]


async def _api_refuses(stack: Stack, console: Process) -> bool:
    """Ask for records; true when that was refused without asking MongoDB."""
    answer = await stack.client.get(f"{console.url}/api/v1/dead-letters")
    if answer.json()["detail"] != DATABASE_IS_AWAY:
        return False
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
    return True


async def _refused(stack: Stack, order: Process) -> bool:
    """Place an order; true when the service refused it without asking MongoDB, and counted that."""
    before = await _refusals(stack, order)
    answer = await _place(stack)
    if answer.json()["detail"] != DATABASE_IS_AWAY:
        return False
    assert answer.status_code == 503
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.headers["Retry-After"] == "1"
    assert await _refusals(stack, order) == before + 1
    return True


async def _refusals(stack: Stack, order: Process) -> float:
    """Return how many requests were answered with 503 before they reached a route."""
    samples = await scrape(stack.client, order.url)
    return value(samples, "http_requests_total", status="503", route="unknown")


async def _all_is_ready_again(stack: Stack) -> None:
    await _gauge_shows(stack, 1.0)
    await asyncio.gather(*(stack.ready(process) for name in SERVICES for process in stack.processes(name)))
    await _is_accepted(stack)


async def _gauge_shows(stack: Stack, expected: float) -> None:
    for service in SERVICES:
        (process,) = stack.processes(service)

        async def shown(process: Process = process) -> bool:
            samples = await scrape(stack.client, process.url)
            labels = {"service": process.service, "dependency": "mongodb"}
            return samples["ordersaga_ready", frozenset(labels.items())] == expected

        await eventually(shown, WITHIN_SECONDS, f"{service} to say {expected} of mongodb")


async def _is_accepted(stack: Stack) -> None:
    async def accepted() -> bool:
        return (await _place(stack)).status_code == 202

    await eventually(accepted, WITHIN_SECONDS, "an order to be accepted")


async def _place(stack: Stack) -> httpx.Response:
    return await stack.client.post(f"{stack.url('order')}/orders", json=order_body())


async def test_an_order_service_that_starts_without_the_broker_takes_orders(
    own_servers: NativeServers, unique_id: str
) -> None:
    """As one does that runs already: a restart during an outage must not take its share of the orders away."""
    async with run_stack(own_servers.mongodb_url, own_servers.amqp_url, f"t{unique_id}") as stack:
        await own_servers.stop_broker(kill=True)
        order = await stack.launch("order")

        async def accepted() -> str | None:
            try:
                answer = await _place(stack)
            except httpx.TransportError:
                return None
            return answer.json()["orderId"] if answer.status_code == 202 else None

        order_id = await eventually(accepted, WITHIN_SECONDS, "an order to be accepted")
        assert "rabbitmq" in (await stack.client.get(f"{order.url}/readyz")).json()["down"]

        await own_servers.start_broker()
        await stack.start("inventory", "payment")

        async def settled() -> bool:
            return bool((await stack.client.get(f"{order.url}/orders/{order_id}")).json()["settled"])

        await eventually(settled, WITHIN_SECONDS, "the order to settle")
