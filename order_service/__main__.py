"""Puts the order service together: `python -m order_service`."""

from datetime import timedelta

from pymongo.read_concern import ReadConcern

from order_service.alarms import Alarms, Patience
from order_service.api import create_router
from order_service.handlers import handlers
from order_service.intake import Intake
from order_service.orders import COLLECTION, Orders
from order_service.outbox import Outbox
from order_service.requests import Requests
from order_service.schema import SCHEMA
from order_service.settings import OrderSettings
from shared.clock import utc_now
from shared.service import Connections, Definition, Parts, run
from shared.topology import ORDER_INBOX

DEFINITION = Definition(
    name="order",
    description="Takes orders and carries each to its end",
    database="orders",
    inbox=ORDER_INBOX,
    port=3008,
)


def assemble(settings: OrderSettings, connections: Connections) -> Parts:
    """Wire the parts to the connections."""
    patience = Patience(
        saga_timeout=timedelta(seconds=settings.saga_timeout_seconds),
        failed_hold=timedelta(seconds=settings.failed_hold_seconds),
        republish_after=timedelta(seconds=settings.republish_after_seconds),
        resend_after=timedelta(seconds=settings.resend_after_seconds),
    )
    # A decision must not rest on a write that a failover could take back.
    orders = Orders(connections.database.get_collection(COLLECTION, read_concern=ReadConcern("majority")))
    # Noted well before the sweep would publish again, and late enough that most orders have moved on by then.
    outbox = Outbox(
        orders,
        connections.publisher,
        utc_now,
        note_after=settings.republish_after_seconds / 3,
        resend_after=patience.resend_after,
        reach=connections.reach,
    )
    intake = Intake(orders, outbox, patience, utc_now)
    requests = Requests(orders, outbox, patience, utc_now)
    alarms = Alarms(orders, outbox, patience, utc_now, settings.sweep_interval_seconds)
    return Parts(
        handlers=handlers(orders, patience, utc_now),
        router=create_router(orders, intake, requests),
        collections=SCHEMA,
        background=(alarms.run, outbox.note_published),
        drain=(intake.drain, outbox.drain),
    )


def main() -> None:
    """Run the service."""
    run(DEFINITION, OrderSettings, assemble)


if __name__ == "__main__":
    main()
