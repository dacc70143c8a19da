"""Payments: charge each order once, by card or from a retainer, and return the money of an order that fails.
Also keeps the funds in double entry: retainers, invoices, customers' payments, bank accounts and transfers.

Owns the database `<prefix>_payments` (payments, accounts, entries, fund_payments, bank_transfers, idempotency,
transaction_sessions, and the card gateway's records: gateway_charges or stripe_intents).
Listens to order.created and payment.refund on payment.inbox.
Sends payment.processed, payment.failed and payment.refunded.

The modules here pay the orders of the saga; begin with `lifecycle`. Below them are three rooms: `gateways` (cards),
`ledger` (the books) and `funds` (the HTTP API over the books). Imports run only downward; `lint-imports` checks it.
"""
