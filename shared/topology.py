"""All exchanges, queues and bindings on the broker, and the rule that correlates messages.

    ordersaga (topic) ──routing key──▶ <service>.inbox (quorum)
                                            │ delivery limit reached (a crash loop)
                                            ▼
    ordersaga.dead-letters (fanout) ──▶ ordersaga.dead-letters (quorum), read by operations

    ordersaga.retry.v2.<delay> (fanout) ──▶ ordersaga.retry.v2.<delay> (quorum, fixed TTL)
                                            │ TTL over
                                            ▼
    ordersaga.inboxes (direct) ──routing key: the inbox──▶ <service>.inbox
              │ no such inbox (alternate exchange)
              ▼
    ordersaga.dead-letters

A retry queue forwards at least once: messages that no queue accepts stay, and 32 of them block the queue for all. So
retries return through a separate exchange, which sends what it cannot route to the dead letters.

Correlation: `correlation_id` is the order id, `type` the routing key of the contract, and `message_id` is new for every
publication. Receivers rely only on the order id in the body. Everything is valid on RabbitMQ 3.10 and 4.x: durable
quorum queues with a finite delivery limit, one TTL per retry queue (mixed TTLs block at the head), and at-least-once
dead-lettering, which requires reject-publish (https://www.rabbitmq.com/docs/quorum-queues).
"""

from dataclasses import dataclass, field
from typing import Any

from shared import contracts as c
from shared import services

EXCHANGE = "ordersaga"
DEAD_LETTERS = "ordersaga.dead-letters"

INBOX_EXCHANGE = "ordersaga.inboxes"
"""Routes a message to the inbox in its routing key; retries return through it."""

BY_QUEUE_NAME = frozenset({"", INBOX_EXCHANGE})
"""Exchanges that route to the queue in the routing key, so the key is not the type of the message."""

ORDER_INBOX = services.ORDER.inbox
INVENTORY_INBOX = services.INVENTORY.inbox
PAYMENT_INBOX = services.PAYMENT.inbox
PROVISIONING_INBOX = services.PROVISIONING.inbox
OPERATIONS_INBOX = services.CONSOLE.inbox

INBOXES: dict[str, tuple[type[c.Message], ...]] = {
    ORDER_INBOX: (
        c.StockReserved,
        c.StockReservationFailed,
        c.StockReleased,
        c.PaymentProcessed,
        c.PaymentFailed,
        c.PaymentRefunded,
        c.ProvisioningProgress,
        c.ProvisioningCompleted,
        c.ProvisioningFailed,
    ),
    INVENTORY_INBOX: (c.OrderCreated, c.ReleaseStock),
    PAYMENT_INBOX: (c.OrderCreated, c.RefundPayment),
    PROVISIONING_INBOX: (c.ProvisionServer, c.CancelProvisioning),
    OPERATIONS_INBOX: (c.DeadLetterHandled,),
}
"""The messages of each inbox. All other messages are for anyone who binds a queue to the exchange."""

MAX_MESSAGE_BYTES = 1024 * 1024
"""The broker's `max_message_size`: large enough for messages that consumers reject and keep as dead letters."""

DELIVERY_LIMIT = 50
"""Deliveries of one message that may end in a crash before it becomes a dead letter: a minute of restarts."""

DEAD_LETTER_DELIVERY_LIMIT = 1_000_000_000
"""Effectively none: dead letters have no further queue, and without a limit RabbitMQ 4 drops after 20 deliveries."""


@dataclass(frozen=True, slots=True)
class RetryDelay:
    """One level of the retry ladder: the name of its exchange and queue, and its delay."""

    name: str
    milliseconds: int


RETRY_LADDER = (
    RetryDelay("ordersaga.retry.v2.1s", 1_000),
    RetryDelay("ordersaga.retry.v2.5s", 5_000),
    RetryDelay("ordersaga.retry.v2.30s", 30_000),
    RetryDelay("ordersaga.retry.v2.2m", 120_000),
)
"""The names have a version because RabbitMQ does not accept a queue with other arguments under the same name."""

FORMER_RETRY_QUEUES = ("ordersaga.retry.1s", "ordersaga.retry.5s", "ordersaga.retry.30s", "ordersaga.retry.2m")
"""Retry queues of earlier releases, each with an exchange of the same name. Their messages still return."""


@dataclass(frozen=True, slots=True)
class Exchange:
    """A durable exchange."""

    name: str
    kind: str
    arguments: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Queue:
    """A durable quorum queue and the (exchange, routing key) pairs that feed it."""

    name: str
    bindings: tuple[tuple[str, str], ...]
    arguments: dict[str, Any] = field(default_factory=dict)


_QUORUM: dict[str, Any] = {"x-queue-type": "quorum"}
_DEAD_LETTERED: dict[str, Any] = {"x-dead-letter-strategy": "at-least-once", "x-overflow": "reject-publish"}


def exchanges() -> tuple[Exchange, ...]:
    """Return all exchanges to declare."""
    return (
        Exchange(EXCHANGE, "topic"),
        Exchange(DEAD_LETTERS, "fanout"),
        Exchange(INBOX_EXCHANGE, "direct", {"alternate-exchange": DEAD_LETTERS}),
        *(Exchange(delay.name, "fanout") for delay in RETRY_LADDER),
    )


def queues(ladder: tuple[RetryDelay, ...] = RETRY_LADDER) -> tuple[Queue, ...]:
    """Return all queues to declare. Every service declares all of them, so every message has a queue from the start."""
    return (
        *(_inbox(name, messages) for name, messages in INBOXES.items()),
        *(_retry_queue(delay) for delay in ladder),
        Queue(DEAD_LETTERS, ((DEAD_LETTERS, ""),), _QUORUM | {"x-delivery-limit": DEAD_LETTER_DELIVERY_LIMIT}),
    )


def _inbox(name: str, messages: tuple[type[c.Message], ...]) -> Queue:
    arguments = _QUORUM | _DEAD_LETTERED
    arguments |= {"x-delivery-limit": DELIVERY_LIMIT, "x-dead-letter-exchange": DEAD_LETTERS}
    bindings = tuple((EXCHANGE, message.routing_key) for message in messages)
    return Queue(name, (*bindings, (INBOX_EXCHANGE, name)), arguments)


def _retry_queue(delay: RetryDelay) -> Queue:
    # Without a dead-letter routing key: the message keeps its own, the name of its inbox.
    arguments = _QUORUM | _DEAD_LETTERED
    arguments |= {"x-message-ttl": delay.milliseconds, "x-dead-letter-exchange": INBOX_EXCHANGE}
    return Queue(delay.name, ((delay.name, ""),), arguments)
