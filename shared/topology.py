"""Every exchange, queue and binding on the broker, and the rule by which messages are correlated.

    ordersaga (topic) ──routing key──▶ <service>.inbox (quorum)
                                            │ delivery limit reached (a crash loop)
                                            ▼
    ordersaga.dead-letters (fanout) ──▶ ordersaga.dead-letters (quorum), read by operations

    ordersaga.retry.<delay> (fanout) ──▶ ordersaga.retry.<delay> (quorum, fixed TTL)
                                            │ TTL over: to the queue that the routing key names
                                            ▼
                                       <service>.inbox

Correlation: `correlation_id` is the order id, `type` the routing key of the contract, `message_id` new for every
publication. Receivers rely on the order id in the body alone. Everything here is legal on RabbitMQ 3.10 and 4.x:
durable quorum queues with a finite delivery limit, one TTL per retry queue (mixed TTLs block at the head), and
at-least-once dead-lettering, which asks for reject-publish (https://www.rabbitmq.com/docs/quorum-queues).
"""

from dataclasses import dataclass, field
from typing import Any

from shared import contracts as c

EXCHANGE = "ordersaga"
DEAD_LETTERS = "ordersaga.dead-letters"

BY_QUEUE_NAME = frozenset({""})
"""Exchanges that route to the queue that the routing key names, so that the key does not say what a message is."""

ORDER_INBOX = "order.inbox"
INVENTORY_INBOX = "inventory.inbox"
PAYMENT_INBOX = "payment.inbox"
PROVISIONING_INBOX = "provisioning.inbox"
OPERATIONS_INBOX = "operations.inbox"

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
"""Which messages reach which inbox. Everything else on the exchange is for anyone who binds a queue to it."""

MAX_MESSAGE_BYTES = 1024 * 1024
"""The broker's `max_message_size`: room for what a consumer refuses (shared.bus.reading) and keeps as a dead letter."""

DELIVERY_LIMIT = 50
"""Deliveries of one message that may end in a crash before it is a dead letter: at one restart a second, a minute."""

DEAD_LETTER_DELIVERY_LIMIT = 1_000_000_000
"""As good as none: behind the dead letters is nothing, and without a limit RabbitMQ 4 drops what came 20 times."""


@dataclass(frozen=True, slots=True)
class RetryDelay:
    """One rung of the retry ladder: the exchange and the queue of the same name, and how long it holds a message."""

    name: str
    milliseconds: int


RETRY_LADDER = (
    RetryDelay("ordersaga.retry.1s", 1_000),
    RetryDelay("ordersaga.retry.5s", 5_000),
    RetryDelay("ordersaga.retry.30s", 30_000),
    RetryDelay("ordersaga.retry.2m", 120_000),
)


@dataclass(frozen=True, slots=True)
class Exchange:
    """A durable exchange."""

    name: str
    kind: str


@dataclass(frozen=True, slots=True)
class Queue:
    """A durable quorum queue and the (exchange, routing key) pairs that feed it."""

    name: str
    bindings: tuple[tuple[str, str], ...]
    arguments: dict[str, Any] = field(default_factory=dict)


_QUORUM: dict[str, Any] = {"x-queue-type": "quorum"}
_DEAD_LETTERED: dict[str, Any] = {"x-dead-letter-strategy": "at-least-once", "x-overflow": "reject-publish"}


def exchanges() -> tuple[Exchange, ...]:
    """All exchanges to declare."""
    return (
        Exchange(EXCHANGE, "topic"),
        Exchange(DEAD_LETTERS, "fanout"),
        *(Exchange(delay.name, "fanout") for delay in RETRY_LADDER),
    )


def queues(ladder: tuple[RetryDelay, ...] = RETRY_LADDER) -> tuple[Queue, ...]:
    """All queues to declare; every service declares all of them, so that no message finds nobody at home."""
    return (
        *(_inbox(name, messages) for name, messages in INBOXES.items()),
        *(_retry_queue(delay) for delay in ladder),
        Queue(DEAD_LETTERS, ((DEAD_LETTERS, ""),), _QUORUM | {"x-delivery-limit": DEAD_LETTER_DELIVERY_LIMIT}),
    )


def _inbox(name: str, messages: tuple[type[c.Message], ...]) -> Queue:
    arguments = _QUORUM | _DEAD_LETTERED
    arguments |= {"x-delivery-limit": DELIVERY_LIMIT, "x-dead-letter-exchange": DEAD_LETTERS}
    return Queue(name, tuple((EXCHANGE, message.routing_key) for message in messages), arguments)


def _retry_queue(delay: RetryDelay) -> Queue:
    # To the default exchange without a routing key of its own: the message keeps the one it came with, its inbox.
    arguments = _QUORUM | _DEAD_LETTERED | {"x-message-ttl": delay.milliseconds, "x-dead-letter-exchange": ""}
    return Queue(delay.name, ((delay.name, ""),), arguments)
