"""Puts the inventory service together: `python -m inventory_service`."""

from inventory_service.api import create_router
from inventory_service.handlers import handlers
from inventory_service.marks import Marks
from inventory_service.products import COLLECTION, INDEXES, Products
from inventory_service.releasing import Releasing
from inventory_service.reservations import Reservations
from inventory_service.reserving import Reserving
from inventory_service.settings import InventorySettings
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
    reservations = Reservations(connections.database, utc_now)
    marks = Marks(
        products, reservations, utc_now, idle=settings.mark_flush_seconds, sweep_interval=settings.mark_sweep_seconds
    )
    reserving = Reserving(products, reservations, marks, utc_now, connections.reach)
    releasing = Releasing(products, reservations, marks, utc_now, connections.reach)
    return Parts(
        handlers=handlers(reserving, releasing),
        router=create_router(products, reservations),
        indexes={COLLECTION: INDEXES},
        background=(marks.flush, marks.sweep),
        drain=(marks.drain,),
    )


def main() -> None:
    """Run the service."""
    run(DEFINITION, InventorySettings, assemble)


if __name__ == "__main__":
    main()
