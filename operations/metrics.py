"""What no single service can count: how the stack as a whole stands, read from its records and its queues.

The gauges show what was found at the last look. When that was is a gauge too, by source: what could not be read keeps
its last value, and the alert ObservationStale says so. Nothing is written, no message is taken.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import aio_pika
import aiormq.exceptions
from aio_pika.abc import AbstractConnection
from prometheus_client import Counter, Gauge
from pymongo import AsyncMongoClient

from operations.dead_letters.status import DEAD, OPEN
from shared import database
from shared.background import ErrorLog, run_periodically
from shared.clock import Clock, utc_now
from shared.database import Document
from shared.errors import BusUnavailableError
from shared.topology import DEAD_LETTERS, INBOXES, RETRY_LADDER

INTERVAL_SECONDS = 15.0
"""Between two looks: what Prometheus is set to scrape at, so that no value is looked at twice for nothing."""
TIMEOUT_SECONDS = 10.0
"""What each look may take."""

CLOSE_SECONDS = 1.0

OPEN_STATUSES = ("PENDING", "PROVISIONING", "CANCELLED", "FAILED")
COLLECTIONS = (
    ("orders", "orders"),
    ("inventory", "reservations"),
    ("payments", "payments"),
    ("provisioning", "jobs"),
    ("operations", "dead_letters"),
)
"""Those that grow with every order, or with every failure: (database, collection)."""
ASSIGNMENTS = {"_id": {"$gte": "assignment:", "$lt": "assignment;"}}
"""Reservations that other systems made on delivery slots: they have no order, and are counted apart."""

_queue_messages = Gauge(
    "ordersaga_queue_messages",
    "Messages that wait in a queue; what a consumer has in hand is not among them",
    ["queue"],
)
_queue_consumers = Gauge("ordersaga_queue_consumers", "Consumers that the broker knows of a queue", ["queue"])
_queue_age = Gauge(
    "ordersaga_queue_oldest_message_seconds",
    "Time since a queue was last seen empty, or was first looked at: what waits came later",
    ["queue"],
)
_open_orders = Gauge("ordersaga_open_orders", "Orders that are not settled", ["status"])
_open_age = Gauge(
    "ordersaga_open_order_oldest_seconds",
    "Time since the last step of the order that has stood still longest",
    ["status"],
)
_past_deadline = Gauge("ordersaga_orders_past_deadline", "Orders that are PENDING though their time is over")
_compensations = Gauge("ordersaga_open_compensations", "Orders that have been given up and still hold something")
_compensation_age = Gauge(
    "ordersaga_open_compensation_oldest_seconds",
    "Time since the last step of the compensation that has stood still longest",
)
_records = Gauge(
    "ordersaga_records",
    "Documents of a collection, by its metadata; assignments are reservations without an order",
    ["collection"],
)
_free = Gauge("ordersaga_package_free_addresses", "Free addresses of a package as last recorded", ["package"])
_low = Gauge("ordersaga_package_low", "1 while a package has no more free addresses than the threshold", ["package"])
_lock_wait = Gauge(
    "ordersaga_lock_wait_oldest_seconds",
    "How long the first in the line of a package has been waiting for it",
    ["package"],
)
_letters = Gauge("ordersaga_dead_letters", "Recorded dead letters that are not done with", ["status"])
_letter_age = Gauge(
    "ordersaga_dead_letter_oldest_seconds", "Time since the first failure of the oldest letter that is dead"
)
_observed = Gauge("ordersaga_observed_timestamp_seconds", "When a source was last read, in Unix time", ["source"])
_failures = Counter("ordersaga_observation_failures_total", "Looks at a source that failed", ["source"])


class Observer:
    """Looks at records and queues every `interval` seconds; the databases are `<prefix>_orders` and so on."""

    def __init__(
        self,
        mongo: AsyncMongoClient[Document],
        prefix: str,
        amqp_url: str,
        *,
        clock: Clock = utc_now,
        interval: float = INTERVAL_SECONDS,
    ) -> None:
        self._mongo = mongo
        self._prefix = prefix
        self._clock = clock
        self._interval = interval
        self._queues = _Queues(amqp_url)
        self._sources: Mapping[str, Callable[[], Awaitable[None]]] = {
            "queues": self._queues.look,
            "orders": self._look_at_orders,
            "records": self._count_records,
            "provisioning": self._look_at_provisioning,
            "dead_letters": self._look_at_dead_letters,
        }
        self._errors = {source: ErrorLog(f"observing {source}") for source in self._sources}
        for source in self._sources:
            _failures.labels(source)

    async def run(self) -> None:
        """Look until cancelled; what cannot be read is logged and read the next time."""
        try:
            await run_periodically(self.look, every=self._interval, name="observing")
        finally:
            await self.close()

    async def close(self) -> None:
        """Close the connection to the broker; the client of the database is whoever's it was."""
        await self._queues.close()

    async def look(self) -> None:
        """Look once at every source; one that is away does not keep the others from being read."""
        for source, look in self._sources.items():
            try:
                async with asyncio.timeout(TIMEOUT_SECONDS):
                    await look()
            except Exception as error:  # noqa: BLE001 - observing outlives every fault of what it observes
                _failures.labels(source).inc()
                self._errors[source].failed(error)
            else:
                _observed.labels(source).set(time.time())
                self._errors[source].succeeded()

    async def _look_at_orders(self) -> None:
        orders = self._mongo[f"{self._prefix}_orders"]["orders"]
        now = self._clock()
        found = [group async for group in database.aggregate(orders, _by_standing(now))]
        show_orders(found, now)

    async def _count_records(self) -> None:
        for place, collection in COLLECTIONS:
            count = await self._mongo[f"{self._prefix}_{place}"][collection].estimated_document_count()
            if collection == "reservations":
                # They would look like reservations that somebody makes without orders.
                assigned = await self._mongo[f"{self._prefix}_{place}"][collection].count_documents(ASSIGNMENTS)
                _records.labels("assignments").set(assigned)
                count = max(0, count - assigned)
            _records.labels(collection).set(count)

    async def _look_at_provisioning(self) -> None:
        records = self._mongo[f"{self._prefix}_provisioning"]
        packages = await records["packages"].find({}, {"ipv4": True, "low": True}).to_list(None)
        now = self._clock()
        waits = [group async for group in database.aggregate(records["jobs"], _lines(now))]
        show_packages(packages, waits, now)

    async def _look_at_dead_letters(self) -> None:
        letters = self._mongo[f"{self._prefix}_operations"]["dead_letters"]
        counts = {status: await letters.count_documents({"status": status}) for status in OPEN}
        oldest = await letters.find_one({"status": DEAD}, {"firstFailedAt": True}, sort=[("firstFailedAt", 1)])
        for status, count in counts.items():
            _letters.labels(status).set(count)
        _letter_age.set(_age(oldest.get("firstFailedAt") if oldest else None, self._clock()))


