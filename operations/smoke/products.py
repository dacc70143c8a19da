"""The products of smoke tests, which are used again: each by one run at a time, and off sale in between.

Why it is off sale names the run that used it last. The next run takes it by adding units under a key with that reason,
as many as no other run adds: the service refuses the key to all runs but the first, which it answers again and again.
So a run whose answer was lost asks once more, and knows whether the product is its own. Keys are those of their owner,
so this holds among runs whose API keys have one owner.
"""

import secrets
from typing import NamedTuple

from operations.smoke.calls import Calls, StepFailedError
from shared.services import INVENTORY

NAMES = tuple(f"ordersaga-smoke-test-{number}" for number in range(1, 10))
PURPOSE = "only for ordersaga smoke"


class _Claim(NamedTuple):
    """A product that a run tries to take, under the key that only one run can use."""

    name: str
    key: str
    is_new: bool


class ProductOfRun:
    """The product that one run takes, puts on sale and gives back."""

    def __init__(self, calls: Calls, run: str) -> None:
        self._calls = calls
        self._run = run
        self._mark = 1 + secrets.randbelow(1_000_000)
        """The units that this run adds under a key, and no other run does."""
        self._claim: _Claim | None = None

    @property
    def may_be_taken(self) -> bool:
        """True from the first request that may have changed a product for this run."""
        return self._claim is not None

    async def take(self, units: int) -> str:
        """Put a product on sale with these units, and return its name: a new one if other runs have all."""
        name = await self._taken()
        await self._calls.send("PUT", INVENTORY.name, f"/inventory/{name}", {"quantity": units})
        await self._calls.send("PATCH", INVENTORY.name, f"/products/{name}", {"onSale": True})
        return name

    async def give_back(self) -> str:
        """Leave the product without units and off sale, for the next run; say so."""
        # Once more: the run may not know the answer.
        if self._claim is None or not await self._is_first(self._claim):
            return "the product belongs to another run"
        name = self._claim.name
        off = {"onSale": False, "reason": f"{PURPOSE}: last by {self._run}"}
        await self._calls.send("PUT", INVENTORY.name, f"/inventory/{name}", {"quantity": 0})
        await self._calls.send("PATCH", INVENTORY.name, f"/products/{name}", off)
        return f"{name} has no units and is off sale"

    async def _taken(self) -> str:
        for name in NAMES:
            if await self._is_taken(name):
                return name
        own = f"ordersaga-{self._run}"
        await self._is_taken(own)
        return own

    async def _is_taken(self, name: str) -> bool:
        found = await self._calls.find(INVENTORY.name, f"/products/{name}")
        if found is not None and (found["onSale"] or not str(found["offSaleReason"]).startswith(PURPOSE)):
            return False
        reason = "is new" if found is None else found["offSaleReason"]
        # Before the requests: one of them may be carried out although its answer is lost.
        self._claim = _Claim(name, f"{name} {reason}", is_new=found is None)
        try:
            first = await self._is_first(self._claim)
        except StepFailedError as error:
            if error.without_effect and found is not None:
                self._claim = None
            raise
        if not first:
            self._claim = None
        return first

    async def _is_first(self, claim: _Claim) -> bool:
        """Claim a product; return whether this run is the first to do so, however often it does."""
        if claim.is_new:
            await self._calls.send("PUT", INVENTORY.name, f"/products/{claim.name}", {"kind": "goods"})
        path = f"/inventory/{claim.name}/restock"
        return await self._calls.is_accepted(INVENTORY.name, path, {"quantity": self._mark}, key=claim.key)
