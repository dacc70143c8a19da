"""Provisioning: buys the server that an order asks for, from the package ordered, once.

Owns the database `<prefix>_provisioning` (jobs, locks, addresses, packages).
Listens to provisioning.requested and provisioning.cancel on provisioning.inbox.
Sends provisioning.progress, provisioning.completed and provisioning.failed; package.low_ips for anyone.
"""
