"""Encrypts the stored secrets of webhooks again with the first key; see shared.reencryption."""

from collections.abc import AsyncIterator
from datetime import datetime

from notification_service.signing_secrets import SecretVault
from shared.database import Collection
from shared.reencryption import BATCH, Progress, Reencryption, no_progress, reencrypt_all


async def reencrypt(
    endpoints: Collection, vault: SecretVault, now: datetime, on_progress: Progress = no_progress
) -> Reencryption:
    """Encrypt the secrets that sign, now or later, with the first key of the vault; driver errors pass through."""

    async def replace(endpoint_id: str, sealed: bytes, resealed: bytes) -> bool:
        query = {"_id": endpoint_id, "secrets.sealed": sealed}
        return (await endpoints.update_one(query, {"$set": {"secrets.$.sealed": resealed}})).modified_count == 1

    return await reencrypt_all(_stored(endpoints, now), vault.reseal, replace, on_progress)


async def _stored(endpoints: Collection, now: datetime) -> AsyncIterator[tuple[str, bytes]]:
    async for endpoint in (
        endpoints.find({"deletedAt": {"$exists": False}}, {"secrets": True}).sort("_id", 1).batch_size(BATCH)
    ):
        for secret in endpoint["secrets"]:
            # One that has expired stays in the record until the next is added; nothing reads it any more.
            if secret.get("expiresAt") is None or secret["expiresAt"] > now:
                yield endpoint["_id"], secret["sealed"]
