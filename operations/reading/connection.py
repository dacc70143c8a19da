"""Connections of a command to the servers of a stack."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from pymongo import AsyncMongoClient

from operations.errors import UnreachableError
from operations.reading.driver_errors import unreachable_unless_done
from operations.reading.reachability import mongodb_missing
from shared.bus.rabbitmq import RabbitBus
from shared.database import Document, with_our_tls
from shared.errors import StartError
from shared.outage_words import with_detail

CONNECT_TIMEOUT_MS = 5000
BUS_SECONDS = 15.0
"""Time that a broker has to answer."""


@contextlib.asynccontextmanager
async def open_mongodb(url: str, *, purpose: str, name: str) -> AsyncIterator[AsyncMongoClient[Document]]:
    """Connect to MongoDB and close the connection; errors of its driver become UnreachableError.

    `purpose` is the work that an error prevents, `name` is the application's name in MongoDB's log.
    """
    if missing := await mongodb_missing(url):
        raise UnreachableError(f"MongoDB {missing}")
    with unreachable_unless_done(purpose):
        client = AsyncMongoClient[Document](
            url, tz_aware=True, w="majority", serverSelectionTimeoutMS=CONNECT_TIMEOUT_MS, appname=name
        )
        async with with_our_tls(client, url):
            yield client


@contextlib.asynccontextmanager
async def open_bus(url: str, queue: str | None, *, name: str, prefetch: int = 1) -> AsyncIterator[RabbitBus]:
    """Open a bus, which consumes from the queue if one is named, and close it. It declares nothing.

    Raises UnreachableError if the broker does not answer or has no such queue.
    """
    bus = RabbitBus(url, prefetch=prefetch, name=name, topology_mode="trust")
    try:
        async with asyncio.timeout(BUS_SECONDS):
            await bus.start(queue)
        yield bus
    except (TimeoutError, StartError) as error:
        reason = str(error) or bus.unhealthy_reason or "timed out"
        raise UnreachableError(f"RabbitMQ does not answer: {with_detail(reason)}") from error
    finally:
        await bus.close()