def show_orders(groups: Sequence[Document], now: datetime) -> None:
    """Set the gauges of orders from what is counted of those that are not settled."""
    given_up = [group for group in groups if is_given_up(group["_id"])]
    for status in OPEN_STATUSES:
        of_status = [group for group in groups if group["_id"]["status"] == status]
        _open_orders.labels(status).set(_total(of_status, "count"))
        _open_age.labels(status).set(_age(_earliest(of_status), now))
    _past_deadline.set(_total(groups, "late"))
    _compensations.set(_total(given_up, "count"))
    _compensation_age.set(_age(_earliest(given_up), now))


def is_given_up(standing: Mapping[str, Any]) -> bool:
    """Whether an order that is not settled is being compensated; one that FAILED holds its money at first."""
    return standing["status"] == "CANCELLED" or bool(standing.get("compensating"))


def show_packages(packages: Sequence[Document], waits: Sequence[Document], now: datetime) -> None:
    """Set the gauges of packages; those that are gone, or for which nobody waits, disappear or stand at 0."""
    since = {wait["_id"]: wait["since"] for wait in waits}
    for gauge in (_free, _low, _lock_wait):
        gauge.clear()
    for package in packages:
        _free.labels(package["_id"]).set(package["ipv4"])
        _low.labels(package["_id"]).set(package["low"])
        _lock_wait.labels(package["_id"]).set(0)
    for name, moment in since.items():
        _lock_wait.labels(name).set(_age(moment, now))


