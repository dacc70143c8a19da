"""Metrics of stock."""

from collections.abc import Iterable

from prometheus_client import Counter, Gauge, Histogram

from inventory_service.refusals import REFUSALS, code_of
from inventory_service.stock import HoldOutcome, Reservation, Status
from shared.contracts.failures import FailureCode

_reservations = Counter("inventory_reservations_total", "Orders decided, by outcome", ["outcome"])
_refusals = Counter("inventory_refusals_total", "Orders refused, by the class of reason", ["reason"])
conflicts = Counter("inventory_conflicts_total", "Writes given up because another worker had changed the product")
passes = Histogram(
    "inventory_allocation_passes",
    "How often a batch of orders was allocated until all of it was decided",
    buckets=(1, 2, 3, 5, 10, 20, 50, 100),
)
reserving_seconds = Histogram(
    "inventory_reserving_seconds",
    "Time to decide a batch of orders, from the first read to the last record, conflicts with other workers included",
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5),
)
allocation_seconds = Histogram(
    "inventory_allocation_seconds",
    "Time to decide in memory who gets what, per batch",
    buckets=(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1),
)
overdue_moves = Gauge("inventory_overdue_marks", "Pending moves of stock without a reservation for more than a minute")

HELD, REFUSED = "HELD", "REFUSED"
holds = Counter(
    "inventory_holds_total", "Holds requested (HELD, REFUSED) and ended (TAKEN, EXPIRED, DELETED)", ["outcome"]
)
open_holds = Gauge("inventory_open_holds", "Holds whose units are out, at the last sweep of this process")

_SLOT, OTHER = "slot", "other"
_CLASSES = {FailureCode.SLOT_FULL: _SLOT, FailureCode.SLOT_UNAVAILABLE: _SLOT, FailureCode.STOCK_REFUSED: OTHER}
"""The classes of refusals that are not named like their code."""

for _code in REFUSALS:
    # Start at 0: Prometheus sees no increase in a series that begins with its first count.
    _refusals.labels(_CLASSES.get(_code, _code))
for _outcome in (HELD, REFUSED, *HoldOutcome):
    holds.labels(_outcome)
for _status in (Status.RESERVED, Status.FAILED):
    _reservations.labels(_status)


def reason_class(reason: str) -> str:
    """Classify a refusal's reason."""
    code = code_of(reason)
    return _CLASSES.get(code, code)


def count_decisions(decided: Iterable[Reservation]) -> None:
    """Count new reservations by outcome, and refusals by class."""
    for reservation in decided:
        _reservations.labels(reservation.status).inc()
        if reservation.status is Status.FAILED:
            _refusals.labels(reason_class(reservation.failure_reason or "")).inc()
