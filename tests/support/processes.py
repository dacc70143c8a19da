"""Services as real processes, for tests that place orders over HTTP and kill processes."""

import asyncio
import contextlib
import json
import os
import secrets
import signal
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pymongo

from operations.audit import audit
from operations.stack.ports import PortClaims
from shared.services import CONSOLE, SERVICES
from tests.support import last_release, warm_processes
from tests.support.access import ADMIN, keys_file
from tests.support.builders import order_body
from tests.support.eventually import eventually
from tests.support.last_release import ReleasedProcess
from tests.support.servers import Servers, delete_topology
from tests.support.warm_processes import WarmProcess

SAGA_SERVICES = ("order", "inventory", "payment")
NOTHING_LISTENS = "http://127.0.0.1:1"
KEEP_SECONDS = 2.0
"""For idle connections: the services close theirs after 5 s, and a request must not meet that."""


@dataclass
class Process:
    """One running service."""

    service: str
    url: str
    process: WarmProcess | ReleasedProcess
    output: list[str] = field(default_factory=list)

    async def read_output(self) -> None:
        async for line in self.process.stdout:
            self.output.append(line.decode(errors="replace"))

    def kill(self) -> None:
        """End it with SIGKILL, as the kernel does when memory runs out."""
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGKILL)

    @property
    def alive(self) -> bool:
        return self.process.returncode is None


