"""Metrics of orders: how they end, for which reason, how long it takes, and how many compensations they need."""

from collections.abc import Iterable

from prometheus_client import Counter, Histogram

from order_service.failures import GENERAL, general_code
from order_service.order import FINAL, Order, Status
from order_service.orders import Change
from order_service.participants import PARTICIPANTS

NO_REASON = "none"

_UNFULFILLED = (Status.CANCELLED, Status.FAILED)

placed = Counter("orders_placed_total", "Orders accepted over HTTP")
_ended = Counter(
    "orders_ended_total", "Orders that reached a final status, by the class of reason", ["status", "reason"]
)
_duration = Histogram(
    "saga_duration_seconds",
    "From the acceptance of an order to its final status",
    ["status"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600),
)
_delivered = Counter("orders_delivered_total", "Confirmed orders whose goods were delivered")
_compensations = Counter("saga_compensations_total", "Compensations requested from each participant", ["of"])
_compensated = Counter(
    "saga_compensated_total", "Orders whose compensations were all answered, by their status", ["status"]
)
_compensating = Histogram(
    "saga_compensation_seconds",
    "From the cancellation of an order until its compensations were answered",
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 180, 600),
)
_refunds = Counter(
    "refunds_total",
    "Refunds in part: requested, then refunded or failed, and restocked once their units are free again",
    ["outcome"],
)

REQUESTED = "requested"
RESTOCKED = "restocked"


def _prepare() -> None:
    """Start all series at zero: Prometheus sees no increase in a series that begins with its first count."""
    for status in (Status.CONFIRMED, Status.COMPLETED):
        _ended.labels(status, NO_REASON)
    for reason in GENERAL.values():
        _ended.labels(Status.CANCELLED, reason)
    for event in ("provisioning.failed", "payment.capture_failed"):
        _ended.labels(Status.FAILED, GENERAL[event])
    for participant in PARTICIPANTS:
        _compensations.labels(participant.name)
    for status in _UNFULFILLED:
        _compensated.labels(status)
    for outcome in (REQUESTED, "refunded", "failed", RESTOCKED):
        _refunds.labels(outcome)


_prepare()


def reason_of(order: Order) -> str:
    """Return the class of reason for which an ended order did not go through; `none` if it did."""
    if order.status not in _UNFULFILLED:
        return NO_REASON
    if order.status is Status.CANCELLED and order.cancel_requested:  # it ended when its running step did
        return GENERAL["order.cancel_requested"]
    return general_code(order.cause)


def count_changes(changes: Iterable[Change]) -> None:
    """Count the ends and compensations of orders in these stored changes."""
    for change in changes:
        _count_end(change)
        _count_compensation(change)
        _count_refunds(change)


def _count_end(change: Change) -> None:
    after = change.after
    if change.before.status is Status.CONFIRMED and after.status is Status.COMPLETED:
        _delivered.inc()  # it ended for the saga when it was confirmed
    elif after.status is not change.before.status and after.status in FINAL:
        _ended.labels(after.status, reason_of(after)).inc()
        _duration.labels(after.status).observe((after.updated_at - after.created_at).total_seconds())


def _count_compensation(change: Change) -> None:
    before, after = change.before, change.after
    if _is_compensating(after) and not _is_compensating(before):
        for participant in PARTICIPANTS:
            if not participant.is_released(after):
                _compensations.labels(participant.name).inc()
    if _is_compensating(before) and after.settled and not before.settled:
        _compensated.labels(after.status).inc()
        if after.cancelled_at is not None:
            _compensating.observe((after.updated_at - after.cancelled_at).total_seconds())


def _count_refunds(change: Change) -> None:
    before = {refund.refund_id: refund for refund in change.before.refunds}
    for refund in change.after.refunds:
        known = before.get(refund.refund_id)
        if known is None:
            _refunds.labels(REQUESTED).inc()
        elif known.status is not refund.status:
            _refunds.labels(refund.status.lower()).inc()
        elif refund.returned and not known.returned:
            _refunds.labels(RESTOCKED).inc()


def _is_compensating(order: Order) -> bool:
    return order.status is Status.CANCELLED or order.compensating
