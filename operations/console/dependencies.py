"""What the console's pages are put together from."""

from dataclasses import dataclass

from pymongo import AsyncMongoClient

from operations.console.upstream import Services
from shared.clock import Clock, utc_now
from shared.database import Collection as Records
from shared.database import Database, Document


@dataclass(frozen=True, slots=True)
class ConsoleDependencies:
    """The servers and services that the pages are about, and who may look at them.

    The databases of the services are read and never written. `operator_header` is the header in which a proxy that
    authenticates names the operator, None where operators give their name themselves.
    """

    client: AsyncMongoClient[Document]
    prefix: str
    mongodb_url: str
    amqp_url: str
    services: Services
    clock: Clock = utc_now
    operator_header: str | None = None

    @property
    def operations(self) -> Database:
        """The database of operations."""
        return self.client[f"{self.prefix}_operations"]

    @property
    def orders(self) -> Records:
        """The orders as the order service keeps them."""
        return self.client[f"{self.prefix}_orders"]["orders"]

    @property
    def packages(self) -> Records:
        """What provisioning has last seen of each package."""
        return self.client[f"{self.prefix}_provisioning"]["packages"]
