"""The books, in double entry: accounts with balances, and a journal whose entries sum to zero.

Begin with `journal_entries`, one pure function per business operation, over the accounts of `chart_of_accounts`.
`ledger` posts the entries to MongoDB, in the transactions of `transactions`; `orphaned_sessions` ends those that a
killed process left open. `refusals` has the errors for what the books do not allow.
"""
