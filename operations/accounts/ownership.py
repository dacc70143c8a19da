"""Gives records of the funds from before there were owners to an owner."""

from typing import NamedTuple

from pymongo import AsyncMongoClient
from pymongo.write_concern import WriteConcern

from operations.reading.driver_errors import unreachable_unless_done
from shared.database import Collection, Document
from shared.services import PAYMENT

_WITHOUT_OWNER: Document = {"ownerId": {"$exists": False}}


class Unowned(NamedTuple):
    """How many retainers, invoices and payments outside of orders have no owner, or had none."""

    retainers: int
    invoices: int
    payments: int

    def in_words(self) -> str:
        """Return the numbers for people."""
        return f"{self.retainers:,} retainers, {self.invoices:,} invoices and {self.payments:,} payments"


class Ownership:
    """The owners of the funds of a stack, of one client or of all."""

    def __init__(self, client: AsyncMongoClient[Document], database_prefix: str, client_id: str | None) -> None:
        database = client.get_database(PAYMENT.database_in(database_prefix), write_concern=WriteConcern("majority"))
        of_client: Document = {} if client_id is None else {"clientId": client_id}
        of_customer: Document = {} if client_id is None else {"customerId": client_id}
        self._parts: tuple[tuple[Collection, Document], ...] = (
            (database["accounts"], {"kind": "retainer"} | of_client | _WITHOUT_OWNER),
            (database["accounts"], {"kind": "invoice"} | of_client | _WITHOUT_OWNER),
            (database["fund_payments"], of_customer | _WITHOUT_OWNER),
        )

    async def count(self) -> Unowned:
        """Count the records without an owner. Raises UnreachableError when MongoDB does not answer."""
        with unreachable_unless_done("the ownership"):
            return Unowned(*[await records.count_documents(query) for records, query in self._parts])

    async def assign(self, owner: str) -> Unowned:
        """Give all of them to the owner, and return how many; a record that has an owner keeps it.

        Raises UnreachableError when MongoDB does not answer; what was not done then, the next call does.
        """
        given = {"$set": {"ownerId": owner}}
        with unreachable_unless_done("the ownership"):
            return Unowned(
                *[(await records.update_many(query, given)).modified_count for records, query in self._parts]
            )
