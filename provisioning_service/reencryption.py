"""Encrypts the stored credentials of servers again with the first key; see shared.reencryption."""

from collections.abc import AsyncIterator

from provisioning_service.credentials import Vault
from shared.database import Collection
from shared.reencryption import BATCH, Progress, Reencryption, no_progress, reencrypt_all


async def reencrypt(jobs: Collection, vault: Vault, on_progress: Progress = no_progress) -> Reencryption:
    """Encrypt all stored credentials with the first key of the vault; driver errors pass through."""

    async def replace(order_id: str, sealed: bytes, resealed: bytes) -> bool:
        query = {"_id": order_id, "credentials": sealed}
        return (await jobs.update_one(query, {"$set": {"credentials": resealed}})).modified_count == 1

    return await reencrypt_all(_stored(jobs), vault.reseal, replace, on_progress)


async def _stored(jobs: Collection) -> AsyncIterator[tuple[str, bytes]]:
    found = jobs.find({"credentials": {"$exists": True}}, {"credentials": True}).sort("_id", 1).batch_size(BATCH)
    async for job in found:
        if job["credentials"] is not None:
            yield job["_id"], job["credentials"]
