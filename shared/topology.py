"""All exchanges, queues and bindings on the broker, and the rule that correlates messages.

    ordersaga (topic) ──routing key──▶ <service>.inbox (quorum)
                                            │ delivery limit reached (a crash loop)
                                            ▼
    ordersaga.dead-letters (fanout) ──▶ ordersaga.dead-letters (quorum), read by operations

    <service>.retry.<delay> (fanout) ──▶ <service>.retry.<delay> (quorum, fixed TTL)
              │ no such queue                    │ TTL over, routing key set to the service's own inbox
              │ (alternate exchange)             ▼
              │                  ordersaga.inboxes (direct) ──▶ <service>.inbox
              ▼                          │ no such inbox (alternate exchange)
    ordersaga.dead-letters ◀─────────────┘

    ordersaga (topic) ──order.*, package.*──▶ ordersaga.events (stream, kept by age), read from any offset

    With ORDERSAGA_PARTITIONS=N above 1, what comes by its type is divided, and what comes by a name is not:

    ordersaga (topic) ──routing key──▶ <service>.inbox.partitions (consistent hash of the order or product)
                                            ▼
                                       <service>.inbox.1 … <service>.inbox.N (quorum, single active consumer)

A retry queue forwards at least once: messages that no queue accepts stay, and 32 of them block the queue for all. So
retries return through a separate exchange, which sends what it cannot route to the dead letters. Each service has its
own retry exchanges, and the queue behind one sets the routing key: whatever is sent there, it returns to that service
only. No service may send to `ordersaga.inboxes`, and none but operations to an inbox by its name
(shared.broker_rights, docs/adr/0012-broker-users-and-topology.md).

The stream is a copy for readers outside of the saga, which works without it: it can be off, and then is not bound.
Likewise `notification.inbox`, where nobody uses webhooks.

Correlation: `correlation_id` is the order id, `type` the routing key of the contract, `message_id` is new for every
publication, and `user_id` is the sender's user, which the broker verifies. Receivers rely only on the order id in the
body. Everything is valid on RabbitMQ 3.10 and 4.x: durable quorum queues with a finite delivery limit, one TTL per
retry queue (mixed TTLs block at the head), and at-least-once dead-lettering, which requires reject-publish
(https://www.rabbitmq.com/docs/quorum-queues).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from shared import contracts as c
from shared import services

EXCHANGE = "ordersaga"
DEAD_LETTERS = "ordersaga.dead-letters"

EVENTS = "ordersaga.events"
"""The stream that keeps all events about orders and packages."""

EVENT_TYPES = tuple(
    message.routing_key for message in c.ALL_MESSAGES if message.routing_key.startswith(("order.", "package."))
)
"""The types of messages that the stream keeps."""

DEFAULT_EVENTS_RETENTION = "7D"

EVENTS_OFF = ""
"""The retention of events where the stream is off."""

EVENTS_SEGMENT_BYTES = 16 * 1024 * 1024
"""The size of the stream's files. The broker deletes whole files, and only when it begins a new one.

