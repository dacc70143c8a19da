"""A cache of the provider's packages for the API. Jobs do not use it, they ask the provider."""

import asyncio
import time
from collections.abc import Sequence

from provisioning_service.provider import Package, Provider

CACHE_SECONDS = 5.0


class PackageCache:
    """Asks the provider at most once every 5 s, for all callers together."""

    def __init__(self, provider: Provider) -> None:
        self._provider = provider
        self._asking: asyncio.Task[Sequence[Package]] | None = None
        self._fresh_until = 0.0

    async def packages(self) -> Sequence[Package]:
        """Return the packages as listed by the provider at most 5 s ago. Raises ProviderError."""
        if self._asking is None or (self._asking.done() and time.monotonic() >= self._fresh_until):
            self._asking = asyncio.create_task(self._fetch())
        # Shielded, so that a cancelled caller does not cancel the request for the others.
        return await asyncio.shield(self._asking)

    async def _fetch(self) -> Sequence[Package]:
        self._fresh_until = 0.0  # a failure is not cached
        found = await self._provider.packages()
        self._fresh_until = time.monotonic() + CACHE_SECONDS
        return found
