"""Sends deliveries over HTTP."""

import time
from collections.abc import Mapping
from dataclasses import dataclass

import httpx

MAX_BODY_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a request."""

    status: int | None
    error: str | None
    body: str
    seconds: float


class Sender:
    """Sends requests."""

    def __init__(self, *, allow_private: bool, timeout: float) -> None:
        self._client = httpx.AsyncClient(timeout=timeout, follow_redirects=False, trust_env=False)
        self._timeout = timeout

    async def send(self, url: str, headers: Mapping[str, str], body: bytes) -> Outcome:
        """Post a body; return what came of it, also where nothing answers."""
        import asyncio

        started = time.perf_counter()
        try:
            async with (
                asyncio.timeout(self._timeout),
                self._client.stream("POST", url, headers=dict(headers), content=body) as response,
            ):
                read = b""
                async for part in response.aiter_bytes():
                    read += part
                    if len(read) >= MAX_BODY_BYTES:
                        break
                text = read[:MAX_BODY_BYTES].decode(errors="replace")
                return Outcome(response.status_code, None, text, time.perf_counter() - started)
        except (httpx.HTTPError, TimeoutError) as error:
            return Outcome(None, repr(error), "", time.perf_counter() - started)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()
