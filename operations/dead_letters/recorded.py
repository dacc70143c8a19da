"""Counts the dead letters that operations has recorded, and tells which orders they are about."""

from collections.abc import Iterable

from pymongo import AsyncMongoClient

from operations.dead_letters.records import LETTERS
from operations.dead_letters.status import HANDLED, OPEN, STATUSES
from operations.reading.driver_errors import unreachable_unless_done
from shared.database import Document


class RecordedLetters:
    """The letters of a stack. Every method raises UnreachableError when MongoDB does not answer."""

    def __init__(self, client: AsyncMongoClient[Document], database_prefix: str) -> None:
        self._letters = client[f"{database_prefix}_operations"][LETTERS]

    async def count(self) -> dict[str, int]:
        """How many there are, by status."""
        with unreachable_unless_done("the count of dead letters"):
            return {status: await self._letters.count_documents({"status": status}) for status in STATUSES}

    async def count_open(self) -> int:
        """How many are not over."""
        with unreachable_unless_done("the count of dead letters"):
            return await self._letters.count_documents({"status": {"$in": list(OPEN)}})

    async def may_be_anybodys(self) -> bool:
        """Whether one that is not over does not say which order it is about."""
        with unreachable_unless_done("the search for dead letters"):
            nobodys = {"status": {"$in": list(OPEN)}, "orderId": None}
            return await self._letters.find_one(nobodys, {"_id": True}) is not None

    async def orders(self, order_ids: Iterable[str]) -> set[str]:
        """Those of the orders of which a letter can be seen that was not handled."""
        with unreachable_unless_done("the search for dead letters"):
            about = {"orderId": {"$in": list(order_ids)}, "status": {"$ne": HANDLED}}
            return set(await self._letters.distinct("orderId", about))
