"""The order of writes must not be that of a set, which differs between processes: a seed of the simulation would not
repeat its run."""

import pytest

from inventory_service.hold_limits import HoldLimits
from inventory_service.pending_moves import PendingMoves
from inventory_service.releaser import Releaser
from inventory_service.reservations import Reservations
from inventory_service.stock_items import StockItems
from shared.clock import utc_now
from shared.contracts import ReleaseStock
from shared.failpoints import nothing_fails
from shared.memory_database import MemoryDatabase
from tests.support.virtual_time import run_in_virtual_time

IDS = [f"order-{number:02}" for number in range(40)]


@pytest.mark.parametrize("by", ["release", "sweep", "limit"])
def test_reservations_that_were_never_made_are_refused_in_the_order_of_their_ids(by: str) -> None:
    stored = MemoryDatabase("inventory", clock=utc_now)
    database = stored.as_database()
    items, reservations = StockItems(database, utc_now), Reservations(database, utc_now)
    moves = PendingMoves(items, reservations, utc_now, idle=1, sweep_interval=60)

    async def refuse() -> None:
        if by == "release":
            commands = [ReleaseStock(order_id=order_id, items=()) for order_id in IDS]
            await Releaser(items, reservations, moves, utc_now, nothing_fails).release(commands)
        elif by == "sweep":
            for _ in range(2):
                await moves._abandon({*IDS})
        else:
            await HoldLimits(database, reservations, utc_now, 1)._close({*IDS})

    run_in_virtual_time(refuse())
    assert [each["_id"] for each in stored.documents("reservations")] == IDS
