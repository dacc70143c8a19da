"""The dependencies of the console's pages."""

from dataclasses import dataclass

from pymongo import AsyncMongoClient

from operations.console.upstream import Services
from shared.clock import Clock, utc_now
from shared.database import Collection, Database, Document
from shared.services import CONSOLE, ORDER, PROVISIONING


@dataclass(frozen=True, slots=True)
class ConsoleDependencies:
    """The servers and services behind the pages.

    The databases of the services are only read. `operator_header` is the header in which an authenticating proxy sends
    the operator's name, None if operators enter their name themselves.
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
        return self.client[CONSOLE.database_in(self.prefix)]

    @property
    def orders(self) -> Collection:
        """The orders of the order service."""
        return self.client[ORDER.database_in(self.prefix)]["orders"]

    @property
    def packages(self) -> Collection:
        """The packages as last seen by the provisioning service."""
        return self.client[PROVISIONING.database_in(self.prefix)]["packages"]
