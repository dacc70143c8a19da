"""Sends deliveries over HTTP, to addresses of the internet only unless others are allowed."""

import asyncio
import ipaddress
import logging
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

import httpx

MAX_BODY_BYTES = 4096
"""The part of an answer's body that is read."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a request: the status that was answered and the beginning of the body, or the error."""

    status: int | None
    error: str | None
    body: str
    seconds: float


class Sender:
    """Sends requests, without following redirects."""

    def __init__(self, *, allow_private: bool, timeout: float) -> None:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=100)
        self._client = httpx.AsyncClient(timeout=timeout, follow_redirects=False, trust_env=False, limits=limits)
        self._allow_private = allow_private
        self._timeout = timeout
        for library in ("httpx", "httpcore"):  # they would log each URL
            logging.getLogger(library).setLevel(logging.WARNING)

    async def send(self, url: str, headers: Mapping[str, str], body: bytes) -> Outcome:
        """Post a body; return what came of it, also where nothing answers."""
        started = time.perf_counter()
        try:
            async with asyncio.timeout(self._timeout):
                if not self._allow_private and (refused := await _private_address(url)):
                    return Outcome(None, refused, "", time.perf_counter() - started)
                status, text = await self._post(url, headers, body)
                return Outcome(status, None, text, time.perf_counter() - started)
        except (TimeoutError, httpx.TimeoutException):
            return Outcome(None, f"No answer within {self._timeout:g} s", "", time.perf_counter() - started)
        except (OSError, httpx.HTTPError) as error:
            reason = f"{type(error).__name__}: {error}"[:300]
            return Outcome(None, reason, "", time.perf_counter() - started)

    async def _post(self, url: str, headers: Mapping[str, str], body: bytes) -> tuple[int, str]:
        async with self._client.stream("POST", url, headers=dict(headers), content=body) as answer:
            read = b""
            async for part in answer.aiter_bytes():
                read += part
                if len(read) >= MAX_BODY_BYTES:
                    break
            return answer.status_code, read[:MAX_BODY_BYTES].decode(errors="replace")

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()


async def _private_address(url: str) -> str | None:
    """Return why the host must not be connected to, None if all of its addresses are of the internet."""
    parts = urlsplit(url)
    found = await asyncio.get_running_loop().getaddrinfo(parts.hostname, parts.port or 443, type=socket.SOCK_STREAM)
    for *_, address in found:
        if not ipaddress.ip_address(address[0]).is_global:
            return f"{parts.hostname} has the address {address[0]}, which is not of the internet"
    return None
