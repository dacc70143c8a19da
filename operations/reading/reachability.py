"""Checks whether MongoDB or RabbitMQ answers at a URL."""

import asyncio
from typing import Any

import aio_pika
import pymongo
import pymongo.errors

from shared.bus.amqp.connecting import connect
from shared.database import with_our_tls
from shared.outage_words import with_detail

TIMEOUT_SECONDS = 3.0


async def amqp_missing(url: str) -> str | None:
    """Return None if a connection can be opened, else the reason in one line. Never raises."""
    try:
        async with asyncio.timeout(TIMEOUT_SECONDS):
            connection = await connect(url)
            await connection.close()
    except (OSError, TimeoutError, ValueError, aio_pika.exceptions.AMQPError) as error:
        return f"does not answer: {with_detail(error)}"
    return None


async def mongodb_missing(url: str, *, is_member: bool = False) -> str | None:
    """Return None if there is a primary that takes writes, else the reason in one line. Never raises.

    If the URL leads to one member of a replica set, it is enough that it follows a primary.
    """
    # The synchronous client: the asynchronous one leaves a socket open if it is closed while connecting.
    return await asyncio.to_thread(_mongodb_missing, url, is_member)


def _mongodb_missing(url: str, is_member: bool) -> str | None:
    try:
        client: pymongo.MongoClient[dict[str, Any]] = pymongo.MongoClient(
            url, connect=False, serverSelectionTimeoutMS=int(TIMEOUT_SECONDS * 1000)
        )
        # An operation that waits for this answer may take an hour, and the driver takes its limit from there.
        with with_our_tls(client, url), pymongo.timeout(TIMEOUT_SECONDS):
            hello = client.admin.command("hello")
    except pymongo.errors.PyMongoError as error:
        return f"does not answer: {with_detail(error)}"
    if hello.get("isWritablePrimary") or (is_member and hello.get("secondary") and hello.get("primary")):
        return None
    return "has no primary that takes writes"