class Stack:
    """The services over given servers; all its processes end when it closes."""

    def __init__(self, mongodb_url: str, amqp_url: str, database_prefix: str, **settings: object) -> None:
        self.mongodb_url = mongodb_url
        self.amqp_url = amqp_url
        self.database_prefix = database_prefix
        self._settings = settings
        self._processes: list[Process] = []
        self._readers: set[asyncio.Task[None]] = set()
        # Claimed until the end: a port that is only found free may be another's before the service listens.
        self._ports = PortClaims()
        limits = httpx.Limits(max_connections=50, keepalive_expiry=KEEP_SECONDS)
        self.client = httpx.AsyncClient(timeout=20, limits=limits, headers=ADMIN)

    async def start(self, *services: str, **settings: object) -> list[Process]:
        """Start one process of each service named, and wait until they are ready."""
        return await self.start_release(None, *services, **settings)

    async def start_release(self, tree: Path | None, *services: str, **settings: object) -> list[Process]:
        """Start processes of the release that was extracted to the tree, or of the working tree if there is none."""
        started = [await self._launch(tree, service, settings) for service in services or SAGA_SERVICES]
        await asyncio.gather(*(self.ready(process) for process in started))
        return started

    async def launch(self, service: str, **settings: object) -> Process:
        """Start one process without waiting for it; settings by their names without the prefix."""
        return await self._launch(None, service, settings)

    async def _launch(self, tree: Path | None, service: str, settings: Mapping[str, object]) -> Process:
        port = self._ports.claim_free()
        values = {
            "mongodb_url": self.mongodb_url,
            "amqp_url": self.amqp_url,
            "topology": "declare",
            "database_prefix": self.database_prefix,
            "http_port": port,
            "payment_failure_rate": 0,
            "max_settle_seconds": "off",  # tests stop services on purpose, and machines are slow
            "keys_file": keys_file(),
            **self._settings,
            **settings,
        }
        environment = {name: value for name, value in os.environ.items() if not name.startswith("ORDERSAGA_")}
        environment |= {f"ORDERSAGA_{name.upper()}": str(value) for name, value in values.items()}
        module = SERVICES[service].package
        process = (
            await warm_processes.start(module, environment=environment)
            if tree is None
            else await last_release.start(tree, module, environment)
        )
        started = Process(service, f"http://127.0.0.1:{port}", process)
        self._processes.append(started)
        reader = asyncio.create_task(started.read_output())
        self._readers.add(reader)
        return started

    async def ready(self, process: Process, within: float = 120) -> None:
        async def answers() -> bool:
            if not process.alive:
                raise RuntimeError("it ended: " + "".join(process.output[-20:]))
            return bool((await self.client.get(f"{process.url}/readyz")).json() == {"status": "ready"})

        await eventually(answers, within, f"{process.service} to be ready")

    def setting(self, name: str) -> object:
        """Return what all its processes have as this setting."""
        return self._settings[name]

    def url(self, service: str) -> str:
        """Return the URL of a running process of the service."""
        living = self.processes(service)
        if not living:
            output = ["".join(p.output[-20:]) for p in self._processes if p.service == service]
            raise RuntimeError(f"no process of {service} is alive; last output: {output}")
        return living[0].url

    def processes(self, service: str) -> list[Process]:
        return [p for p in self._processes if p.service == service and p.alive]

    async def kill(self, process: Process) -> None:
        process.kill()
        await process.process.wait()

    async def close(self) -> None:
        """End all processes, gracefully where possible."""
        for process in self._processes:
            if process.alive:
                process.process.terminate()
        for process in self._processes:
            try:
                await asyncio.wait_for(process.process.wait(), 12)
            except TimeoutError:
                await self.kill(process)
        await asyncio.gather(*self._readers)
        await self.client.aclose()
        self._ports.release()

    @property
    def command_environment(self) -> dict[str, str]:
        """The environment of a command that acts on these databases, this broker and the living processes."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("ORDERSAGA_")}
        environment |= {
            "ORDERSAGA_MONGODB_URL": self.mongodb_url,
            "ORDERSAGA_AMQP_URL": self.amqp_url,
            "ORDERSAGA_DATABASE_PREFIX": self.database_prefix,
        }
        environment |= {process.url_variable: NOTHING_LISTENS for process in SERVICES.values()}
        return environment | {SERVICES[p.service].url_variable: p.url for p in reversed(self._processes) if p.alive}

    async def command(self, *words: str) -> dict[str, Any]:
        """Return the document that `ordersaga <words> --json` prints."""
        status, output, errors = await warm_processes.run(
            "operations.cli", *words, "--json", environment=self.command_environment
        )
        assert status in (0, 1), errors
        report: dict[str, Any] = json.loads(output)
        assert report["ok"] is (status == 0)
        return report

    async def audit(self) -> dict[str, Any]:
        """Return the output of `ordersaga audit --json` for these databases and this broker."""
        return await self.command("audit")

    async def assert_books_balance(self) -> None:
        """Audit in this process: the start of a command costs more than the audit."""
        report = await audit(self.mongodb_url, self.amqp_url, self.database_prefix)
        assert report.violations == [], report.violations

    # --- What clients do. ---

    async def stock(self, product: str, quantity: int) -> None:
        response = await self.client.put(f"{self.url('inventory')}/inventory/{product}", json={"quantity": quantity})
        assert response.status_code in (200, 201), response.text

    async def inventory(self, product: str) -> dict[str, Any]:
        """The stock of a product, without its description."""
        response = await self.client.get(f"{self.url('inventory')}/inventory/{product}")
        assert response.status_code == 200, response.text
        found: dict[str, Any] = response.json()
        return {name: found[name] for name in ("productId", "quantity", "reserved", "shipped")}

    async def place(self, **changes: Any) -> str:
        """Post an order; returns its id."""
        response = await self.client.post(f"{self.url('order')}/orders", json=order_body(**changes))
        assert response.status_code == 202, response.text
        order_id: str = response.json()["orderId"]
        return order_id

    async def place_many(self, number: int, body: Callable[[int], dict[str, Any]], at_once: int = 20) -> list[str]:
        """Post orders, some at once; returns the ids of those that were accepted."""
        gate = asyncio.Semaphore(at_once)

        async def one(index: int) -> str | None:
            async with gate:
                with contextlib.suppress(httpx.HTTPError, RuntimeError):
                    response = await self.client.post(f"{self.url('order')}/orders", json=order_body(**body(index)))
                    if response.status_code == 202:
                        return str(response.json()["orderId"])
                return None

        return [order_id for order_id in await asyncio.gather(*map(one, range(number))) if order_id]

    async def order(self, order_id: str) -> dict[str, Any]:
        response = await self.client.get(f"{self.url('order')}/orders/{order_id}")
        assert response.status_code == 200, response.text
        found: dict[str, Any] = response.json()
        return found

    async def settled(self, order_id: str, within: float = 60) -> dict[str, Any]:
        """The order once it is settled."""
        found: dict[str, Any] = {}

        async def is_settled() -> bool:
            found.update(await self.order(order_id))
            return bool(found["settled"])

        await eventually(is_settled, within, f"order {order_id} to settle")
        return found

    async def all_settled(self, order_ids: Iterable[str], within: float = 60) -> list[dict[str, Any]]:
        return [await self.settled(order_id, within) for order_id in order_ids]


@contextlib.asynccontextmanager
async def run_stack(mongodb_url: str, amqp_url: str, database_prefix: str, **settings: object) -> AsyncIterator[Stack]:
    """A stack whose processes end with the context."""
    stack = Stack(mongodb_url, amqp_url, database_prefix, **settings)
    try:
        yield stack
    finally:
        await stack.close()


@contextlib.asynccontextmanager
async def run_module_stack(servers: Servers) -> AsyncIterator[Stack]:
    """A stack for all tests of a module, which ignore each other's records; its queues and databases go with it."""
    await delete_topology(servers.amqp_url)
    prefix = f"t{secrets.token_hex(8)}"
    async with run_stack(servers.mongodb_url, servers.amqp_url, prefix) as running:
        await running.start()
        yield running
    await delete_topology(servers.amqp_url)
    async with pymongo.AsyncMongoClient[dict[str, Any]](servers.mongodb_url) as client:
        for name in ("orders", "inventory", "payments", CONSOLE.database):
            await client.drop_database(f"{prefix}_{name}")
