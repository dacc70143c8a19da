"""Funds: retainers, invoices, customers' payments, and bank accounts and transfers, as an HTTP API over the ledger.

Begin with `api`, the routes, whose bodies are declared in `requests` and `views`. `retainers`, `invoices`, `payments`
and `bank` have one class each, for the operations of one kind; `funds` puts them together. `idempotency` runs every
operation once per Idempotency-Key.
"""
