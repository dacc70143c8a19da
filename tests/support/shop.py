"""The four services in one process over the in-memory bus and a real MongoDB, and what their clients do."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import httpx

import inventory_service.__main__ as inventory
import order_service.__main__ as order
import payment_service.__main__ as payment
import provisioning_service.__main__ as provisioning
from inventory_service.settings import InventorySettings
from order_service.settings import OrderSettings
from payment_service.settings import PaymentSettings
from provisioning_service.settings import ProvisioningSettings
from shared import database, services
from shared.audit_log import AuditLog
from shared.bus.consumer import Consumer
from shared.bus.memory import MemoryBroker, MemoryBus
from shared.bus.publisher import Publisher
from shared.failpoints import Failpoint, nothing_fails
from shared.http import add_routes, create_app
from shared.service import Connections
from tests.support.access import ADMIN, key_authenticator
from tests.support.builders import connected, order_body
from tests.support.eventually import eventually
from tests.support.provisioning_processes import SHORT_DELAYS
from tests.support.simulators import package, run_simulator
from tests.support.tasks import end_tasks

A_SERVER: dict[str, Any] = {"items": [{"productId": "vps", "quantity": 1, "price": 10}]}
QUICK = {
    "republish_after_seconds": 0.2,
    "sweep_interval_seconds": 0.05,
    "payment_failure_rate": 0.0,
    "max_settle_seconds": None,
}
SERVICES: dict[str, tuple[Any, type[Any]]] = {
    "order": (order, OrderSettings),
    "inventory": (inventory, InventorySettings),
    "payment": (payment, PaymentSettings),
    "provisioning": (provisioning, ProvisioningSettings),
}


class Shop:
    """Four services in this process, and what their clients do."""

    def __init__(self, mongodb_url: str, prefix: str, settings: dict[str, object]) -> None:
        self.broker = MemoryBroker()
        self._mongodb_url = mongodb_url
        self._prefix = prefix
        self.settings = settings
        self._clients: dict[str, httpx.AsyncClient] = {}

    @contextlib.asynccontextmanager
    async def running(self, name: str, failpoint: Failpoint = nothing_fails) -> AsyncIterator[None]:
        """One service, until the context ends."""
        module, settings_type = SERVICES[name]
        known = {k: v for k, v in self.settings.items() if k in settings_type.model_fields}
        bus = MemoryBus(self.broker)
        await bus.start(services.SERVICES[name].inbox)
        async with connected(self._mongodb_url, f"{self._prefix}_{services.SERVICES[name].database}") as stored:
            parts = module.assemble(settings_type(**known), Connections(stored, Publisher(bus), failpoint))
            consumer = Consumer(
                bus,
                services.SERVICES[name].inbox,
                parts.handlers,
                translate_error=database.translate_error,
                failpoint=failpoint,
            )
            audit = AuditLog(stored)
            app = create_app(name, "", _ready, authenticator=key_authenticator(), pages=parts.pages, audit=audit)
            add_routes(app.router, parts.router)
            transport = httpx.ASGITransport(app)
            before = self._clients.get(name)
            client = self._clients[name] = httpx.AsyncClient(
                transport=transport, base_url="http://localhost", timeout=20, headers=ADMIN
            )
            tasks = [asyncio.create_task(work()) for work in (consumer.run, *parts.background)]
            try:
                yield
            finally:
                await client.aclose()
                if before is not None:
                    self._clients[name] = before
                await end_tasks(*tasks)
                await bus.close()

    @contextlib.asynccontextmanager
    async def all_running(self, *names: str) -> AsyncIterator[None]:
        """Services that do not crash, all four unless some are named."""
        async with contextlib.AsyncExitStack() as stack:
            for name in names or SERVICES:
                await stack.enter_async_context(self.running(name))
            yield

    async def ask(self, service: str, method: str, path: str, body: Any = None, **headers: str) -> Any:
        response = await self._clients[service].request(method, path, json=body, headers=headers)
        assert response.status_code in (200, 201, 202), response.text
        if response.status_code != 200:
            found = await self._clients[service].get(response.headers["location"], headers=headers)
            assert found.status_code == 200, response.headers["location"]
        return response.json()

    async def place(self, traceparent: str | None = None, **changes: Any) -> str:
        headers = {"traceparent": traceparent} if traceparent is not None else {}
        return str((await self.ask("order", "POST", "/orders", order_body(**changes), **headers))["orderId"])

    async def found(self, order_id: str) -> dict[str, Any]:
        order: dict[str, Any] = await self.ask("order", "GET", f"/orders/{order_id}")
        return order

    def depth(self) -> int:
        """The messages on their way to these services."""
        return self.broker.depth(services.SERVICES[name].inbox for name in SERVICES)

    async def settled(self, order_id: str) -> dict[str, Any]:
        """The order once it is settled, and nothing more is under way."""

        async def is_settled() -> bool:
            self.broker.advance(1)
            return bool((await self.found(order_id))["settled"]) and not self.depth()

        await eventually(is_settled, 30, f"order {order_id} to settle")
        return await self.found(order_id)


async def _ready() -> dict[str, str]:
    return {}


@contextlib.asynccontextmanager
async def open_shop(mongodb_url: str, database_prefix: str) -> AsyncIterator[Shop]:
    """Services that a test has to start, with 100 units of p1 and 10 servers to sell."""
    async with run_simulator() as simulator:
        await simulator.packages([package("103.181.91", 10)])
        opened = Shop(mongodb_url, database_prefix, {**QUICK, **SHORT_DELAYS, **simulator.settings})
        async with opened.running("inventory"):
            await opened.ask("inventory", "PUT", "/inventory/p1", {"quantity": 100})
            await opened.ask("inventory", "PUT", "/products/vps", {"kind": "vps", "package": "103.181.91"})
        yield opened
