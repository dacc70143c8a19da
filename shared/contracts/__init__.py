"""The messages between services: one module for each service that sends them, and the registry of all.

Commands are imperative (`ReleaseStock`), events in the past tense (`StockReserved`). Bodies are JSON in camelCase;
readers ignore unknown fields. A sample of each is stored in `tests/samples/messages.json`, so a change is visible.
"""

from shared.contracts.base import Message, OrderMessage
from shared.contracts.inventory import (
    StockReleased,
    StockReservationFailed,
    StockReserved,
    StockReturned,
    StockShipped,
)
from shared.contracts.operations import DeadLetterHandled
from shared.contracts.orders import (
    CancelProvisioning,
    CapturePayment,
    OrderCancelled,
    OrderCompleted,
    OrderConfirmed,
    OrderCreated,
    OrderFailed,
    OrderProvisioning,
    OrderRefunded,
    ProvisionServer,
    RefundPart,
    RefundPayment,
    ReleaseStock,
    ReturnStock,
    ShipStock,
)
from shared.contracts.payments import (
    PartRefunded,
    PartRefundFailed,
    PaymentCaptured,
    PaymentCaptureFailed,
    PaymentFailed,
    PaymentProcessed,
    PaymentRefunded,
)
from shared.contracts.provisioning import (
    PackageLowIps,
    ProvisioningCompleted,
    ProvisioningFailed,
    ProvisioningProgress,
)

ALL_MESSAGES: tuple[type[Message], ...] = (
    OrderCreated,
    StockReserved,
    StockReservationFailed,
    PaymentProcessed,
    PaymentFailed,
    ReleaseStock,
    StockReleased,
    ShipStock,
    StockShipped,
    CapturePayment,
    PaymentCaptured,
    PaymentCaptureFailed,
    RefundPayment,
    PaymentRefunded,
    RefundPart,
    PartRefunded,
    PartRefundFailed,
    ReturnStock,
    StockReturned,
    ProvisionServer,
    ProvisioningProgress,
    ProvisioningCompleted,
    ProvisioningFailed,
    CancelProvisioning,
    OrderConfirmed,
    OrderProvisioning,
    OrderCompleted,
    OrderCancelled,
    OrderFailed,
    OrderRefunded,
    PackageLowIps,
    DeadLetterHandled,
)

BY_ROUTING_KEY: dict[str, type[Message]] = {message.routing_key: message for message in ALL_MESSAGES}

__all__ = [
    "ALL_MESSAGES",
    "BY_ROUTING_KEY",
    "CancelProvisioning",
    "CapturePayment",
    "DeadLetterHandled",
    "Message",
    "OrderCancelled",
    "OrderCompleted",
    "OrderConfirmed",
    "OrderCreated",
    "OrderFailed",
    "OrderMessage",
    "OrderProvisioning",
    "OrderRefunded",
    "PackageLowIps",
    "PartRefundFailed",
    "PartRefunded",
    "PaymentCaptureFailed",
    "PaymentCaptured",
    "PaymentFailed",
    "PaymentProcessed",
    "PaymentRefunded",
    "ProvisionServer",
    "ProvisioningCompleted",
    "ProvisioningFailed",
    "ProvisioningProgress",
    "RefundPart",
    "RefundPayment",
    "ReleaseStock",
    "ReturnStock",
    "ShipStock",
    "StockReleased",
    "StockReservationFailed",
    "StockReserved",
    "StockReturned",
    "StockShipped",
]
