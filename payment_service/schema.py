"""The collections of the payment service, checked at every start and by `ordersaga doctor`."""

from payment_service import payments
from payment_service.funds import bank, idempotency
from payment_service.funds import payments as fund_payments
from payment_service.gateways import factory, simulated
from payment_service.ledger import ledger, orphaned_sessions
from shared import audit_log
from shared.pausing import records as pauses
from shared.schema import CollectionSchema

SCHEMA = {
    payments.COLLECTION: payments.SCHEMA,
    ledger.ACCOUNTS: ledger.ACCOUNTS_SCHEMA,
    ledger.ENTRIES: ledger.ENTRIES_SCHEMA,
    fund_payments.COLLECTION: fund_payments.SCHEMA,
    bank.TRANSFERS: bank.TRANSFERS_SCHEMA,
    idempotency.COLLECTION: idempotency.SCHEMA,
    orphaned_sessions.COLLECTION: CollectionSchema(),
    simulated.COLLECTION: CollectionSchema(),
    factory.STRIPE_INTENTS: CollectionSchema(),
    pauses.COLLECTION: pauses.SCHEMA,
    audit_log.COLLECTION: audit_log.SCHEMA,
}
