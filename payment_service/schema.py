"""The collections of the payment service, which are checked when it starts and by `ordersaga doctor`."""

from payment_service import (
    abandoned,
    bank,
    fund_payments,
    idempotency,
    ledger,
    payments,
    simulated_gateway,
    stripe_gateway,
)
from shared.schema import CollectionSchema

SCHEMA = {
    payments.COLLECTION: payments.SCHEMA,
    ledger.ACCOUNTS: ledger.ACCOUNTS_SCHEMA,
    ledger.ENTRIES: ledger.ENTRIES_SCHEMA,
    fund_payments.COLLECTION: fund_payments.SCHEMA,
    bank.TRANSFERS: bank.TRANSFERS_SCHEMA,
    idempotency.COLLECTION: idempotency.SCHEMA,
    abandoned.COLLECTION: CollectionSchema(),
    simulated_gateway.COLLECTION: CollectionSchema(),
    stripe_gateway.COLLECTION: CollectionSchema(),
}
