"""Accounts: their balances and statements, and the repair of a balance that differs from its postings.

`statements` reads accounts; `correction` decides what a repair writes, without I/O, and `repair` writes it. The chart
of accounts and the sums of postings are in `operations.reading`, since the audit needs them too.
"""
