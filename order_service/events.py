"""The events of an order: messages about it, and what no message brings: people's requests and the end of its time."""

from typing import NamedTuple

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


class DeadlinePassed(NamedTuple):
    """A status has lasted too long: the saga timeout, or the hold of a failed order's money."""

    routing_key: str = "order.deadline_passed"


Request = CancelRequested | DeliveryNoted | RetryRequested | RefundRequested
Event = OrderMessage | Request | DeadlinePassed
