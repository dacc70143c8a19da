"""The provider's simulator as tests need it: the real one over HTTP, with what they set and what they ask it."""

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
    """The simulator's state, which also knows how many requests have come."""

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
        """How many requests to buy have arrived, whatever becomes of them; a job says so before its request leaves."""
        return self.state.asked_to_buy

    @property
    def settings(self) -> dict[str, str]:
        """What a provisioning service needs to use it: settings by their names without the prefix."""
        return {
            "smartvps_url": self.url,
            "smartvps_username": self.username,
            "smartvps_password": self.password,
        }

    async def packages(self, packages: Sequence[dict[str, Any]]) -> None:
        """Replace all that is for sale; `package` below makes one."""
        await self._control("packages", {"packages": list(packages)})

    async def faults(self, **groups: dict[str, Any]) -> dict[str, Any]:
        """Set what goes wrong, `buy={...}` and `status={...}`; returns what is still to go wrong."""
        return await self._control("faults", groups)

    async def purchases(self) -> list[dict[str, Any]]:
        """All that was sold, in the order in which it was: ip, package, ram, at."""
        response = await self.client.get("/_control/purchases")
        assert response.status_code == 200, response.text
        sold: list[dict[str, Any]] = response.json()
        return sold

    async def free(self) -> dict[str, list[str]]:
        """The free addresses by the package's name."""
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
    """A simulator in this process, on a free port unless one is given, which ends with the context."""
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
    """A package for `Simulator.packages`: with these addresses, or so many of its own (at most 250)."""
    if isinstance(ips, int):
        octets = name.split(".") + ["1"] * (3 - len(name.split(".")))
        ips = [".".join([*octets, str(number)]) for number in range(1, ips + 1)]
    return {"id": f"id-{name}", "name": name, "ips": list(ips), **changes}
