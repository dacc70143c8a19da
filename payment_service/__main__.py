"""Assembles and runs the payment service: `python -m payment_service`."""

import shared.quick_start  # noqa: F401 - first, because it makes the other imports quicker

# isort: split
from pymongo.read_concern import ReadConcern

from payment_service import payments
from payment_service.api import create_router
from payment_service.card_charger import CardCharger
from payment_service.funds import api as funds_api
from payment_service.funds.funds import open_funds
from payment_service.gateways.factory import open_gateway
from payment_service.handlers import handlers
from payment_service.ledger.ledger import Ledger
from payment_service.ledger.orphaned_sessions import OrphanedSessions
from payment_service.ledger.transactions import Transactions
from payment_service.part_refunder import PartRefunder
from payment_service.payments import Payments
from payment_service.reconciler import Reconciler
from payment_service.retainer_charger import RetainerCharger
from payment_service.schema import SCHEMA
from payment_service.settings import PaymentSettings
from shared.clock import utc_now
from shared.http import add_routes
from shared.service import Connections, Parts, run
from shared.services import PAYMENT


def assemble(settings: PaymentSettings, connections: Connections) -> Parts:
    """Wire the parts of the service to its connections."""
    # No decision and no answer may depend on a write that a failover could roll back.
    database = connections.database.with_options(read_concern=ReadConcern("majority"))
    records = Payments(database[payments.COLLECTION])
    gateway = open_gateway(settings, connections.database, utc_now)
    cards = CardCharger(
        records,
        gateway,
        timeout_seconds=settings.gateway_timeout_seconds,
        clock=utc_now,
        failpoint=connections.failpoint,
    )
    sessions = OrphanedSessions(connections.database)
    transactions = Transactions(database, on_session=sessions.register, on_unknown_outcome=sessions.mark_doubtful)
    ledger = Ledger(database, utc_now)
    retainers = RetainerCharger(records, ledger, transactions, utc_now)
    parts = PartRefunder(records, cards, retainers, clock=utc_now, failpoint=connections.failpoint)
    router = create_router(records)
    add_routes(router, funds_api.create_router(open_funds(database, ledger, transactions, utc_now)))
    reconciler = Reconciler(records, cards, retainers, parts, connections.publisher, clock=utc_now)
    return Parts(
        handlers=handlers(
            records,
            cards,
            retainers,
            parts,
            capture_on_confirm=settings.card_capture == "on_confirm",
            clock=utc_now,
            failpoint=connections.failpoint,
        ),
        router=router,
        collections=SCHEMA,
        background=(reconciler.run, sessions.run),
        drain=(gateway.drain, transactions.drain, sessions.deregister),
    )


def main() -> None:
    """Run the service."""
    run(PAYMENT, PaymentSettings, assemble)


if __name__ == "__main__":
    main()
