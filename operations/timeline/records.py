"""Reads everything that the services have recorded about one order, apart from credentials and card tokens."""

import asyncio
from collections.abc import Mapping

from pymongo import AsyncMongoClient
from pymongo.asynchronous.collection import AsyncCollection

from operations.reading.order_collections import order_collections
from operations.reading.participant_records import PARTICIPANT_RECORDS, ByParticipant
from operations.timeline.timeline import Document, TimelineRecords
from shared.services import CONSOLE

MOST_LETTERS = 100
"""The newest dead letters of an order that are read."""


async def read_records(client: AsyncMongoClient[Document], prefix: str, order_id: str) -> TimelineRecords:
    """Read the records of an order, with None for those that do not exist. Lets the driver's errors out."""
    collections = order_collections(client, prefix)
    order, by_participant, charge, job, letters = await asyncio.gather(
        collections["orders"].find_one({"_id": order_id}, {"payment.token": False}),
        _read_by_participant(collections, order_id),
        collections["charges"].find_one({"_id": order_id}, {"token": False}),
        collections["jobs"].find_one({"_id": order_id}, {"credentials": False}),
        client[CONSOLE.database_in(prefix)]["dead_letters"]
        .find({"orderId": order_id}, {"body": False, "bodyText": False})
        .sort("lastFailedAt", -1)
        .limit(MOST_LETTERS)
        .to_list(None),
    )
    return TimelineRecords(order_id, order, by_participant, charge, job, tuple(letters))


async def _read_by_participant(collections: Mapping[str, AsyncCollection[Document]], order_id: str) -> ByParticipant:
    found = await asyncio.gather(
        *(collections[row.collection].find_one({"_id": order_id}, {"token": False}) for row in PARTICIPANT_RECORDS)
    )
    records = zip(PARTICIPANT_RECORDS, found, strict=True)
    return {row.participant.name: record for row, record in records if record is not None}
