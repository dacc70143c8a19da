"""The HTTP transport of Stripe's library: httpx, with one timeout for the whole request."""

import asyncio
from collections.abc import Mapping
from typing import Any

import httpx
import stripe

KEEP_ALIVE_SECONDS = 2.0
"""Close idle connections before the server does: one that breaks during a charge leaves its outcome unknown."""


class HttpxTransport(stripe.HTTPClient):
    """Sends the library's requests; `timeout_seconds` limits each request as a whole.

    The library's own httpx client passes bodies in a deprecated parameter and limits only the single steps of a
    request. The number of concurrent requests is up to the callers.
    """

    name = "httpx"

    def __init__(self, *, timeout_seconds: float) -> None:
        super().__init__()
        self._timeout = timeout_seconds
        self._client = httpx.AsyncClient(
            timeout=None,  # noqa: S113 - `request_async` limits the whole request
            limits=httpx.Limits(
                max_connections=None, max_keepalive_connections=20, keepalive_expiry=KEEP_ALIVE_SECONDS
            ),
        )

    async def request_async(
        self, method: str, url: str, headers: Mapping[str, str], post_data: Any = None
    ) -> tuple[bytes, int, Mapping[str, str]]:
        """Send a request; return the response's body, status and headers. Raises APIConnectionError without one."""
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
