"""The events of an order: messages about it, and what no message brings: people's requests and the end of its time."""

from typing import NamedTuple

from order_service.order import Refund
from shared.contracts import OrderMessage


class CancelRequested(NamedTuple):
    """The client does not want the order any more."""

    reason: str
    routing_key: str = "order.cancel_requested"


class DeliveryNoted(NamedTuple):
    """The goods of a confirmed order have left."""

    routing_key: str = "order.delivery_noted"


class RetryRequested(NamedTuple):
    """An operator wants another run of the provisioning."""

    routing_key: str = "order.retry_requested"


class RefundRequested(NamedTuple):
    """An operator gives up a failed order."""

    routing_key: str = "order.refund_requested"


class RefundPartRequested(NamedTuple):
    """Somebody who may do so wants a part of the money returned."""

    refund: Refund
    routing_key: str = "order.refund_part_requested"

    @property
    def refund_id(self) -> str:
        """The id of the refund, as in the answers to it."""
        return self.refund.refund_id

    @property
    def reason(self) -> str | None:
        """Why the money is returned."""
        return self.refund.reason


class DeadlinePassed(NamedTuple):
    """A status has lasted too long: the saga timeout, or the hold of a failed order's money."""

    routing_key: str = "order.deadline_passed"


Request = CancelRequested | DeliveryNoted | RetryRequested | RefundRequested | RefundPartRequested
Event = OrderMessage | Request | DeadlinePassed
