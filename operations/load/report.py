"""The result of a load test."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from operations.audit import Report
from operations.load.cost import Cost

PERCENTILES = {"p50": 50.0, "p90": 90.0, "p99": 99.0, "max": 100.0}


def percentile(ordered: Sequence[float], percent: float) -> float:
    """Return the smallest value that at least `percent` of the ordered values do not exceed; 0 without values."""
    if not ordered:
        return 0.0
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def milliseconds(seconds: Iterable[float]) -> dict[str, float]:
    """Return the percentiles of durations, in milliseconds."""
    ordered = sorted(seconds)
    return {name: round(percentile(ordered, percent) * 1000, 1) for name, percent in PERCENTILES.items()}


@dataclass(frozen=True, slots=True)
class SlotFigures:
    """The orders with a delivery slot, the slots that they use, and the orders that found all slots full."""

    orders: int
    slots: int
    refused: int

    def as_json(self) -> dict[str, int]:
        """Return the figures as JSON."""
        return {"orders": self.orders, "slots": self.slots, "refused": self.refused}


@dataclass(frozen=True, slots=True)
class LoadReport:
    """The result of one load test.

    `latencies_ms` has the percentiles of `post` (until the answer, by the client's clock), `final` (from acceptance to
    the final status) and `settled` (from acceptance to the last compensation), both by the order service's clock.
    `in_doubt` orders got no answer and may have been accepted; `refused` ones were given up after answers of 429 or
    503. `audited` counts those of its orders that the audit judged, in `audited_in`. `slots` is set if the orders asked
    for delivery slots.
    """

    placed: int
    accepted: int
    in_doubt: int
    refused: int
    recorded: int
    unsettled: int
    seconds: float
    latencies_ms: Mapping[str, Mapping[str, float]]
    statuses: Mapping[str, int]
    reasons: Mapping[str, int]
    errors: Mapping[str, int]
    cost: Mapping[str, Cost]
    audit: Report
    audited: int
    audited_in: str
    slots: SlotFigures | None = None

    @property
    def orders_per_second(self) -> float:
        """Settled orders per second, from the first acceptance until the last order is settled."""
        return (self.recorded - self.unsettled) / self.seconds if self.seconds else 0.0

    @property
    def complete(self) -> bool:
        """True if exactly the accepted orders are recorded, and all are settled."""
        known = self.accepted <= self.recorded <= self.accepted + self.in_doubt
        return known and self.accepted > 0 and self.unsettled == 0

    @property
    def ok(self) -> bool:
        """True if all accepted orders are settled and the books of their stack balance."""
        return self.complete and self.audited_what_was_placed and self.audit.ok

    @property
    def audited_what_was_placed(self) -> bool:
        """True if the audit judged every order that was accepted, and every other one that is recorded."""
        return self.audited >= max(self.accepted, self.recorded)

    def as_json(self) -> dict[str, Any]:
        """Return the report as JSON."""
        return {
            "ok": self.ok,
            "orders": self.placed,
            "accepted": self.accepted,
            "inDoubt": self.in_doubt,
            "refused": self.refused,
            "recorded": self.recorded,
            "settled": self.recorded - self.unsettled,
            "unsettled": self.unsettled,
            "audited": self.audited,
            "auditedIn": self.audited_in,
            "seconds": round(self.seconds, 3),
            "ordersPerSecond": round(self.orders_per_second, 1),
            "latencyMs": self.latencies_ms,
            "statuses": self.statuses,
            "reasons": self.reasons,
            "errors": self.errors,
            **({} if self.slots is None else {"slots": self.slots.as_json()}),
            "cost": {name: self._cost_as_json(cost) for name, cost in self.cost.items()},
            "audit": self.audit.as_json(),
        }

    def cpu_ms_per_order(self, cost: Cost) -> float:
        """Return the CPU time that a process used per order, in milliseconds."""
        return 1000 * cost.cpu_seconds / max(1, self.recorded)

    def _cost_as_json(self, cost: Cost) -> dict[str, float]:
        return {
            "cpuSeconds": round(cost.cpu_seconds, 2),
            "cpuMsPerOrder": round(self.cpu_ms_per_order(cost), 3),
            "rssMiB": round(cost.rss_bytes / 2**20, 1),
        }
