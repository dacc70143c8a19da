"""The interface to providers of servers. A second provider is one more module that implements it.

Answers of a provider are data; an unusable answer is a ProviderError. After a ProviderError of `buy` it is unknown
whether a server was sold; only the provider's free addresses show it. After a ProviderUnansweredError they show it
only once the provider can no longer be processing the request.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from shared.errors import ExternalSystemError


class ProviderError(ExternalSystemError):
    """The provider gave no usable answer: it refused the connection, took too long or sent something unusable.

    The text is for operators. It never contains any part of an answer, which may hold a password.
    """


class ProviderUnansweredError(ProviderError):
    """The request was sent and not answered: the provider may still be processing it.

    Not raised for a refused connection (nothing was sent), nor for an unusable answer (processing has ended).
    """


@dataclass(frozen=True, slots=True)
class Package:
    """A package of addresses as the provider lists it; `ips` are the free ones, `ipv4` their stated number."""

    package_id: str
    name: str
    status: str
    ipv4: int
    ips: tuple[str, ...]

    @property
    def active(self) -> bool:
        """True if the provider sells from it."""
        return self.status.lower() == "active"


@dataclass(frozen=True, slots=True)
class Access:
    """The access to a sold server, and what the provider says about it."""

    ip: str
    username: str
    password: str
    os: str | None = None
    expires_at: str | None = None

    def __repr__(self) -> str:
        """Leave the credentials out, because printed text may be logged."""
        return f"Access(ip={self.ip!r})"


class Provider(Protocol):
    """A provider of servers. Every call raises ProviderError if there is no usable answer in time."""

    async def packages(self) -> Sequence[Package]:
        """Return the packages for sale at this moment."""

    async def buy(self, ip: str, ram: int | None, *, before_sending: Callable[[], None]) -> str:
        """Buy the server with this address and `ram` MB of memory; return the assigned IPv4.

        It may differ from the one asked for. `before_sending` is called just before the request is sent; an exception
        from it stops the call and is raised here.
        """

    async def access(self, ip: str) -> Access | None:
        """Return the access to the server with this address; None if the provider has sold no such server."""

    async def close(self) -> None:
        """Close the connections."""
