"""The seam to who sells the servers: what a provider can do, in our words. A second provider is one more module.

What a provider says is data; that it says nothing usable is a ProviderError. After one of `buy` nobody knows whether a
server was sold: only looking at the provider's free addresses tells, and after an UnansweredError not even that, until
the provider cannot be at it any more.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol


class ProviderError(Exception):
    """The provider gave no usable answer: refused the connection, took too long, or said something else.

    The text is for operators. It never holds a part of an answer, which may contain a password.
    """


class UnansweredError(ProviderError):
    """The request left and no answer came back: the provider may still be at it.

    Not for a connection that was refused (nothing has left), nor for an answer that makes no sense (it is done).
    """


@dataclass(frozen=True, slots=True)
class Package:
    """A package of addresses as the provider lists it; `ips` are the free ones, `ipv4` how many it says there are."""

    package_id: str
    name: str
    status: str
    ipv4: int
    ips: tuple[str, ...]

    @property
    def active(self) -> bool:
        """Whether the provider sells from it."""
        return self.status.lower() == "active"


@dataclass(frozen=True, slots=True)
class Access:
    """How to get into a server that was sold."""

    ip: str
    username: str
    password: str
    os: str | None = None
    expires_at: str | None = None

    def __repr__(self) -> str:
        """Leave the credentials out: what is printed ends in a log."""
        return f"Access(ip={self.ip!r})"


class Provider(Protocol):
    """Who sells servers. Every call raises ProviderError when the provider gives no usable answer in time."""

    async def packages(self) -> Sequence[Package]:
        """List what is for sale at this moment."""

    async def buy(self, ip: str, ram: int | None, *, before_sending: Callable[[], None]) -> str:
        """Buy the server with that address and so many MB of memory; returns the IPv4 that was assigned.

        It may differ from the one asked for. `before_sending` is called at the last moment before the request
        leaves; what it raises stops the call and is raised here.
        """

    async def access(self, ip: str) -> Access | None:
        """Return how to get into the server with that address; None if the provider has sold no such server."""

    async def close(self) -> None:
        """Close the connections."""
