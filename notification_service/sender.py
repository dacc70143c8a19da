"""Sends deliveries over HTTP, and never to an address inside.

A name is resolved once for each connection, all its addresses are checked, and the connection is made to one of those:
a second look-up could answer differently. The certificate is that of the name. Redirects are not followed.
It uses httpcore, the part of httpx that connects, since only there the address can be chosen.
"""

import asyncio
import socket
import ssl
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http import HTTPStatus
from ipaddress import IPv4Address, IPv6Address, ip_address

import httpcore

from notification_service.addresses import host_objection, is_public
from shared.errors import OrdersagaError

MAX_BODY_BYTES = 4096
"""How much of an answer is read: enough for an error message."""
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
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=tls or ssl.create_default_context(),
            max_connections=None,
            max_keepalive_connections=MAX_IDLE_CONNECTIONS,
            keepalive_expiry=IDLE_SECONDS,
            network_backend=_CheckedBackend(resolve or self._look_up, timeout, allow_private=allow_private),
        )

    async def send(self, url: str, headers: Mapping[str, str], body: bytes) -> Outcome:
        """Post a body; return what came of it, also where nothing answers."""
        started = time.perf_counter()
        try:
            async with asyncio.timeout(self._timeout):
                status, text = await self._post(url, headers, body)
        except (httpcore.NetworkError, httpcore.ProtocolError, OSError, UnicodeError, OrdersagaError) as error:
            return Outcome(None, self._words(error), "", time.perf_counter() - started)
        is_redirect = HTTPStatus.MULTIPLE_CHOICES <= status < HTTPStatus.BAD_REQUEST
        note = f"It answered {status}, and redirects are not followed" if is_redirect else None
        return Outcome(status, note, text, time.perf_counter() - started)

    async def close(self) -> None:
        """Close the connections."""
        await self._pool.aclose()
        self._resolvers.shutdown(wait=False, cancel_futures=True)

    async def _post(self, url: str, headers: Mapping[str, str], body: bytes) -> tuple[int, str]:
        read = b""
        async with self._pool.stream("POST", url, headers=list(headers.items()), content=body) as answer:
            async for part in answer.aiter_stream():
                read += part
                if len(read) >= MAX_BODY_BYTES:
                    break
            return answer.status, read[:MAX_BODY_BYTES].decode(errors="replace")

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
            case httpcore.ConnectError() if (cause := _tls_error(error)) is not None:
                return f"The TLS handshake failed: {cause.reason or cause}"
            case httpcore.ConnectError() | OSError():
                return "The connection was refused, or the host cannot be reached"
            case _:
                return "The connection ended without a valid HTTP answer"


class _CheckedBackend(httpcore.AsyncNetworkBackend):
    """Connects to addresses that it has checked."""

    def __init__(self, resolve: Resolve, timeout: float, *, allow_private: bool) -> None:
        self._resolve = resolve
        self._timeout = timeout
        self._allow_private = allow_private
        self._backend = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - httpcore's interface
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Connect to the first address that answers. Raises AddressRefusedError if one of them is not public."""
        if (objection := host_objection(host, allow_private=self._allow_private)) is not None:
            raise AddressRefusedError(f"The host {objection}")
        addresses = await self._resolve(host, port)
        if not self._allow_private and not all(map(is_public, addresses)):
            # Which address it is stays unsaid: the name may be known only inside.
            raise AddressRefusedError("The name of the host has an address that is not public")
        failure: Exception = socket.gaierror(socket.EAI_NONAME, "no address")
        # One that does not answer must leave time for the next one, and for the request.
        share = self._timeout / (len(addresses) + 1)
        for address in addresses:
            try:
                async with asyncio.timeout(share):
                    return await self._backend.connect_tcp(str(address), port, timeout, local_address, socket_options)
            except (httpcore.ConnectError, TimeoutError) as error:
                failure = error
        raise failure

    async def sleep(self, seconds: float) -> None:
        """Wait, for httpcore's own retries."""
        await self._backend.sleep(seconds)


def _tls_error(error: BaseException | None) -> ssl.SSLError | None:
    while error is not None and not isinstance(error, ssl.SSLError):
        error = error.__cause__ or error.__context__
    return error


def _addresses(host: str, port: int) -> list[Address]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(ip_address(str(sockaddr[0]).partition("%")[0]) for *_, sockaddr in found))
