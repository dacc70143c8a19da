"""The nodes of a RabbitMQ cluster: which address to connect to next.

ORDERSAGA_AMQP_URL names one node or several, and the name of a node may have several addresses. All are tried in
random order, so that processes spread over the nodes; the one that was used last comes last.
"""

import asyncio
import random
import socket
from collections import deque
from dataclasses import dataclass

from yarl import URL

from shared.urls import split_amqp_url

CONNECT_SECONDS = 2.0
"""The time in which one of several addresses has to answer.

A stopped node accepts connections, and then says nothing.
"""


@dataclass(frozen=True, slots=True)
class Address:
    """An address of a node. `ip` is None if the name of the node could not be resolved: connecting says why."""

    url: str
    ip: str | None
    is_only: bool

    @property
    def connect_seconds(self) -> float | None:
        """The time to connect in, None if there is no other address to go to."""
        return None if self.is_only else CONNECT_SECONDS

    def __str__(self) -> str:
        """Return it as in `rabbit-1:5672 (10.0.0.7)`, without credentials."""
        is_name = self.ip not in (None, URL(self.url).host)
        return host_and_port(self.url) + (f" ({self.ip})" if is_name else "")


def host_and_port(url: str) -> str:
    """Return the host and port of a node, without credentials."""
    parts = URL(url)
    return f"{parts.host}:{parts.port or (5671 if parts.scheme == 'amqps' else 5672)}"


async def resolve(host: str) -> list[str]:
    """Return the IP addresses of a host name; raises OSError or TimeoutError."""
    async with asyncio.timeout(CONNECT_SECONDS):
        found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


class Nodes:
    """The addresses of all nodes, in rounds: each round has every address once, as its name is resolved then."""

    def __init__(self, urls: str) -> None:
        self._urls = split_amqp_url(urls)
        self._round: deque[Address] = deque()
        self._last: tuple[str, str | None] | None = None

    @property
    def is_round_over(self) -> bool:
        """Whether every address has been tried."""
        return not self._round

    async def next(self) -> Address:
        """Return the address to try next."""
        if not self._round:
            self._round.extend(await self._new_round())
        chosen = self._round.popleft()
        self._last = chosen.url, chosen.ip
        return chosen

    def start_over(self) -> None:
        """Begin a new round with the next address, because the last one could be used for a while."""
        self._round.clear()

    async def _new_round(self) -> list[Address]:
        resolved = await asyncio.gather(*(self._addresses(url) for url in self._urls))
        found = [(url, ip) for url, ips in zip(self._urls, resolved, strict=True) for ip in ips]
        random.shuffle(found)
        found.sort(key=lambda each: each == self._last)
        return [Address(url, ip, is_only=len(found) == 1) for url, ip in found]

    async def _addresses(self, url: str) -> list[str | None]:
        try:
            return [*await resolve(URL(url).host or "")] or [None]
        except (OSError, UnicodeError):
            return [None]
