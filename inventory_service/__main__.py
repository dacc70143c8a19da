"""Puts the inventory service together: `python -m inventory_service`."""

from inventory_service.api import create_router
from inventory_service.handlers import handlers
from inventory_service.pending_moves import PendingMoves
from inventory_service.products import Products
from inventory_service.releaser import Releaser
from inventory_service.reservation_processor import ReservationProcessor
from inventory_service.reservations import Reservations
from inventory_service.schema import SCHEMA
from inventory_service.settings import InventorySettings
from inventory_service.slot_assigner import SlotAssigner
from inventory_service.slots import SlotRules, Slots
from inventory_service.slots_api import create_slots_router
from inventory_service.stock_items import StockItems
from shared.clock import utc_now
from shared.service import Connections, Definition, Parts, run
from shared.topology import INVENTORY_INBOX

DEFINITION = Definition(
    name="inventory",
    description="Holds stock for orders, all that each asks for or nothing",
    database="inventory",
    inbox=INVENTORY_INBOX,
    port=3009,
)


def assemble(settings: InventorySettings, connections: Connections) -> Parts:
    """Wire the parts to the connections."""
    products = Products(connections.database, utc_now)
    resources = StockItems(connections.database, utc_now)
    reservations = Reservations(connections.database, utc_now)
    rules = SlotRules(connections.database, utc_now)
    marks = PendingMoves(
        resources, reservations, utc_now, idle=settings.mark_flush_seconds, sweep_interval=settings.mark_sweep_seconds
    )
    reserving = ReservationProcessor(resources, reservations, rules, marks, utc_now, connections.reach)
    releasing = Releaser(resources, reservations, marks, utc_now, connections.reach)
    router = create_router(products, reservations)
    slots = Slots(connections.database, rules, utc_now)
    router.include_router(create_slots_router(rules, slots, SlotAssigner(reservations, reserving, releasing)))
    return Parts(
        handlers=handlers(reserving, releasing),
        router=router,
        collections=SCHEMA,
        background=(marks.flush, marks.sweep),
        drain=(marks.drain,),
    )


def main() -> None:
    """Run the service."""
    run(DEFINITION, InventorySettings, assemble)


if __name__ == "__main__":
    main()
