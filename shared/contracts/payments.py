"""The answers of the payment service."""

from typing import ClassVar, Literal

from shared.contracts.base import Name, OrderMessage, Text
from shared.contracts.failures import Code
from shared.contracts.orders import RefundId


class PaymentProcessed(OrderMessage):
    """The order is paid, or AUTHORIZED: its money is reserved on the card; `transaction_id` is the gateway's."""

    routing_key: ClassVar[str] = "payment.processed"

    status: Literal["PROCESSED", "AUTHORIZED"] = "PROCESSED"
    transaction_id: Name

    @property
    def message(self) -> str | None:
        """Say what was done for the order's history, if it is less than to charge."""
        return "Authorised" if self.status == "AUTHORIZED" else None


class PaymentFailed(OrderMessage):
    """Nothing was charged; `reason` says why, `code` the same for programs."""

    routing_key: ClassVar[str] = "payment.failed"

    status: Literal["FAILED"] = "FAILED"
    reason: Text
    code: Code | None = None


class PaymentRefunded(OrderMessage):
    """No money is held for the order: it was refunded, or was never taken and never will be (VOIDED)."""

    routing_key: ClassVar[str] = "payment.refunded"

    status: Literal["REFUNDED", "VOIDED"]


class PaymentCaptured(OrderMessage):
    """The authorised money was taken: the order is paid."""

    routing_key: ClassVar[str] = "payment.captured"

    status: Literal["PROCESSED"] = "PROCESSED"


class PaymentCaptureFailed(OrderMessage):
    """The authorised money was not taken; `reason` says why. Another `payment.capture` tries again."""

    routing_key: ClassVar[str] = "payment.capture_failed"

    reason: Text
    code: Code | None = None


class PartRefunded(OrderMessage):
    """The part of the money that this refund asked for was returned."""

    routing_key: ClassVar[str] = "payment.refunded_part"

    refund_id: RefundId


class PartRefundFailed(OrderMessage):
    """Nothing was returned for this refund, and nothing ever will be; `reason` says why."""

    routing_key: ClassVar[str] = "payment.refund_part_failed"

    refund_id: RefundId
    reason: Text
