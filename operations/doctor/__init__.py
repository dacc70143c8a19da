"""Checks of the prerequisites on this machine and of a running stack, for `ordersaga doctor`.

`machine` checks the prerequisites, `database`, `broker`, `provider` and `archive` check a running stack; each check
returns a `finding`.
"""
