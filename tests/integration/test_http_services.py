"""Every process serves HTTP with bounded connections: the services, the console and the simulator."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import httpx
import pytest

from operations.stack.ports import PortClaims
from tests.support import warm_processes
from tests.support.access import ADMIN
from tests.support.eventually import eventually
from tests.support.monitoring import samples_of, value
from tests.support.processes import Stack

MAX_CONNECTIONS = 8


@pytest.fixture
async def addresses(clean_broker: str, mongodb_url: str, database_prefix: str) -> AsyncIterator[dict[str, str]]:
    """The URLs of an order service, a console and a simulator."""
    stack = Stack(mongodb_url, clean_broker, database_prefix, max_connections=MAX_CONNECTIONS)
    try:
        order, console = await stack.start("order", "console")
        async with _simulator() as simulator:
            yield {"order": order.url, "console": console.url, "simulator": simulator}
    finally:
        await stack.close()


@contextlib.asynccontextmanager
async def _simulator() -> AsyncIterator[str]:
    with PortClaims() as claims:
        port = claims.claim_free()
        environment = {"ORDERSAGA_HTTP_PORT": str(port)}
        process = await warm_processes.start("provisioning_service.simulator", environment=environment)
        url = f"http://127.0.0.1:{port}"
        try:
            async with httpx.AsyncClient() as client:
                await eventually(lambda: client.get(f"{url}/healthz"), 60, "the simulator to answer")
            yield url
        finally:
            process.terminate()
            await process.wait()


async def test_every_process_bounds_what_a_client_may_cost(addresses: dict[str, str]) -> None:
    for name, url in addresses.items():
        reader, writer = await asyncio.open_connection(urlsplit(url).hostname, urlsplit(url).port)
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n" + b"a: bbbbbbbb\r\n" * 200)
        assert (await reader.read()).startswith(b"HTTP/1.1 431 "), name
        writer.close()
    await _silent_connections_do_not_keep_others_out(addresses["order"])


async def _silent_connections_do_not_keep_others_out(url: str) -> None:
    host, port = urlsplit(url).hostname, urlsplit(url).port
    silent = [await asyncio.open_connection(host, port) for _ in range(5 * MAX_CONNECTIONS)]
    async with httpx.AsyncClient(headers=ADMIN) as client:
        for path in ("/healthz", "/readyz", "/orders"):
            assert (await client.get(url + path)).status_code == 200
        counted = samples_of((await client.get(f"{url}/metrics")).text)
        assert value(counted, "http_connections_refused_total", reason="displaced") > 0
    for _, writer in silent:
        writer.close()
