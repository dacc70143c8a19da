"""The provider's simulator for tests: the real one over HTTP, with methods that set and query it."""

import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import httpx
from pydantic import SecretStr

from provisioning_service.simulator import app
from provisioning_service.simulator.settings import SimulatorSettings
from provisioning_service.simulator.state import CallOutcome, SimulatorState


class CountingState(SimulatorState):
    """The simulator's state, which also counts the requests to buy."""

    asked_to_buy = 0

    def next_buy(self) -> CallOutcome:
        self.asked_to_buy += 1
        return super().next_buy()


@dataclass(frozen=True)
class Simulator:
    """A running simulator."""

    url: str
    username: str
    password: str
    client: httpx.AsyncClient
    state: CountingState

    @property
    def asked_to_buy(self) -> int:
        """The number of requests to buy that have arrived, whatever their outcome."""
        return self.state.asked_to_buy

    @property
    def settings(self) -> dict[str, str]:
        """The settings with which a provisioning service uses it, by name without the prefix."""
        return {
            "smartvps_url": self.url,
            "smartvps_username": self.username,
            "smartvps_password": self.password,
        }

    async def packages(self, packages: Sequence[dict[str, Any]]) -> None:
        """Replace all packages; `package` below builds one."""
        await self._control("packages", {"packages": list(packages)})

    async def faults(self, **groups: dict[str, Any]) -> dict[str, Any]:
        """Set faults, `buy={...}` and `status={...}`; return the faults that remain."""
        return await self._control("faults", groups)

    async def purchases(self) -> list[dict[str, Any]]:
        """Return all sales in their order: ip, package, ram, at."""
        response = await self.client.get("/_control/purchases")
        assert response.status_code == 200, response.text
        sold: list[dict[str, Any]] = response.json()
        return sold

    async def free(self) -> dict[str, list[str]]:
        """Return the free addresses, by the package's name."""
        response = await self.client.post("/api/oceansmart/ipstock", auth=(self.username, self.password))
        assert response.status_code == 200, response.text
        return {listed["name"]: listed["ips"] for listed in response.json()["packages"]}

    async def _control(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        response = await self.client.post(f"/_control/{path}", json=body)
        assert response.status_code == 200, response.text
        answer: dict[str, Any] = response.json()
        return answer


@asynccontextmanager
async def run_simulator(
    *, username: str = "simulator", password: str = "simulator", port: int = 0
) -> AsyncIterator[Simulator]:
    """Run a simulator in this process, on a free port unless one is given, until the context ends."""
    settings = SimulatorSettings(smartvps_username=username, smartvps_password=SecretStr(password))
    listener = socket.create_server(("127.0.0.1", port))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    state = CountingState()
    async with AsyncExitStack() as stack:
        with patch.object(app, "SimulatorState", return_value=state):
            await stack.enter_async_context(app.simulator(settings, listener))
        limits = httpx.Limits(max_keepalive_connections=0)
        client = await stack.enter_async_context(httpx.AsyncClient(base_url=url, timeout=60, limits=limits))
        yield Simulator(url, username, password, client, state)


def package(name: str, ips: int | Sequence[str] = 5, **changes: Any) -> dict[str, Any]:
    """Build a package for `Simulator.packages`, with these addresses or this number of them (at most 250)."""
    if isinstance(ips, int):
        octets = name.split(".") + ["1"] * (3 - len(name.split(".")))
        ips = [".".join([*octets, str(number)]) for number in range(1, ips + 1)]
    return {"id": f"id-{name}", "name": name, "ips": list(ips), **changes}
