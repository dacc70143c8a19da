"""Connections of a command to the provider of servers."""

import contextlib
from collections.abc import AsyncIterator

from provisioning_service.provider import Provider
from provisioning_service.smartvps import SmartVps

TIMEOUT_SECONDS = 10.0


@contextlib.asynccontextmanager
async def open_provider(url: str, username: str, password: str) -> AsyncIterator[Provider]:
    """Open a client of the provider at this URL, and close it. Its calls raise ProviderError."""
    client = SmartVps(
        url=url,
        username=username,
        password=password,
        buy_timeout=TIMEOUT_SECONDS,
        status_timeout=TIMEOUT_SECONDS,
        stock_timeout=TIMEOUT_SECONDS,
    )
    try:
        yield client
    finally:
        await client.close()
