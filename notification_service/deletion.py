"""Deletes the deliveries of deleted endpoints in portions, however many there are.

The request marks the endpoint, which does not exist for anybody from then on, and is answered when no process has
claimed a delivery any more: nothing is sent after the answer. A claim and the mark cannot miss one another: a worker
claims first and then looks whether the endpoint exists, the request marks first and then looks for claims.

Every process continues with what a portion has left, from the mark alone, so it does not matter where one is killed.
A delivery that is recorded too late is deleted by the worker that finds it due.
"""

import asyncio
from dataclasses import dataclass

from notification_service.deliveries import Deliveries
from notification_service.endpoints import Endpoints
from shared.background import run_periodically
from shared.clock import Clock
from shared.failpoints import WEBHOOK_DELETED, WEBHOOK_DELETING, Failpoint

PORTION = 1000
"""The deliveries that are deleted at once."""
CONTINUED_EVERY_SECONDS = 5.0
CHECKED_EVERY_SECONDS = 0.05
"""The interval between two looks for claims."""


@dataclass(frozen=True, slots=True)
class Deletion:
    """Deletes what belongs to deleted endpoints; driver errors pass through."""

    endpoints: Endpoints
    deliveries: Deliveries
    clock: Clock
    failpoint: Failpoint

    async def run(self) -> None:
        """Continue with what is left until cancelled."""
        await run_periodically(self.continue_all, every=CONTINUED_EVERY_SECONDS, name="deleting webhooks")

    async def settle(self, endpoint_id: str) -> None:
        """Wait until nothing is sent to a deleted endpoint any more, and delete a portion of its deliveries."""
        self.failpoint(WEBHOOK_DELETED)
        while await self.deliveries.has_claims(endpoint_id, self.clock()):  # noqa: ASYNC110 - mostly other processes'
            await asyncio.sleep(CHECKED_EVERY_SECONDS)
        await self._continue(endpoint_id)

    async def continue_all(self) -> bool:
        """Delete a portion of each deleted endpoint; return whether more is left that can be deleted."""
        more = [await self._continue(endpoint_id) for endpoint_id in await self.endpoints.deleted()]
        return any(more)

    async def _continue(self, endpoint_id: str) -> bool:
        if await self.deliveries.delete_some(endpoint_id, self.clock(), PORTION):
            self.failpoint(WEBHOOK_DELETING)
            return True
        if not await self.deliveries.has_claims(endpoint_id, self.clock()):
            await self.endpoints.forget(endpoint_id)
        return False
