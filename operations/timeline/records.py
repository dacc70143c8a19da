"""Reads everything that the services have recorded about one order, apart from credentials and card tokens."""

import asyncio

from pymongo import AsyncMongoClient

from operations.timeline.timeline import Document, TimelineRecords
from shared.services import CONSOLE, INVENTORY, ORDER, PAYMENT, PROVISIONING

MOST_LETTERS = 100
"""The newest dead letters of an order that are read."""


async def read_records(client: AsyncMongoClient[Document], prefix: str, order_id: str) -> TimelineRecords:
    """Read the records of an order, with None for those that do not exist. Lets the driver's errors out."""
    orders, inventory, payments, provisioning, operations = (
        client[service.database_in(prefix)] for service in (ORDER, INVENTORY, PAYMENT, PROVISIONING, CONSOLE)
    )
    order, reservation, payment, charge, job, letters = await asyncio.gather(
        orders["orders"].find_one({"_id": order_id}, {"payment.token": False}),
        inventory["reservations"].find_one({"_id": order_id}),
        payments["payments"].find_one({"_id": order_id}, {"token": False}),
        payments["gateway_charges"].find_one({"_id": order_id}, {"token": False}),
        provisioning["jobs"].find_one({"_id": order_id}, {"credentials": False}),
        operations["dead_letters"]
        .find({"orderId": order_id}, {"body": False, "bodyText": False})
        .sort("lastFailedAt", -1)
        .limit(MOST_LETTERS)
        .to_list(None),
    )
    return TimelineRecords(order_id, order, reservation, payment, charge, job, tuple(letters))
