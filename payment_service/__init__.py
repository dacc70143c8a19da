"""Payments: charges an order once, by card or from a retainer, and returns the money of one that does not go through.
Keeps the books of funds: retainers, invoices, payments, bank accounts and transfers, double-entry.

Owns the database `<prefix>_payments` (payments, accounts, entries, fund_payments, bank_transfers, idempotency,
transaction_sessions, and the card gateway's records: gateway_charges or stripe_intents).
Listens to order.created and payment.refund on payment.inbox.
Sends payment.processed, payment.failed and payment.refunded.
"""