With RabbitMQ's default of 500 MB, a small shop would keep its events for years, whatever their retention.
"""

INBOX_EXCHANGE = "ordersaga.inboxes"
"""Routes a message to the inbox in its routing key; retries return through it, and nobody publishes to it."""

BY_QUEUE_NAME = frozenset({"", INBOX_EXCHANGE})
"""Exchanges that route to the queue in the routing key, so the key is not the type of the message."""

PROBE_EXCHANGE = "amq.fanout"
"""Where a connection tests whether the broker confirms: it is in every virtual host, and nothing is bound to it."""

HOW_TO_APPLY = "`ordersaga topology apply` creates what is missing"
"""What a message about a missing part tells its reader to do."""

HOW_TO_MIGRATE = "`ordersaga migrate` replaces a queue that differs, and keeps its messages"
"""What a message about a part with other arguments tells its reader to do."""

ORDER_INBOX = services.ORDER.inbox
INVENTORY_INBOX = services.INVENTORY.inbox
PAYMENT_INBOX = services.PAYMENT.inbox
PROVISIONING_INBOX = services.PROVISIONING.inbox
NOTIFICATION_INBOX = services.NOTIFICATION.inbox
OPERATIONS_INBOX = services.CONSOLE.inbox

INBOXES: dict[str, tuple[type[c.Message], ...]] = {
    ORDER_INBOX: (
        c.StockReserved,
        c.StockReservationFailed,
        c.StockReleased,
        c.StockShipped,
        c.StockReturned,
        c.PaymentProcessed,
        c.PaymentFailed,
        c.PaymentCaptured,
        c.PaymentCaptureFailed,
        c.PaymentRefunded,
        c.PartRefunded,
        c.PartRefundFailed,
        c.ProvisioningProgress,
        c.ProvisioningCompleted,
        c.ProvisioningFailed,
        c.ConsumerPausesChanged,
    ),
    INVENTORY_INBOX: (c.OrderCreated, c.ReleaseStock, c.ShipStock, c.ReturnStock),
    PAYMENT_INBOX: (c.OrderCreated, c.CapturePayment, c.RefundPayment, c.RefundPart),
    PROVISIONING_INBOX: (c.ProvisionServer, c.CancelProvisioning),
    NOTIFICATION_INBOX: (
        c.OrderCreated,
        c.OrderConfirmed,
        c.OrderProvisioning,
        c.OrderCompleted,
        c.OrderCancelled,
        c.OrderFailed,
        c.OrderRefunded,
        c.PackageLowIps,
    ),
    OPERATIONS_INBOX: (c.DeadLetterHandled,),
}
"""The messages of each inbox. All other messages are for anyone who binds a queue to the exchange."""

WHOLE = 1
"""The number of partitions of an inbox that is not divided."""

MOST_PARTITIONS = 64


@dataclass(frozen=True, slots=True)
class TopologyOptions:
    """What settings decide about the topology."""

    events_retention: str = EVENTS_OFF
    """For how long the stream keeps events; empty if there is none."""
    partitions: int = WHOLE
    """Into how many partitions each inbox that may have some is divided."""
    webhooks: bool = True
    """Whether events go to the inbox of the notification service, which sends them to webhooks."""


PLAIN = TopologyOptions()
"""The smallest topology: no stream of events, no partitions."""

DEFAULT_OPTIONS = TopologyOptions(DEFAULT_EVENTS_RETENTION)
"""What is decided without any setting."""


PARTITION_KEY = "x-partition-key"
"""The header that a partitioned inbox of the inventory is divided by; see `Message.partition_key`."""

_HASHED_BY: Mapping[str, Mapping[str, Any]] = {
    "order": {"hash-property": "correlation_id"},
    "product": {"hash-header": PARTITION_KEY},
}

PARTITIONED: Mapping[str, Mapping[str, Any]] = {
    service.inbox: _HASHED_BY[service.partitioned_by]
    for service in services.SERVICES.values()
    if service.partitioned_by is not None
}
"""The inboxes that ORDERSAGA_PARTITIONS divides, each with the arguments of the exchange that does."""

PARTITIONS_PLUGIN = "rabbitmq_consistent_hash_exchange"
"""The plugin of RabbitMQ that partitioned inboxes need. It comes with the broker, and is not enabled by default."""

HOW_TO_RENEW_PARTITIONS = (
    "`ordersaga topology apply` with ORDERSAGA_PARTITIONS=1 deletes partitions that differ, and then with the number "
    "declares them again, docs/broker.md"
)
"""What a message about a partition with other arguments tells its reader to do."""

PLUGIN_IS_MISSING = f"RabbitMQ lacks the plugin {PARTITIONS_PLUGIN}, which ORDERSAGA_PARTITIONS needs"
HOW_TO_ENABLE = f"`rabbitmq-plugins enable {PARTITIONS_PLUGIN}` on each node"
"""What a message about a broker without the plugin tells its reader to do."""

MAX_MESSAGE_BYTES = 1024 * 1024
"""The broker's `max_message_size`: large enough for messages that consumers reject and keep as dead letters."""

DELIVERY_LIMIT = 50
"""Deliveries of one message that may end in a crash before it becomes a dead letter: a minute of restarts."""

DEAD_LETTER_DELIVERY_LIMIT = 1_000_000_000
"""Effectively none: dead letters have no further queue, and without a limit RabbitMQ 4 drops after 20 deliveries."""


@dataclass(frozen=True, slots=True)
class RetryDelay:
    """One level of the retry ladder: its name, such as `5s`, and its delay."""

    name: str
    milliseconds: int

    def queue_of(self, inbox: str) -> str:
        """Return the name of the queue, and of its exchange, in which the messages of an inbox wait."""
        return f"{inbox.removesuffix(_INBOX)}{_RETRY}{self.name}"


_INBOX = ".inbox"
_RETRY = ".retry."

RETRY_LADDER = (
    RetryDelay("1s", 1_000),
    RetryDelay("5s", 5_000),
    RetryDelay("30s", 30_000),
    RetryDelay("2m", 120_000),
)

FORMER_RETRY_QUEUES = tuple(
    f"ordersaga.retry.{version}{level}" for version in ("", "v2.") for level in ("1s", "5s", "30s", "2m")
)
"""Retry queues of earlier releases, each with an exchange of the same name. Their messages still return."""


