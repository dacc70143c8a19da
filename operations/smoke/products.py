"""The products of smoke tests, which are used again: each by one run at a time, and off sale in between.

Why it is off sale names the run that used it last. The next run takes it by adding units under a key with that reason:
of several runs that try at the same time, one is the first to use the key.
"""

from operations.smoke.calls import Calls
from shared.services import INVENTORY

NAMES = tuple(f"ordersaga-smoke-test-{number}" for number in range(1, 10))
PURPOSE = "only for ordersaga smoke"


async def take_product(calls: Calls, run: str, units: int) -> str:
    """Take a product for this run, with these units; a new one if other runs have all."""
    for name in NAMES:
        if await _is_taken(calls, name, units):
            return name
    own = f"ordersaga-{run}"
    await _is_taken(calls, own, units)
    return own


async def _is_taken(calls: Calls, name: str, units: int) -> bool:
    found = await calls.find(INVENTORY.name, f"/products/{name}")
    if found is None:
        await calls.send("PUT", INVENTORY.name, f"/products/{name}", {"kind": "goods"})
    elif found["onSale"] or not str(found["offSaleReason"]).startswith(PURPOSE):
        return False
    key = f"{name} {found['offSaleReason'] if found else 'is new'}"
    return await calls.is_first(INVENTORY.name, f"/inventory/{name}/restock", {"quantity": units}, key=key)


async def put_on_sale(calls: Calls, product: str) -> None:
    """Put a product that was taken on sale."""
    await calls.send("PATCH", INVENTORY.name, f"/products/{product}", {"onSale": True})


async def give_back(calls: Calls, product: str, run: str) -> None:
    """Leave a product without units and off sale, for the next run."""
    off = {"onSale": False, "reason": f"{PURPOSE}: last by {run}"}
    await calls.send("PUT", INVENTORY.name, f"/inventory/{product}", {"quantity": 0})
    await calls.send("PATCH", INVENTORY.name, f"/products/{product}", off)
