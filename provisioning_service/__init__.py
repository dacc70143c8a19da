"""Provisioning: buys the server that an order asks for, from the package ordered, exactly once.

Owns: jobs, locks, addresses and packages (database `provisioning`).
Listens to: provisioning.requested, provisioning.cancel (`provisioning.inbox`).
Sends: provisioning.progress, provisioning.completed, provisioning.failed; package.low_ips to anyone.
"""
