"""Funds: retainers, invoices, payments and bank accounts over the ledger, and their HTTP API."""
