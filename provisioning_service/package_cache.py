"""What the provider has to sell, for people who look at it. Jobs that buy ask the provider themselves."""

import asyncio
import time
from collections.abc import Sequence

from provisioning_service.provider import Package, Provider

CACHE_SECONDS = 5.0


class PackageCache:
    """Asks the provider at most once in 5 s, and for all callers together."""

    def __init__(self, provider: Provider) -> None:
        self._provider = provider
        self._asking: asyncio.Task[Sequence[Package]] | None = None
        self._fresh_until = 0.0

    async def packages(self) -> Sequence[Package]:
        """Return the packages as the provider listed them at most 5 s ago; raises ProviderError."""
        if self._asking is None or (self._asking.done() and time.monotonic() >= self._fresh_until):
            self._asking = asyncio.create_task(self._fetch())
        # Shielded: a caller that goes away must not take the answer from the others.
        return await asyncio.shield(self._asking)

    async def _fetch(self) -> Sequence[Package]:
        self._fresh_until = 0.0  # a failure is not kept
        found = await self._provider.packages()
        self._fresh_until = time.monotonic() + CACHE_SECONDS
        return found
