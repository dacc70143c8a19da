"""`ordersaga accounts`: balances, statements, and the repair of a balance that differs from its postings, for people.

`books` reads; `correction` decides what a repair writes, without I/O, and `repairing` writes it; `display` shows, and
`command` is the command line's `accounts`. What an account is, and how its balance is added up again, is the audit's
knowledge: `operations.reading.chart_of_accounts` and `operations.reading.balances`.
"""
