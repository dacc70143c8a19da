"""Repairs a balance that differs from its postings, in one transaction."""

from datetime import UTC, datetime
from typing import NamedTuple
from uuid import uuid4

from pymongo import AsyncMongoClient
from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.read_concern import ReadConcern
from pymongo.write_concern import WriteConcern

from operations.accounts.correction import Keep, UncorrectableError, correct
from operations.reading.balances import Balance, balance_of
from operations.reading.chart_of_accounts import Document
from operations.reading.driver_errors import unreachable_unless_done
from shared.services import PAYMENT


class Repair(NamedTuple):
    """A difference, and the entries that corrected it or the reason why it was not corrected."""

    balance: Balance
    entry_ids: tuple[str, ...] = ()
    refused: str | None = None

    @property
    def fixed(self) -> bool:
        """True if the balance and its postings agree now."""
        return bool(self.entry_ids)


async def repair(
    client: AsyncMongoClient[Document], database_prefix: str, account_id: str, keep: Keep, reason: str
) -> Repair | None:
    """Correct the difference between the account's balance and its postings; return None if there is none.

    Every posting changes the account's document, and so does this: a posting meanwhile makes the transaction start
    again with the new state. Raises UnreachableError when MongoDB does not answer.
    """
    database = client[PAYMENT.database_in(database_prefix)]

    async def transaction(session: AsyncClientSession) -> Repair | None:
        balance = await balance_of(database, session, account_id)
        if balance is None or balance.agrees:
            return None
        now = datetime.now(UTC)
        try:
            correction = correct(balance, keep, reason, now, iter(lambda: uuid4().hex, ""))
        except UncorrectableError as error:
            return Repair(balance, refused=str(error))
        await database["entries"].insert_many(correction.entries, session=session)
        changed = {"balance": correction.balance, "version": correction.version, "updatedAt": now}
        await database["accounts"].update_one({"_id": account_id}, {"$set": changed}, session=session)
        return Repair(balance, tuple(entry["_id"] for entry in correction.entries))

    with unreachable_unless_done("the repair"):
        async with client.start_session() as session:
            return await session.with_transaction(
                transaction, read_concern=ReadConcern("snapshot"), write_concern=WriteConcern("majority")
            )
