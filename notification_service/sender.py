"""Sends deliveries over HTTP, and never to an address inside.

A name is resolved once for each connection, all its addresses are checked, and the connection is made to one of those:
a second look-up could answer differently. The certificate is that of the name. Redirects are not followed.
It uses aiohttp, whose connections are made to the addresses that its resolver returns. With httpx
nobody can choose them, and over httpcore, its part in which one can, a delivery takes four times the CPU time.
"""

import asyncio
import socket
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http import HTTPStatus
from ipaddress import IPv4Address, IPv6Address, ip_address

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from notification_service.addresses import host_objection, is_public
from shared.errors import OrdersagaError
from shared.tls import system_context

MAX_BODY_BYTES = 4096
"""How much of an answer is read: enough for an error message."""
IDLE_SECONDS = 30.0
RESOLVERS = 200
"""The most threads that look up names. A name whose server does not answer holds one, however often it is asked for."""

Address = IPv4Address | IPv6Address
Resolve = Callable[[str, int], Awaitable[list[Address]]]
"""Returns the addresses of a host. Raises OSError if there are none."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a request: the status of the answer, or why there is none, in words for the endpoint's owner."""

    status: int | None
    error: str | None
    body: str
    seconds: float


class AddressRefusedError(OrdersagaError):
    """The host of a webhook has an address that nothing is sent to."""


class Sender:
    """Sends requests, also over connections that earlier ones have left open."""

    def __init__(
        self,
        *,
        allow_private: bool,
        timeout: float,
        resolve: Resolve | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """With `allow_private`, take any address, and http as well. `timeout` is for a whole request, in seconds."""
        self._timeout = timeout
        self._lookups: dict[str, asyncio.Future[list[Address]]] = {}
        self._resolvers = ThreadPoolExecutor(RESOLVERS, thread_name_prefix="webhook-resolver")
        self._allow_private = allow_private
        self._resolver = _CheckedResolver(resolve or self._look_up, allow_private=allow_private)
        self._tls = tls or system_context()
        self._opened: aiohttp.ClientSession | None = None

    async def send(self, url: str, headers: Mapping[str, str], body: bytes) -> Outcome:
        """Post a body; return what came of it, also where nothing answers."""
        started = time.perf_counter()
        try:
            async with asyncio.timeout(self._timeout):
                status, text = await self._post(url, headers, body)
        except (aiohttp.ClientError, OSError, UnicodeError, OrdersagaError) as error:
            return Outcome(None, self._words(error), "", time.perf_counter() - started)
        is_redirect = HTTPStatus.MULTIPLE_CHOICES <= status < HTTPStatus.BAD_REQUEST
        note = f"It answered {status}, and redirects are not followed" if is_redirect else None
        return Outcome(status, note, text, time.perf_counter() - started)

    async def close(self) -> None:
        """Close the connections."""
        if self._opened is not None:
            await self._opened.close()
        self._resolvers.shutdown(wait=False, cancel_futures=True)

    def _session(self) -> aiohttp.ClientSession:
        """Return the session; it is opened at first use, because it needs a running event loop."""
        if self._opened is None:
            self._opened = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    ssl=self._tls,
                    resolver=self._resolver,
                    use_dns_cache=False,
                    limit=0,
                    keepalive_timeout=IDLE_SECONDS,
                ),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                skip_auto_headers=("accept", "accept-encoding", "user-agent"),
                timeout=aiohttp.ClientTimeout(total=None),  # `send` has one of its own
            )
        return self._opened

    async def _post(self, url: str, headers: Mapping[str, str], body: bytes) -> tuple[int, str]:
        # Addresses are checked here, names when they are resolved: the resolver is not asked about an address.
        if (objection := host_objection(URL(url).host or "", allow_private=self._allow_private)) is not None:
            raise AddressRefusedError(f"The host {objection}")
        async with self._session().post(url, headers=headers, data=body, allow_redirects=False) as answer:
            read = b""
            while len(read) < MAX_BODY_BYTES and (part := await answer.content.read(MAX_BODY_BYTES - len(read))):
                read += part
            if not answer.content.at_eof():
                answer.close()
            return answer.status, read.decode(errors="replace")

    async def _look_up(self, host: str, port: int) -> list[Address]:
        """Look a name up; a look-up that is under way serves all that ask, also those that come after a time-out."""
        if (found := self._lookups.get(host)) is None:
            loop = asyncio.get_running_loop()
            found = self._lookups[host] = loop.run_in_executor(self._resolvers, _addresses, host, port)
            found.add_done_callback(lambda ended: self._forget(host, ended))
        return await asyncio.shield(found)

    def _forget(self, host: str, ended: "asyncio.Future[list[Address]]") -> None:
        del self._lookups[host]
        if not ended.cancelled():
            ended.exception()  # it may be that nothing waits for it any more

    def _words(self, error: Exception) -> str:
        """Return what the owner of the endpoint reads about a request without an answer."""
        match error:
            case AddressRefusedError():
                return str(error)
            case TimeoutError():
                return f"No answer within {self._timeout:g} s"
            case aiohttp.ClientConnectorDNSError() | socket.gaierror() | UnicodeError() | aiohttp.InvalidURL():
                return "The name of the host was not found"
            case aiohttp.ClientSSLError(__cause__=cause):
                return f"The TLS handshake failed: {getattr(cause, 'reason', None) or cause}"
            case aiohttp.ClientConnectorError():
                return "The connection was refused, or the host cannot be reached"
            case _:
                return "The connection ended without a valid HTTP answer"


class _CheckedResolver(AbstractResolver):
    """Resolves names to addresses that it has checked."""

    def __init__(self, resolve: Resolve, *, allow_private: bool) -> None:
        self._resolve = resolve
        self._allow_private = allow_private

    async def resolve(
        self,
        host: str,
        port: int = 0,
        family: socket.AddressFamily = socket.AF_UNSPEC,  # noqa: ARG002 - aiohttp's interface
    ) -> list[ResolveResult]:
        """Return the addresses of the host. Raises AddressRefusedError if one of them is not public."""
        addresses = await self._resolve(host, port)
        if not self._allow_private and not all(map(is_public, addresses)):
            # Which address it is stays unsaid: the name may be known only inside.
            raise AddressRefusedError("The name of the host has an address that is not public")
        return [
            ResolveResult(
                hostname=host,
                host=str(address),
                port=port,
                family=socket.AF_INET if isinstance(address, IPv4Address) else socket.AF_INET6,
                proto=0,
                flags=socket.AI_NUMERICHOST,
            )
            for address in addresses
        ]

    async def close(self) -> None:
        """Do nothing: the resolver has nothing open."""


def _addresses(host: str, port: int) -> list[Address]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(ip_address(str(sockaddr[0]).partition("%")[0]) for *_, sockaddr in found))
