"""The answers of the payment service."""

from typing import ClassVar, Literal

from shared.contracts.base import Name, OrderMessage, Text


class PaymentProcessed(OrderMessage):
    """The order is paid; `transaction_id` is the gateway's."""

    routing_key: ClassVar[str] = "payment.processed"

    status: Literal["PROCESSED"] = "PROCESSED"
    transaction_id: Name


class PaymentFailed(OrderMessage):
    """Nothing was charged; `reason` says why."""

    routing_key: ClassVar[str] = "payment.failed"

    status: Literal["FAILED"] = "FAILED"
    reason: Text


class PaymentRefunded(OrderMessage):
    """No money is held for the order: it was refunded, or was never taken and never will be (VOIDED)."""

    routing_key: ClassVar[str] = "payment.refunded"

    status: Literal["REFUNDED", "VOIDED"]