def retry_queues(inbox: str, ladder: tuple[RetryDelay, ...] = RETRY_LADDER) -> tuple[str, ...]:
    """Return the names of an inbox's retry queues, and of their exchanges."""
    return tuple(delay.queue_of(inbox) for delay in ladder)


def inbox_of_retry(queue: str) -> str | None:
    """Return the inbox to which the messages of a retry queue, or of its exchange, return; None for another name."""
    owner, found, _ = queue.partition(_RETRY)
    inbox = f"{owner}{_INBOX}"
    return inbox if found and inbox in INBOXES else None


def partitions_of(queue: str, partitions: int) -> tuple[str, ...]:
    """Return the names of the partitions of an inbox; none if it is not divided, or for another queue."""
    numbers = range(1, partitions + 1) if partitions > WHOLE and queue in PARTITIONED else ()
    return tuple(partition_of(queue, number) for number in numbers)


def partition_of(inbox: str, number: int) -> str:
    """Return the name of a partition of an inbox; their numbers begin with 1."""
    return f"{inbox}.{number}"


def inbox_of(queue: str) -> str:
    """Return the inbox that a partition belongs to; the name of any other queue as it is."""
    inbox, _, number = queue.rpartition(".")
    return inbox if inbox in PARTITIONED and number.isdecimal() else queue


def is_partition(queue: str) -> bool:
    """Return whether a queue is a partition of an inbox."""
    return inbox_of(queue) != queue


def partitions_exchange(inbox: str) -> str:
    """Return the name of the exchange that divides the messages of an inbox."""
    return f"{inbox}.partitions"


Bindings = tuple[tuple[str, str], ...]
"""Pairs of an exchange and a routing key, with which messages get to a queue or an exchange."""


@dataclass(frozen=True, slots=True)
class Exchange:
    """A durable exchange, and the (exchange, routing key) pairs that feed it."""

    name: str
    kind: str
    arguments: dict[str, Any] = field(default_factory=dict)
    bindings: Bindings = ()


@dataclass(frozen=True, slots=True)
class Queue:
    """A durable queue and the (exchange, routing key) pairs that feed it."""

    name: str
    bindings: Bindings
    arguments: dict[str, Any] = field(default_factory=dict)


HASH_EXCHANGE = "x-consistent-hash"
"""The type of an exchange that sends messages with the same key to the same queue."""

EQUAL_SHARE = "1"
"""The routing key with which a queue is bound to such an exchange: how many times it counts among the others."""

_QUORUM: dict[str, Any] = {"x-queue-type": "quorum"}
_DEAD_LETTERED: dict[str, Any] = {"x-dead-letter-strategy": "at-least-once", "x-overflow": "reject-publish"}


def exchanges(ladder: tuple[RetryDelay, ...] = RETRY_LADDER, options: TopologyOptions = PLAIN) -> tuple[Exchange, ...]:
    """Return all exchanges to declare."""
    or_dead: dict[str, Any] = {"alternate-exchange": DEAD_LETTERS}
    retries = (name for inbox in INBOXES for name in retry_queues(inbox, ladder))
    return (
        Exchange(EXCHANGE, "topic"),
        Exchange(DEAD_LETTERS, "fanout"),
        Exchange(INBOX_EXCHANGE, "direct", or_dead),
        *(Exchange(name, "fanout", or_dead) for name in retries),
        *(_dividing_exchange(inbox, options) for inbox in PARTITIONED if options.partitions > WHOLE),
    )


def _dividing_exchange(inbox: str, options: TopologyOptions) -> Exchange:
    routes = _wanted_routes(inbox, options)
    return Exchange(partitions_exchange(inbox), HASH_EXCHANGE, dict(PARTITIONED[inbox]), routes)


def routes_to(inbox: str) -> Bindings:
    """Return the bindings with which an inbox, or the exchange that divides it, gets its messages by their types.

    Other queues have none.
    """
    return tuple((EXCHANGE, message.routing_key) for message in INBOXES.get(inbox, ()))


def _wanted_routes(inbox: str, options: TopologyOptions) -> Bindings:
    """Return the bindings that an inbox, or its exchange, is to have; that of webhooks has none if they are off."""
    return routes_to(inbox) if inbox != NOTIFICATION_INBOX or options.webhooks else ()


def unwanted_bindings(options: TopologyOptions) -> tuple[Mapping[str, Bindings], Mapping[str, Bindings]]:
    """Return the bindings of inboxes, and of the exchanges that divide some, that only other options have."""
    silent = [inbox for inbox in INBOXES if not _wanted_routes(inbox, options)]
    divided = [inbox for inbox in PARTITIONED if options.partitions > WHOLE]
    of_inboxes = {inbox: routes_to(inbox) for inbox in (*divided, *silent)}
    return of_inboxes, {partitions_exchange(inbox): routes_to(inbox) for inbox in silent if inbox in divided}


