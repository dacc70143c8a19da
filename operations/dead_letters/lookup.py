"""Looks up recorded dead letters, and the orders that they are about, for the audit and the cleanup."""

from collections.abc import Iterable

from pymongo import AsyncMongoClient

from operations.dead_letters.schema import LETTERS
from operations.dead_letters.status import HANDLED, OPEN, STATUSES
from operations.reading.driver_errors import unreachable_unless_done
from shared.database import Document
from shared.services import CONSOLE


class DeadLetterLookup:
    """The recorded dead letters of a stack. Every method raises UnreachableError when MongoDB does not answer."""

    def __init__(self, client: AsyncMongoClient[Document], database_prefix: str) -> None:
        self._letters = client[CONSOLE.database_in(database_prefix)][LETTERS]

    async def count(self) -> dict[str, int]:
        """Count the letters by status."""
        with unreachable_unless_done("the count of dead letters"):
            return {status: await self._letters.count_documents({"status": status}) for status in STATUSES}

    async def count_open(self) -> int:
        """Count the letters that may still need attention."""
        with unreachable_unless_done("the count of dead letters"):
            return await self._letters.count_documents({"status": {"$in": list(OPEN)}})

    async def has_open_without_order(self) -> bool:
        """Return whether an open letter does not name its order, and so may be about any order."""
        with unreachable_unless_done("the search for dead letters"):
            without_order = {"status": {"$in": list(OPEN)}, "orderId": None}
            return await self._letters.find_one(without_order, {"_id": True}) is not None

    async def orders(self, order_ids: Iterable[str]) -> set[str]:
        """Return the orders that have a letter which was not handled."""
        with unreachable_unless_done("the search for dead letters"):
            about = {"orderId": {"$in": list(order_ids)}, "status": {"$ne": HANDLED}}
            return set(await self._letters.distinct("orderId", about))
