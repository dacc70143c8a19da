"""The state of the simulated provider: its packages, its sales and the faults set by tests. No I/O.

It sells like the real provider: the address that is asked for, else silently another one of the same package, else
silently one of any other active package. It refuses only when nothing is left.
"""

import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from provisioning_service.addresses import is_inside, package_key
from shared.errors import RefusalError

OUTSIDE = tuple(f"192.0.2.{number}" for number in range(1, 255))
"""Addresses for documentation (RFC 5737), sold as wrong ones when no other package has any."""
RENTED_FOR = timedelta(days=30)


class SoldOutError(RefusalError):
    """No active package has an address left."""


@dataclass(frozen=True, slots=True)
class SimulatedPackage:
    """A package of addresses; `ips` are all of them, sold or not."""

    package_id: str | int
    name: str
    ips: tuple[str, ...]
    status: str = "active"

    @property
    def active(self) -> bool:
        """True if servers are sold from it."""
        return self.status.lower() == "active"


@dataclass(frozen=True, slots=True)
class Sale:
    """A sale; `package` is the package of the address, None if it is outside of all."""

    ip: str
    package: str | None
    ram: float | None
    at: datetime


@dataclass(frozen=True, slots=True)
class SoldServer:
    """A server that was sold."""

    ip: str
    username: str
    password: str
    os: str
    expires: datetime

    def __repr__(self) -> str:
        """Leave the credentials out, because printed text may be logged."""
        return f"SoldServer(ip={self.ip!r})"


@dataclass(frozen=True, slots=True)
class BuyFaults:
    """Faults of the next calls to buy; a delay, in seconds, also applies to waiting calls."""

    fail_next: int = 0
    delay_seconds: float = 0
    wrong_ip_next: int = 0
    lose_answer_next: int = 0


@dataclass(frozen=True, slots=True)
class StatusFaults:
    """Faults of the next calls to status; a delay, in seconds, also applies to waiting calls."""

    fail_next: int = 0
    delay_seconds: float = 0


@dataclass(frozen=True, slots=True)
class CallOutcome:
    """The outcome of one call, decided when it arrives, so that faults hit the calls in their order."""

    fails: bool
    wrong_ip: bool = False
    answer_lost: bool = False


DEFAULT_PACKAGES = (
    SimulatedPackage("1", "203.0.113", tuple(f"203.0.113.{number}" for number in range(10, 20))),
    SimulatedPackage("2", "198.51.100", tuple(f"198.51.100.{number}" for number in range(20, 23))),
)
"""The packages at the start: addresses for documentation (RFC 5737)."""


class SimulatorState:
    """The simulated provider. No method awaits anything, so each call is atomic."""

    def __init__(
        self,
        packages: Sequence[SimulatedPackage] = DEFAULT_PACKAGES,
        new_password: Callable[[], str] = lambda: secrets.token_urlsafe(12),
    ) -> None:
        self._new_password = new_password
        self._free: dict[str, list[str]] = {}
        self._servers: dict[str, SoldServer] = {}
        self.purchases: list[Sale] = []
        self.buy_faults = BuyFaults()
        self.status_faults = StatusFaults()
        self.replace_packages(packages)

    def replace_packages(self, packages: Sequence[SimulatedPackage]) -> None:
        """Replace all packages; their addresses are free, even those that were sold before.

        Earlier sales stay among the purchases.
        """
        self.packages = tuple(packages)
        self._free = {package.name: list(package.ips) for package in packages}
        for package in packages:
            for ip in package.ips:
                self._servers.pop(ip, None)

    def stock(self) -> Iterator[tuple[SimulatedPackage, tuple[str, ...]]]:
        """Iterate over all packages, active or not, with their free addresses."""
        for package in self.packages:
            yield package, tuple(self._free[package.name])

    def next_buy(self) -> CallOutcome:
        """Decide the outcome of a call to buy. A call that fails has no effect and uses up no other fault."""
        faults = self.buy_faults
        if faults.fail_next:
            self.buy_faults = replace(faults, fail_next=faults.fail_next - 1)
            return CallOutcome(fails=True)
        self.buy_faults = replace(
            faults,
            wrong_ip_next=max(0, faults.wrong_ip_next - 1),
            lose_answer_next=max(0, faults.lose_answer_next - 1),
        )
        wrong, lost = faults.wrong_ip_next > 0, faults.lose_answer_next > 0
        return CallOutcome(fails=False, wrong_ip=wrong, answer_lost=lost)

    def next_status(self) -> CallOutcome:
        """Decide the outcome of a call to status."""
        faults = self.status_faults
        self.status_faults = replace(faults, fail_next=max(0, faults.fail_next - 1))
        return CallOutcome(fails=faults.fail_next > 0)

    def sell(self, asked: str, ram: float | None, at: datetime, *, wrong_ip: bool = False) -> Sale:
        """Sell a server; `asked` is an address or the name of a package.

        With `wrong_ip` the address comes from another package, or from none if no other package has one left.
        Raises SoldOutError when nothing is left.
        """
        own = self._package_of(asked)
        found = next(self._wrong(own) if wrong_ip else self._right(asked, own), None)
        if found is None:
            raise SoldOutError
        package, ip = found
        if package is not None:
            self._free[package.name].remove(ip)
        self._servers[ip] = SoldServer(ip, "root", self._new_password(), "Ubuntu 22.04", at + RENTED_FOR)
        purchase = Sale(ip, package.name if package else None, ram, at)
        self.purchases.append(purchase)
        return purchase

    def server(self, ip: str) -> SoldServer | None:
        """Return the sold server with this address, or None."""
        return self._servers.get(ip)

    def _package_of(self, asked: str) -> SimulatedPackage | None:
        listed = (package for package in self.packages if asked in package.ips)
        named = (p for p in self.packages if package_key(p.name) == package_key(asked) or is_inside(p.name, asked))
        return next(listed, None) or next(named, None)

    def _right(self, asked: str, own: SimulatedPackage | None) -> Iterator[tuple[SimulatedPackage, str]]:
        """Iterate over what may be sold, best first."""
        if own is not None and own.active:
            if asked in self._free[own.name]:
                yield own, asked
            for ip in self._free[own.name]:
                yield own, ip
        yield from self._others(own)

    def _wrong(self, own: SimulatedPackage | None) -> Iterator[tuple[SimulatedPackage | None, str]]:
        yield from self._others(own)
        known = {ip for package in self.packages for ip in package.ips}
        for ip in OUTSIDE:
            if ip not in known and ip not in self._servers:
                yield None, ip

    def _others(self, own: SimulatedPackage | None) -> Iterator[tuple[SimulatedPackage, str]]:
        for package in self.packages:
            if package.active and package is not own:
                for ip in self._free[package.name]:
                    yield package, ip
