"""Metrics of the stack as a whole, which no single service can count, read from its records and queues.

The gauges show the last observation. Its time is a gauge too, per source: if a source cannot be read, its gauges keep
their values, and the alert ObservationStale fires. Nothing is written, no message is consumed.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

import aiormq.exceptions
from aio_pika.abc import AbstractConnection
from prometheus_client import Counter, Gauge
from pymongo import AsyncMongoClient

from operations.audit.runs import REST_FACTOR, AuditRuns
from operations.dead_letters.status import DEAD, OPEN
from operations.notifications.records import NotificationRecords
from operations.reading.broker import QueueLevel, level_with_partitions
from operations.reading.charges import AUTHORIZED
from operations.reading.participant_records import PARTICIPANT_RECORDS
from operations.samples.sample import QueueAge
from order_service.participants import PAYMENT
from shared import database
from shared.background import ErrorLog, run_periodically
from shared.bus.amqp.connecting import connect
from shared.clock import Clock, utc_now
from shared.database import Document
from shared.errors import BusUnavailableError
from shared.services import CONSOLE, ORDER, PROVISIONING
from shared.topology import WHOLE, queues

INTERVAL_SECONDS = 15.0
"""The interval between observations: the scrape interval of Prometheus."""
TIMEOUT_SECONDS = 10.0
"""The time limit per source."""

CLOSE_SECONDS = 1.0

OPEN_STATUSES = ("PENDING", "CONFIRMED", "PROVISIONING", "COMPLETED", "CANCELLED", "FAILED")
COLLECTIONS = (
    (ORDER, "orders"),
    *((row.service, row.collection) for row in PARTICIPANT_RECORDS),
    (PROVISIONING, "jobs"),
    (CONSOLE, "dead_letters"),
)
"""Collections that grow with every order or failure, as (service, collection)."""
HOLDS = {"_id": {"$gte": "hold:", "$lt": "hold;"}}
"""Holds, open and ended: they have no order either."""
ASSIGNMENTS = {"_id": {"$gte": "assignment:", "$lt": "assignment;"}}
"""Slot assignments of other systems: they have no order, and are counted separately."""

_queue_messages = Gauge(
    "ordersaga_queue_messages",
    "Messages that wait in a queue, without those that a consumer is processing",
    ["queue"],
)
_queue_consumers = Gauge("ordersaga_queue_consumers", "Consumers of a queue", ["queue"])
_queue_age = Gauge(
    "ordersaga_queue_oldest_message_seconds",
    "Time since a queue was last observed empty, or first observed: no waiting message is older",
    ["queue"],
)
_open_orders = Gauge("ordersaga_open_orders", "Orders that are not settled", ["status"])
_open_age = Gauge(
    "ordersaga_open_order_oldest_seconds",
    "Time since the last step of the order that has been idle longest",
    ["status"],
)
_not_captured = Gauge(
    "ordersaga_orders_not_captured", "Fulfilled orders whose capture was refused, and that wait for a decision"
)
_past_deadline = Gauge("ordersaga_orders_past_deadline", "Orders that are PENDING after their deadline")
_compensations = Gauge("ordersaga_open_compensations", "Orders that are being compensated")
_compensation_age = Gauge(
    "ordersaga_open_compensation_oldest_seconds",
    "Time since the last step of the compensation that has been idle longest",
)
_records = Gauge(
    "ordersaga_records",
    "Estimated documents in a collection; assignments and holds are reservations without an order",
    ["collection"],
)
_free = Gauge("ordersaga_package_free_addresses", "Free addresses of a package as last recorded", ["package"])
_low = Gauge("ordersaga_package_low", "1 while a package has no more free addresses than the threshold", ["package"])
_lock_wait = Gauge(
    "ordersaga_lock_wait_oldest_seconds",
    "Time that the first job in a package's queue has been waiting",
    ["package"],
)
_letters = Gauge("ordersaga_dead_letters", "Recorded dead letters that are open", ["status"])
_letter_age = Gauge(
    "ordersaga_dead_letter_oldest_seconds",
    "Time since the first failure of the oldest letter that is dead",
)
_audited = Gauge("ordersaga_audit_timestamp_seconds", "Unix time at which an audit last judged the books")
_violations = Gauge("ordersaga_audit_violations", "Violations that this audit found")
_audit_interval = Gauge("ordersaga_audit_interval_seconds", "Time between two scheduled audits, 0 if there are none")
_notifications = Gauge(
    "ordersaga_notifications_failing",
    "Notifications that could not be sent within the last day, or not yet after ten minutes",
)
_observed = Gauge("ordersaga_observed_timestamp_seconds", "Unix time at which a source was last read", ["source"])
_failures = Counter("ordersaga_observation_failures_total", "Failed observations of a source", ["source"])


class Observer:
    """Observes records and queues every `interval` seconds; the databases are `<prefix>_orders` and so on."""

    def __init__(
        self,
        mongo: AsyncMongoClient[Document],
        prefix: str,
        amqp_url: str,
        *,
        clock: Clock = utc_now,
        interval: float = INTERVAL_SECONDS,
        audit_every: timedelta = timedelta(),
        partitions: int = WHOLE,
    ) -> None:
        """Observe a stack whose audits are scheduled so often; not at all if `audit_every` is 0."""
        self._mongo = mongo
        self._prefix = prefix
        self._clock = clock
        self._interval = interval
        self._audit_every = audit_every
        self._started_at = clock()
        self._queues = _Queues(amqp_url, partitions)
        self._sources: Mapping[str, Callable[[], Awaitable[None]]] = {
            "queues": self._queues.observe,
            "orders": self._observe_orders,
            "records": self._count_records,
            "provisioning": self._observe_provisioning,
            "dead_letters": self._observe_dead_letters,
            "audits": self._observe_audits,
            "notifications": self._observe_notifications,
        }
        self._errors = {source: ErrorLog(f"observing {source}") for source in self._sources}
        for source in self._sources:
            _failures.labels(source)

    async def run(self) -> None:
        """Observe until cancelled; a source that cannot be read is logged and tried again."""
        try:
            await run_periodically(self.observe, every=self._interval, name="observing")
        finally:
            await self.close()

    async def close(self) -> None:
        """Close the connection to the broker; the MongoDB client belongs to the caller."""
        await self._queues.close()

    def queue_ages(self) -> Mapping[str, QueueAge]:
        """Return for how long each queue has had messages; nothing if the last observation is too old."""
        return self._queues.ages(time.monotonic(), since=2 * self._interval + TIMEOUT_SECONDS)

    async def observe(self) -> None:
        """Observe every source once; one that is unavailable does not affect the others."""
        for source, observe in self._sources.items():
            try:
                async with asyncio.timeout(TIMEOUT_SECONDS):
                    await observe()
            except Exception as error:  # noqa: BLE001 - no fault of a source may stop the observer
                _failures.labels(source).inc()
                self._errors[source].failed(error)
            else:
                _observed.labels(source).set(time.time())
                self._errors[source].succeeded()

    async def _observe_orders(self) -> None:
        orders = self._mongo[ORDER.database_in(self._prefix)]["orders"]
        now = self._clock()
        found = [group async for group in database.aggregate(orders, _by_state(now))]
        show_orders(found, now)

    async def _count_records(self) -> None:
        for service, collection in COLLECTIONS:
            count = await self._mongo[service.database_in(self._prefix)][collection].estimated_document_count()
            if collection == "reservations":
                # Counted separately: reservations without orders would look like forged ones.
                assigned = await self._mongo[service.database_in(self._prefix)][collection].count_documents(ASSIGNMENTS)
                _records.labels("assignments").set(assigned)
                held = await self._mongo[service.database_in(self._prefix)][collection].count_documents(HOLDS)
                _records.labels("holds").set(held)
                count = max(0, count - assigned - held)
            _records.labels(collection).set(count)

    async def _observe_provisioning(self) -> None:
        records = self._mongo[PROVISIONING.database_in(self._prefix)]
        packages = await records["packages"].find({}, {"ipv4": True, "low": True}).to_list(None)
        now = self._clock()
        waits = [group async for group in database.aggregate(records["jobs"], _queues_of_packages(now))]
        show_packages(packages, waits, now)

    async def _observe_dead_letters(self) -> None:
        letters = self._mongo[CONSOLE.database_in(self._prefix)]["dead_letters"]
        counts = {status: await letters.count_documents({"status": status}) for status in OPEN}
        oldest = await letters.find_one({"status": DEAD}, {"firstFailedAt": True}, sort=[("firstFailedAt", 1)])
        for status, count in counts.items():
            _letters.labels(status).set(count)
        _letter_age.set(_age(oldest.get("firstFailedAt") if oldest else None, self._clock()))

    async def _observe_audits(self) -> None:
        last = await AuditRuns(self._mongo[CONSOLE.database_in(self._prefix)]).last(answered=True)
        # Without any audit, the first one is due as if one had ended when this process started.
        _audited.set((last["endedAt"] if last else self._started_at).timestamp())
        _violations.set(last["found"] if last else 0)
        rests = (REST_FACTOR + 1) * last["seconds"] if last else 0.0
        every = self._audit_every.total_seconds()
        _audit_interval.set(max(every, rests) if every else 0)

    async def _observe_notifications(self) -> None:
        records = NotificationRecords(self._mongo[CONSOLE.database_in(self._prefix)])
        _notifications.set(await records.count_failing(self._clock()))


def show_orders(groups: Sequence[Document], now: datetime) -> None:
    """Set the gauges of orders from the counts of those that are not settled."""
    compensating = [group for group in groups if is_compensating(group["_id"])]
    for status in OPEN_STATUSES:
        of_status = [group for group in groups if group["_id"]["status"] == status]
        _open_orders.labels(status).set(_total(of_status, "count"))
        _open_age.labels(status).set(_age(_earliest(of_status), now))
    _past_deadline.set(_total(groups, "late"))
    _not_captured.set(_total(groups, "notCaptured"))
    _compensations.set(_total(compensating, "count"))
    _compensation_age.set(_age(_earliest(compensating), now))


def is_compensating(state: Mapping[str, Any]) -> bool:
    """Return whether unsettled orders of this state are being compensated; a FAILED order holds its money at first."""
    return state["status"] == "CANCELLED" or bool(state.get("compensating"))


def show_packages(packages: Sequence[Document], waits: Sequence[Document], now: datetime) -> None:
    """Set the gauges of packages: a missing package disappears, one without a queue has a wait of 0."""
    since = {wait["_id"]: wait["since"] for wait in waits}
    for gauge in (_free, _low, _lock_wait):
        gauge.clear()
    for package in packages:
        _free.labels(package["_id"]).set(package["ipv4"])
        _low.labels(package["_id"]).set(package["low"])
        _lock_wait.labels(package["_id"]).set(0)
    for name, started in since.items():
        _lock_wait.labels(name).set(_age(started, now))


def _by_state(now: datetime) -> list[Mapping[str, Any]]:
    late = {"$and": [{"$eq": ["$status", "PENDING"]}, {"$lt": ["$deadline", now]}]}
    fulfilled = {"$or": [{"$eq": ["$fulfilment", "goods"]}, {"$eq": ["$provisioningStatus", "COMPLETED"]}]}
    held = {"$and": [{"$eq": ["$status", "FAILED"]}, {"$ne": ["$compensating", True]}]}
    not_captured = {"$and": [held, {"$eq": [f"${PAYMENT.stored_field}", AUTHORIZED]}, fulfilled]}
    return [
        {"$match": {"settled": False}},
        {
            "$group": {
                "_id": {"status": "$status", "compensating": "$compensating"},
                "count": {"$sum": 1},
                "late": {"$sum": {"$cond": [late, 1, 0]}},
                "notCaptured": {"$sum": {"$cond": [not_captured, 1, 0]}},
                "since": {"$min": "$updatedAt"},
            }
        },
    ]


def _queues_of_packages(now: datetime) -> list[Mapping[str, Any]]:
    """Return a pipeline for the queue of each package, without running jobs and those that pause between attempts."""
    queued = {"needsLock": True, "state": {"$in": ["QUEUED", "WAITING"]}, "waitingSince": {"$lte": now}}
    return [{"$match": queued}, {"$group": {"_id": "$lockKey", "since": {"$min": "$waitingSince"}}}]


def _total(groups: Sequence[Document], name: str) -> int:
    return sum(group[name] for group in groups)


def _earliest(groups: Sequence[Document]) -> datetime | None:
    return min((group["since"] for group in groups), default=None)


def _age(since: datetime | None, now: datetime) -> float:
    return max(0.0, (now - since).total_seconds()) if since is not None else 0.0


class _Queues:
    """The queues of the topology, over one connection that is reopened when it is lost."""

    def __init__(self, amqp_url: str, partitions: int) -> None:
        self._amqp_url = amqp_url
        self._partitions = partitions
        self._connection: AbstractConnection | None = None
        self._seen_empty: dict[str, float] = {}
        self._never_empty: set[str] = set()
        self._ages: tuple[float, dict[str, QueueAge]] | None = None

    def ages(self, now: float, since: float) -> Mapping[str, QueueAge]:
        """Return the ages of the last observation, nothing if it is longer ago than that."""
        return self._ages[1] if self._ages is not None and now - self._ages[0] <= since else {}

    async def observe(self) -> None:
        try:
            connection = await self._connected()
            levels = {
                queue.name: await level_with_partitions(connection, queue.name, self._partitions) for queue in queues()
            }
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
            self._connection = await connect(self._amqp_url, TIMEOUT_SECONDS)
        return self._connection

    def _show(self, levels: Mapping[str, QueueLevel | None], now: float) -> None:
        for gauge in (_queue_messages, _queue_consumers, _queue_age):
            gauge.clear()
        ages = dict[str, QueueAge]()
        for name, level in levels.items():
            if level is None or level.messages == 0:
                self._seen_empty[name] = now
                self._never_empty.discard(name)
            if level is not None:
                if name not in self._seen_empty:
                    self._seen_empty[name] = now
                    self._never_empty.add(name)
                ages[name] = QueueAge(now - self._seen_empty[name], name in self._never_empty)
                _queue_messages.labels(name).set(level.messages)
                _queue_consumers.labels(name).set(level.consumers)
                _queue_age.labels(name).set(ages[name].seconds)
        self._ages = now, ages


def _is_transient(error: BaseException) -> bool:
    """Return True if the broker is away, False if it refuses the user."""
    refused = isinstance(error, aiormq.exceptions.AuthenticationError)
    return isinstance(error, aiormq.exceptions.AMQPConnectionError | OSError) and not refused
