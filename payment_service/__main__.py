"""Puts the payment service together: `python -m payment_service`."""

from pymongo.read_concern import ReadConcern

from payment_service import payments, simulated_gateway
from payment_service.api import create_router
from payment_service.charging import Charging
from payment_service.handlers import handlers
from payment_service.lookups import Lookups
from payment_service.payments import Payments
from payment_service.settings import PaymentSettings
from payment_service.simulated_gateway import SimulatedGateway
from shared.clock import utc_now
from shared.service import Connections, Definition, Parts, run
from shared.topology import PAYMENT_INBOX

DEFINITION = Definition(
    name="payment",
    description="Charges orders once, and returns the money of those that do not go through",
    database="payments",
    inbox=PAYMENT_INBOX,
    port=3010,
)


def assemble(settings: PaymentSettings, connections: Connections) -> Parts:
    """Wire the parts to the connections."""
    # A decision must not rest on a write that a failover could take back.
    majority = ReadConcern("majority")
    records = Payments(connections.database.get_collection(payments.COLLECTION, read_concern=majority))
    gateway = SimulatedGateway(
        connections.database[simulated_gateway.COLLECTION],
        failure_rate=settings.payment_failure_rate,
        clock=utc_now,
    )
    charging = Charging(
        records,
        gateway,
        timeout_seconds=settings.gateway_timeout_seconds,
        clock=utc_now,
        reach=connections.reach,
    )
    lookups = Lookups(records, charging, connections.publisher, clock=utc_now)
    return Parts(
        handlers=handlers(records, charging, clock=utc_now, reach=connections.reach),
        router=create_router(records),
        indexes={payments.COLLECTION: payments.INDEXES},
        background=(lookups.run,),
        drain=(gateway.drain,),
    )


def main() -> None:
    """Run the service."""
    run(DEFINITION, PaymentSettings, assemble)


if __name__ == "__main__":
    main()
