"""Provisioning: buys the server that an order asks for. Until a provider is configured, every job is refused.

Owns the database `<prefix>_provisioning` (jobs).
Listens to provisioning.requested and provisioning.cancel on provisioning.inbox.
Sends provisioning.failed.
"""
