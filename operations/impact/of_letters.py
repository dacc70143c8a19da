"""Whom and what a selection of dead letters concerns, for a confirmation: orders, customers and amounts."""

from typing import NamedTuple

from pymongo import AsyncMongoClient

from operations.impact.impact import Impact
from operations.impact.reading import ImpactReader
from shared.database import Document


class Concerned(NamedTuple):
    """The number of letters, and what they mean for orders and customers; the impact may be of some of them only."""

    letters: int
    impact: Impact

    @property
    def summary(self) -> str:
        """What a confirmation is about, to be compared with what is so when it comes.

        It does not change with the status of an order. If not all letters were looked at, it is their number alone:
        which of them were looked at is left to the database.
        """
        if not self.impact.complete:
            return str(self.letters)
        total = self.impact.total
        amounts = " ".join(f"{currency}:{amount}" for currency, amount in total.amounts.items())
        return f"{self.letters} {total.orders} {total.customers} {self.impact.unknown} {amounts}"


async def concerned(client: AsyncMongoClient[Document], prefix: str, query: Document) -> Concerned:
    """Return whom the letters of a query concern. Lets the driver's errors out."""
    return Concerned(*await ImpactReader(client, prefix).of_query(query))
