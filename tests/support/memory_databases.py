"""Databases in memory for tests that run over both: those of one name are one, as several clients see it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from shared.clock import utc_now
from shared.database import Database
from shared.memory_database import MemoryDatabase

MONGODB = "mongodb"
MEMORY = "memory"
"""Stands in the place of a driver, and of the URL of a MongoDB."""

_open: dict[str, tuple[MemoryDatabase, int]] = {}


@asynccontextmanager
async def memory_connected(name: str) -> AsyncIterator[Database]:
    """Open a separate connection to the database of this name, which exists while any is open."""
    database, users = _open.get(name) or (MemoryDatabase(name, clock=utc_now), 0)
    _open[name] = database, users + 1
    try:
        yield database.connected().as_database()
    finally:
        database, users = _open[name]
        if users == 1:
            del _open[name]
        else:
            _open[name] = database, users - 1
