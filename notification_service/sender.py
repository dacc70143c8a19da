"""Sends deliveries over HTTP, and never to an address inside.

A name is resolved once for each connection, all its addresses are checked, and the connection is made to one of those:
a second look-up could answer differently. The certificate is that of the name. Redirects are not followed.
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
from typing import NamedTuple
from urllib.parse import urlsplit

from notification_service.addresses import host_objection, is_public
from notification_service.connection import Connection, NoAnswerError
from shared.errors import OrdersagaError

MAX_IDLE_CONNECTIONS = 100
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


class _Origin(NamedTuple):
    """What connections are made to."""

    tls: bool
    host: str
    port: int


class _Idle(NamedTuple):
    """An open connection that no request uses."""

    connection: Connection
    origin: _Origin
    since: float


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
        self._allow_private = allow_private
        self._resolve = resolve or self._look_up
        self._tls = tls or ssl.create_default_context()
        self._lookups: dict[str, asyncio.Future[list[Address]]] = {}
        self._resolvers = ThreadPoolExecutor(RESOLVERS, thread_name_prefix="webhook-resolver")
        self._idle: list[_Idle] = []
        """The one that was used last comes last."""

    async def send(self, url: str, headers: Mapping[str, str], body: bytes) -> Outcome:
        """Post a body; return what came of it, also where nothing answers."""
        started = time.perf_counter()
        try:
            async with asyncio.timeout(self._timeout):
                status, text = await self._post(url, headers, body)
        except (NoAnswerError, OSError, UnicodeError, OrdersagaError) as error:
            return Outcome(None, self._words(error), "", time.perf_counter() - started)
        is_redirect = HTTPStatus.MULTIPLE_CHOICES <= status < HTTPStatus.BAD_REQUEST
        note = f"It answered {status}, and redirects are not followed" if is_redirect else None
        return Outcome(status, note, text.decode(errors="replace"), time.perf_counter() - started)

    async def close(self) -> None:
        """Close the connections."""
        while self._idle:
            self._idle.pop().connection.close()
        self._resolvers.shutdown(wait=False, cancel_futures=True)

    async def _post(self, url: str, headers: Mapping[str, str], body: bytes) -> tuple[int, bytes]:
        origin, request = _request(url, headers, body)
        connection = self._take_idle(origin) or await self._connect(origin)
        try:
            return await connection.post(request)
        finally:
            if connection.is_reusable:
                self._keep(connection, origin)
            else:
                connection.close()

    def _take_idle(self, origin: _Origin) -> Connection | None:
        self._close_old()
        for index in range(len(self._idle) - 1, -1, -1):
            if self._idle[index].origin == origin and self._idle[index].connection.is_reusable:
                return self._idle.pop(index).connection
        return None

    def _keep(self, connection: Connection, origin: _Origin) -> None:
        self._idle.append(_Idle(connection, origin, time.monotonic()))
        self._close_old()

    def _close_old(self) -> None:
        """Close what has been idle for too long, which the other side may have forgotten, and what is too many."""
        oldest = time.monotonic() - IDLE_SECONDS
        while self._idle and (self._idle[0].since < oldest or len(self._idle) > MAX_IDLE_CONNECTIONS):
            self._idle.pop(0).connection.close()

    async def _connect(self, origin: _Origin) -> Connection:
        """Connect to the first address that answers. Raises AddressRefusedError if one of them is not public."""
        if (objection := host_objection(origin.host, allow_private=self._allow_private)) is not None:
            raise AddressRefusedError(f"The host {objection}")
        addresses = await self._resolve(origin.host, origin.port)
        if not self._allow_private and not all(map(is_public, addresses)):
            # Which address it is stays unsaid: the name may be known only inside.
            raise AddressRefusedError("The name of the host has an address that is not public")
        failure: OSError = socket.gaierror(socket.EAI_NONAME, "no address")
        # One that does not answer must leave time for the next one, and for the request.
        share = self._timeout / (len(addresses) + 1)
        tls, name = (self._tls, origin.host) if origin.tls else (None, None)
        for address in addresses:
            try:
                async with asyncio.timeout(share):
                    _, connection = await asyncio.get_running_loop().create_connection(
                        Connection, str(address), origin.port, ssl=tls, server_hostname=name
                    )
            except OSError as error:
                failure = error
            else:
                return connection
        raise failure

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
            case socket.gaierror() | UnicodeError():
                return "The name of the host was not found"
            case ssl.SSLError():
                return f"The TLS handshake failed: {error.reason or error}"
            case OSError():
                return "The connection was refused, or the host cannot be reached"
            case _:
                return "The connection ended without a valid HTTP answer"


def _request(url: str, headers: Mapping[str, str], body: bytes) -> tuple[_Origin, bytes]:
    """Return where a request goes, and its bytes; the URL is one that `check_url` has accepted."""
    parts = urlsplit(url)
    tls = parts.scheme == "https"
    origin = _Origin(tls, parts.hostname or "", parts.port or (443 if tls else 80))
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    lines = [f"POST {target} HTTP/1.1", f"host: {parts.netloc.rpartition('@')[2]}", f"content-length: {len(body)}"]
    lines += (f"{name}: {value}" for name, value in headers.items())
    return origin, "\r\n".join([*lines, "", ""]).encode() + body


def _addresses(host: str, port: int) -> list[Address]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(ip_address(str(sockaddr[0]).partition("%")[0]) for *_, sockaddr in found))
