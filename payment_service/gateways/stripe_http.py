"""How Stripe's library reaches Stripe: over httpx, with the one timeout for a request."""

import asyncio
from collections.abc import Mapping
from typing import Any

import httpx
import stripe

KEEP_ALIVE_SECONDS = 2.0
"""Idle connections are given up before servers do so: one that breaks under a charge leaves its outcome unknown."""


class HttpxTransport(stripe.HTTPClient):
    """The library's own client for httpx sends bodies in a way that httpx is about to drop, and bounds each step alone.

    `timeout_seconds` bounds a whole request. How many there are at once is for those to decide who make them.
    """

    name = "httpx"

    def __init__(self, *, timeout_seconds: float) -> None:
        super().__init__()
        self._timeout = timeout_seconds
        self._client = httpx.AsyncClient(
            timeout=None,  # noqa: S113 - bounded as a whole below
            limits=httpx.Limits(
                max_connections=None, max_keepalive_connections=20, keepalive_expiry=KEEP_ALIVE_SECONDS
            ),
        )

    async def request_async(
        self, method: str, url: str, headers: Mapping[str, str], post_data: Any = None
    ) -> tuple[bytes, int, Mapping[str, str]]:
        """Send a request and return the answer's body, status and headers; raises APIConnectionError without one."""
        try:
            async with asyncio.timeout(self._timeout):
                response = await self._client.request(method, url, headers=dict(headers), content=post_data)
        except (httpx.HTTPError, TimeoutError) as error:
            reason = f"no answer from Stripe: {type(error).__name__}"
            raise stripe.APIConnectionError(reason) from None  # type: ignore[no-untyped-call]
        return response.content, response.status_code, response.headers

    async def close_async(self) -> None:
        """Close the connections."""
        await self._client.aclose()