def queues(ladder: tuple[RetryDelay, ...] = RETRY_LADDER, options: TopologyOptions = PLAIN) -> tuple[Queue, ...]:
    """Return all queues to declare but the stream. All exist before a service starts, so every message has a queue."""
    return (
        *(queue for name in INBOXES for queue in _inbox_and_partitions(name, options)),
        *(_retry_queue(inbox, delay) for inbox in INBOXES for delay in ladder),
        Queue(DEAD_LETTERS, ((DEAD_LETTERS, ""),), _QUORUM | {"x-delivery-limit": DEAD_LETTER_DELIVERY_LIMIT}),
    )


def event_stream(retention: str) -> Queue:
    """Return the stream of events, which keeps them for `retention`, such as 7D."""
    arguments = {"x-queue-type": "stream", "x-stream-max-segment-size-bytes": EVENTS_SEGMENT_BYTES}
    if retention:
        arguments["x-max-age"] = retention
    return Queue(EVENTS, tuple((EXCHANGE, name) for name in EVENT_TYPES), arguments)


def all_queues(options: TopologyOptions, ladder: tuple[RetryDelay, ...] = RETRY_LADDER) -> tuple[Queue, ...]:
    """Return all queues to declare, with the stream of events unless it is off."""
    retention = options.events_retention
    return (*queues(ladder, options), *((event_stream(retention),) if retention else ()))


def all_bindings(queues: Iterable[Queue], exchanges: Iterable[Exchange]) -> dict[str, Bindings]:
    """Return the (exchange, routing key) pairs that feed each of these queues and exchanges, by its name."""
    of_queues = {queue.name: queue.bindings for queue in queues}
    return of_queues | {exchange.name: exchange.bindings for exchange in exchanges if exchange.bindings}


MIGRATION = Exchange("ordersaga.migration", "fanout")
"""Exists while a migration is not finished, and says when it began (operations.migration.under_way).

Nothing is published to it.
"""


def migration_queue(queue: Queue) -> Queue:
    """Return the queue in which the messages of a queue wait while it is replaced.

    It has the same bindings, so it gets all messages but those that are sent to the other queue by its name alone. Only
    `ordersaga migrate` consumes from it. There is no limit or age at which it gives up a message.
    """
    arguments = _QUORUM | {"x-delivery-limit": DEAD_LETTER_DELIVERY_LIMIT}
    if queue.name != DEAD_LETTERS:
        arguments |= _DEAD_LETTERED | {"x-dead-letter-exchange": DEAD_LETTERS}
    return Queue(_migration_name(queue), queue.bindings, arguments)


def migration_exchange(queue: Queue) -> Exchange:
    """Return the exchange through which a queue's messages are moved: it keeps their routing keys."""
    return Exchange(_migration_name(queue), "fanout")


def is_migration_queue(name: str) -> bool:
    """Return whether messages wait in a queue while theirs is replaced."""
    return name.startswith(f"{MIGRATION.name}.")


def _migration_name(queue: Queue) -> str:
    return f"{MIGRATION.name}.{queue.name}"


def _inbox_and_partitions(name: str, options: TopologyOptions) -> tuple[Queue, ...]:
    """Return the queues of an inbox: if it is divided, it gets only what is sent to it by its name."""
    arguments = _QUORUM | _DEAD_LETTERED
    arguments |= {"x-delivery-limit": DELIVERY_LIMIT, "x-dead-letter-exchange": DEAD_LETTERS}
    by_name = (INBOX_EXCHANGE, name)
    parts = partitions_of(name, options.partitions)
    if not parts:
        return (Queue(name, (*_wanted_routes(name, options), by_name), arguments),)
    return (Queue(name, (by_name,), arguments), *(_partition(name, part, arguments) for part in parts))


def _partition(inbox: str, name: str, arguments: dict[str, Any]) -> Queue:
    share = (partitions_exchange(inbox), EQUAL_SHARE)
    return Queue(name, (share,), arguments | {"x-single-active-consumer": True})


def _retry_queue(inbox: str, delay: RetryDelay) -> Queue:
    name = delay.queue_of(inbox)
    arguments = _QUORUM | _DEAD_LETTERED | {"x-message-ttl": delay.milliseconds}
    # The routing key is the queue's and not the message's: a message cannot choose where it returns to.
    arguments |= {"x-dead-letter-exchange": INBOX_EXCHANGE, "x-dead-letter-routing-key": inbox}
    return Queue(name, ((name, ""),), arguments)
