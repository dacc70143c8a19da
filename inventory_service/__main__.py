"""The entry point of the inventory service: `python -m inventory_service`."""

import shared.quick_start  # noqa: F401 - first, because it makes the other imports quicker

# isort: split
from functools import partial

from inventory_service.api import create_router
from inventory_service.handlers import handlers
from inventory_service.hold_limits import HoldLimits
from inventory_service.holds import Holds
from inventory_service.holds_api import create_holds_router
from inventory_service.pending_moves import PendingMoves
from inventory_service.releaser import Releaser
from inventory_service.reservation_processor import ReservationProcessor
from inventory_service.reservations import Reservations
from inventory_service.returner import Returner
from inventory_service.schema import SCHEMA
from inventory_service.settings import InventorySettings
from inventory_service.shipper import Shipper
from inventory_service.slot_assigner import SlotAssigner
from inventory_service.slots import SlotRules, Slots
from inventory_service.slots_api import create_slots_router
from inventory_service.stock_items import StockItems
from shared.clock import utc_now
from shared.http import add_routes
from shared.service import Connections, Parts, run
from shared.services import INVENTORY


def assemble(settings: InventorySettings, connections: Connections) -> Parts:
    """Build the service from its settings and connections."""
    stock_items = StockItems(connections.database, utc_now)
    reservations = Reservations(connections.database, utc_now)
    rules = SlotRules(connections.database, utc_now)
    pending_moves = PendingMoves(
        stock_items, reservations, utc_now, idle=settings.mark_flush_seconds, sweep_interval=settings.mark_sweep_seconds
    )
    processor = ReservationProcessor(stock_items, reservations, rules, pending_moves, utc_now, connections.failpoint)
    releaser = Releaser(stock_items, reservations, pending_moves, utc_now, connections.failpoint)
    shipper = Shipper(stock_items, reservations, pending_moves, connections.failpoint)
    returner = Returner(stock_items, reservations, pending_moves, connections.failpoint)
    hold_limits = HoldLimits(connections.database, reservations, utc_now, settings.max_holds_per_user)
    holds = Holds(reservations, hold_limits, processor, releaser, utc_now, connections.failpoint)
    router = create_router(stock_items, reservations)
    slots = Slots(stock_items, rules, utc_now)
    assigner = SlotAssigner(reservations, processor, releaser)
    add_routes(router, create_slots_router(rules, slots, assigner, reservations))
    add_routes(router, create_holds_router(holds, settings.max_holds_per_user))
    return Parts(
        handlers=handlers(processor, releaser, shipper, returner, holds),
        router=router,
        collections=SCHEMA,
        background=(pending_moves.flush, pending_moves.sweep, partial(holds.sweep, settings.hold_sweep_seconds)),
        drain=(pending_moves.drain,),
    )


def main() -> None:
    """Run the service."""
    run(INVENTORY, InventorySettings, assemble)


if __name__ == "__main__":
    main()
