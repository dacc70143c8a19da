"""Figures about the deliveries to webhooks, read from the records of the notification service."""

import asyncio
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import NamedTuple

from pymongo import ASCENDING, DESCENDING

from notification_service.delivery import Status
from shared import database
from shared.database import Collection, Document

SPAN = timedelta(days=1)
"""The age of the deliveries that are counted."""
MOST = 10_000
"""The most deliveries of an endpoint that are counted in each status, so that a busy one costs no more."""

_SEARCHED = 100
"""The deliveries that are searched for the last error: the newest that failed, and the oldest that wait."""


class LastError(NamedTuple):
    """Why an attempt failed: the status that was answered, or the error without an answer."""

    at: datetime
    status: int | None
    error: str | None


class WebhookFigures(NamedTuple):
    """The deliveries of an endpoint within the last day, and its last error."""

    delivered: int
    failed: int
    pending: int
    last_error: LastError | None

    @property
    def share(self) -> float | None:
        """The share of those that were delivered in those that have ended; None if none has."""
        ended = self.delivered + self.failed
        return self.delivered / ended if ended else None


async def read_figures(
    deliveries: Collection, endpoint_ids: Iterable[str], now: datetime
) -> Mapping[str, WebhookFigures]:
    """Read the figures of some endpoints, by their ids."""
    ids = list(endpoint_ids)
    found = await asyncio.gather(*(_figures(deliveries, endpoint_id, now - SPAN) for endpoint_id in ids))
    return dict(zip(ids, found, strict=True))


async def _figures(deliveries: Collection, endpoint_id: str, since: datetime) -> WebhookFigures:
    counts = [
        deliveries.count_documents(
            {"endpointId": endpoint_id, "status": status, "createdAt": {"$gte": since}}, limit=MOST, hint="by_endpoint"
        )
        for status in (Status.DELIVERED, Status.FAILED, Status.PENDING)
    ]
    delivered, failed, pending = await asyncio.gather(*counts)
    errors = await asyncio.gather(
        _last_error(deliveries, endpoint_id, Status.FAILED, DESCENDING),
        _last_error(deliveries, endpoint_id, Status.PENDING, ASCENDING),
    )
    last = max((error for error in errors if error is not None), key=lambda error: error.at, default=None)
    return WebhookFigures(delivered, failed, pending, last)


async def _last_error(deliveries: Collection, endpoint_id: str, status: Status, order: int) -> LastError | None:
    # Those that wait are attempted in the order of their times, so the oldest have been attempted first.
    pipeline: list[Document] = [
        {"$match": {"endpointId": endpoint_id, "status": status}},
        {"$sort": {"createdAt": order, "eventId": order}},
        {"$limit": _SEARCHED},
        {"$project": {"last": {"$last": "$attempts"}}},
        {"$match": {"last": {"$exists": True}}},
        {"$sort": {"last.at": DESCENDING}},
        {"$limit": 1},
    ]
    async for row in database.aggregate(deliveries, pipeline, hint="by_endpoint"):
        last = row["last"]
        return LastError(last["at"], last.get("status"), last.get("error"))
    return None
