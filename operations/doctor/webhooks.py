"""Webhooks that are registered although no event reaches the service that sends them."""

import pymongo.errors

from notification_service.endpoints import COLLECTION
from operations.doctor.connection import connect
from operations.doctor.finding import Finding, ok, wrong
from shared.outage_words import with_detail
from shared.services import NOTIFICATION

SUBJECT = "webhooks"


async def check_silent_webhooks(url: str, prefix: str) -> Finding | None:
    """Check, where webhooks are off, that nobody waits for events; None if MongoDB does not answer."""
    async with connect(url) as client:
        endpoints = client[NOTIFICATION.database_in(prefix)][COLLECTION]
        try:
            waiting = await endpoints.count_documents({"enabled": True, "deletedAt": {"$exists": False}})
        except pymongo.errors.ConnectionFailure:
            return None
        except pymongo.errors.PyMongoError as error:
            return wrong(SUBJECT, f"cannot be read: {with_detail(error)}", "run `ordersaga database prepare`")
    if not waiting:
        return ok(SUBJECT, "they are off (ORDERSAGA_WEBHOOKS), and none is enabled")
    fix = "set ORDERSAGA_WEBHOOKS=on for all processes and run `ordersaga topology apply`, or delete the webhooks"
    return wrong(SUBJECT, f"they are off (ORDERSAGA_WEBHOOKS), and enabled ones wait for events: {waiting:,}", fix)
