"""The checks of `ordersaga audit` over the databases alone, for tests without a broker to ask."""

from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from typing import Any

from pymongo import AsyncMongoClient

from operations.audit import Violation, holds, orders, slots, stock
from operations.audit.journal import Journal
from operations.audit.ledger import LedgerPass
from operations.audit.service_databases import ServiceDatabases
from shared.clock import utc_now

PATIENCE = timedelta(minutes=5)
"""Far beyond all that the audit waits for: what is not done when a test looks, counts as overdue."""


async def violations(mongodb_url: str, database_prefix: str) -> list[Violation]:
    """Return what the audit would find in these databases, if nothing changed for another five minutes."""
    now = utc_now() + PATIENCE
    async with AsyncMongoClient[dict[str, Any]](mongodb_url, tz_aware=True) as client:
        databases = ServiceDatabases(client, database_prefix)
        found = [violation async for violation in _of_inventory(databases, now)]
        async for page in databases.orders():
            found += [violation for records in page for violation in orders.judge(records, now)]
        found += [violation async for violation in LedgerPass(Journal(client, database_prefix)).violations()]
    return found


async def _of_inventory(databases: ServiceDatabases, now: datetime) -> AsyncIterator[Violation]:
    async for item in databases.stock():
        for violation in slots.judge(item, now) if item.is_slot else stock.judge(item, now):
            yield violation
    async for page in databases.holds():
        for hold in page:
            for violation in holds.judge(hold, now):
                yield violation
