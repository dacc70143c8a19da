"""The provider of servers: the state of the real simulator, called without HTTP, with the faults of the plan.

What a call does at the provider happens there, also when the caller dies or no longer waits. A slow sale takes less
than the time-out of the call, as the real one promises.
"""

import asyncio
from collections.abc import Callable, Sequence
from contextvars import Context
from datetime import UTC, datetime

from provisioning_service.provider import Access, Package, ProviderError, ProviderUnansweredError
from provisioning_service.simulator.state import SimulatedPackage, SimulatorState, SoldOutError
from simulation import plan
from simulation.faults import Injector
from simulation.trace import Trace

PACKAGE = "103.181.91"
OTHER_PACKAGE = "198.51.100"
_LATENCY, _SLOW = 0.05, 3.0
"""Of a call, in seconds."""


class ProviderSite:
    """The provider of one world."""

    def __init__(self, injector: Injector, trace: Trace) -> None:
        passwords = iter(range(10_000))
        self.state = SimulatorState(
            [
                SimulatedPackage(name, name, tuple(f"{name}.{number}" for number in range(1, 13)))
                for name in (PACKAGE, OTHER_PACKAGE)
            ],
            new_password=lambda: f"password-{next(passwords)}",
        )
        self.sold_wrongly: set[str] = set()
        """The addresses of the sales that the fault `wrong address` has sent elsewhere."""
        self.defects: list[str] = []
        """What a service must never ask for."""
        self.injector = injector
        self.trace = trace
        self._asked: set[str] = set()
        """The addresses that are being bought."""

    def begin_sale(self, ip: str) -> None:
        """Note that an address is asked for: one that is sold, or being bought, would silently become another one."""
        if ip in self._asked or all(ip not in free for _, free in self.state.stock()):
            self.defects.append(f"provider: {ip} was asked for, which another order has bought or is buying")
        self._asked.add(ip)

    def end_sale(self, ip: str) -> None:
        """Note that the sale has taken place, or never will."""
        self._asked.discard(ip)

    def fault(self, call: str) -> str:
        """Return what goes wrong with a call of this kind now."""
        places = [place for place in plan.PROVIDER_PLACES if place.startswith(call)]
        fault = self.injector.chance(plan.PROVIDER, "provider", *places)
        return fault.place.partition(": ")[2] if fault else ""

    def sell(self, ip: str, ram: int | None, *, wrong_ip: bool) -> str:
        """Sell a server. Raises SoldOutError."""
        sold = self.state.sell(ip, ram, datetime(2026, 1, 31, tzinfo=UTC), wrong_ip=wrong_ip)
        if wrong_ip:
            self.sold_wrongly.add(sold.ip)
        self.trace.note(f"sell {sold.ip}", process="provider")
        return sold.ip


class SimulatedProvider:
    """The provider as one process sees it: a `Provider`."""

    def __init__(self, site: ProviderSite, timeout: float) -> None:
        self._site = site
        self._timeout = timeout

    async def packages(self) -> Sequence[Package]:
        """Return what is for sale."""
        await self._call(plan.STOCK)
        return [
            Package(str(each.package_id), each.name, each.status, len(free), free)
            for each, free in self._site.state.stock()
        ]

    async def buy(self, ip: str, ram: int | None, *, before_sending: Callable[[], None]) -> str:
        """Buy a server: the sale happens at the provider, whether or not its answer arrives."""
        fault = self._site.fault(plan.SALE)
        if fault == "unreachable":
            raise ProviderError("buyvps: could not connect")
        before_sending()
        if fault == "refuses":
            await asyncio.sleep(_LATENCY)
            raise ProviderError("buyvps: answered 500")
        if fault == "fails before the sale":
            await asyncio.sleep(_LATENCY)
            raise ProviderUnansweredError("buyvps: the connection broke")
        self._site.begin_sale(ip)
        loop = asyncio.get_running_loop()
        sold: asyncio.Future[str] = loop.create_future()
        took = _SLOW if fault == "slow" else _LATENCY
        loop.call_later(took, self._sell, sold, ip, ram, fault == "wrong address", context=Context())
        if fault == "fails after the sale":
            await asyncio.sleep(2 * _LATENCY)
            raise ProviderUnansweredError("buyvps: the connection broke")
        try:
            async with asyncio.timeout(self._timeout):
                return await sold
        except TimeoutError:
            raise ProviderUnansweredError("buyvps: no answer in time") from None
        except SoldOutError:
            raise ProviderError("buyvps: answered 409") from None

    def _sell(self, sold: "asyncio.Future[str]", ip: str, ram: int | None, wrong_ip: bool) -> None:
        self._site.end_sale(ip)
        try:
            answer = self._site.sell(ip, ram, wrong_ip=wrong_ip)
        except SoldOutError as error:
            if not sold.done():
                sold.set_exception(error)
        else:
            if not sold.done():
                sold.set_result(answer)

    async def access(self, ip: str) -> Access | None:
        """Return the access to a server that was sold."""
        await self._call(plan.STATUS)
        server = self._site.state.server(ip)
        return None if server is None else Access(server.ip, server.username, server.password, server.os)

    async def close(self) -> None:
        """Have no connections to close."""

    async def _call(self, name: str) -> None:
        await asyncio.sleep(_LATENCY)
        if fault := self._site.fault(name):
            raise ProviderError(f"{name}: {fault}")