def _by_standing(now: datetime) -> list[Mapping[str, Any]]:
    late = {"$and": [{"$eq": ["$status", "PENDING"]}, {"$lt": ["$deadline", now]}]}
    return [
        {"$match": {"settled": False}},
        {
            "$group": {
                "_id": {"status": "$status", "compensating": "$compensating"},
                "count": {"$sum": 1},
                "late": {"$sum": {"$cond": [late, 1, 0]}},
                "since": {"$min": "$updatedAt"},
            }
        },
    ]


def _lines(now: datetime) -> list[Mapping[str, Any]]:
    """Who stands in the line of a package, since when: not the one at work, nor who waits for a later attempt."""
    in_line = {"needsLock": True, "state": {"$in": ["QUEUED", "WAITING"]}, "waitingSince": {"$lte": now}}
    return [{"$match": in_line}, {"$group": {"_id": "$lockKey", "since": {"$min": "$waitingSince"}}}]


def _total(groups: Sequence[Document], name: str) -> int:
    return sum(group[name] for group in groups)


def _earliest(groups: Sequence[Document]) -> datetime | None:
    return min((group["since"] for group in groups), default=None)


def _age(since: datetime | None, now: datetime) -> float:
    return max(0.0, (now - since).total_seconds()) if since is not None else 0.0


class Level(NamedTuple):
    """What the broker says of a queue."""

    messages: int
    consumers: int


class _Queues:
    """The queues of the topology, looked at over one connection that is opened again when it is gone."""

    def __init__(self, amqp_url: str) -> None:
        self._amqp_url = amqp_url
        self._connection: AbstractConnection | None = None
        self._seen_empty: dict[str, float] = {}

    async def look(self) -> None:
        try:
            connection = await self._connected()
            names = (*INBOXES, *(delay.name for delay in RETRY_LADDER), DEAD_LETTERS)
            levels = {name: await _level(connection, name) for name in names}
        except BaseException as error:
            await self.close()
            if _is_transient(error):
                raise BusUnavailableError(f"RabbitMQ does not answer: {error}") from error
            raise
        self._show(levels, time.monotonic())

    async def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(aiormq.exceptions.AMQPError, OSError, TimeoutError):
                await asyncio.wait_for(connection.close(), CLOSE_SECONDS)

    async def _connected(self) -> AbstractConnection:
        if self._connection is None or self._connection.is_closed:
            self._connection = await aio_pika.connect(self._amqp_url, timeout=TIMEOUT_SECONDS)
        return self._connection

    def _show(self, levels: Mapping[str, Level | None], now: float) -> None:
        for gauge in (_queue_messages, _queue_consumers, _queue_age):
            gauge.clear()
        for name, level in levels.items():
            if level is None or level.messages == 0:
                self._seen_empty[name] = now
            if level is not None:
                _queue_messages.labels(name).set(level.messages)
                _queue_consumers.labels(name).set(level.consumers)
                _queue_age.labels(name).set(now - self._seen_empty.setdefault(name, now))


def _is_transient(error: BaseException) -> bool:
    """Return True if the broker is away, False if it refuses the user."""
    refused = isinstance(error, aiormq.exceptions.AuthenticationError)
    return isinstance(error, aiormq.exceptions.AMQPConnectionError | OSError) and not refused


async def _level(connection: AbstractConnection, queue: str) -> Level | None:
    """What waits in the queue; None if there is no such queue, which costs the channel that was asked over."""
    channel = await connection.channel()
    try:
        declared = (await channel.declare_queue(queue, passive=True)).declaration_result
    except aiormq.exceptions.ChannelNotFoundEntity:
        return None
    await channel.close()
    return Level(declared.message_count or 0, declared.consumer_count or 0)
