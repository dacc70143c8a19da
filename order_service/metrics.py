"""What is counted of orders."""

from collections.abc import Iterable

from prometheus_client import Counter, Histogram

from order_service.order import Status
from order_service.orders import Change

placed = Counter("orders_placed_total", "Orders accepted over HTTP")
_ended = Counter("orders_ended_total", "Orders that reached a final status", ["status"])
_duration = Histogram(
    "saga_duration_seconds",
    "From the acceptance of an order to its final status",
    ["status"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300),
)

_FINAL = (Status.CONFIRMED, Status.COMPLETED, Status.CANCELLED, Status.FAILED)


def count_final(changes: Iterable[Change]) -> None:
    """Count the orders that these changes have brought to a final status."""
    for change in changes:
        if change.after.status is not change.before.status and change.after.status in _FINAL:
            _ended.labels(change.after.status).inc()
            _duration.labels(change.after.status).observe(
                (change.after.updated_at - change.after.created_at).total_seconds()
            )
