"""The metrics of webhooks, and the loop that counts what is in the database."""

from dataclasses import dataclass

from prometheus_client import Counter, Gauge, Histogram

from notification_service.deliveries import Deliveries
from notification_service.delivery import Attempt
from notification_service.endpoints import Endpoints
from shared.background import run_periodically
from shared.clock import Clock

COUNT_SECONDS = 15.0
"""The interval between two counts."""

DELIVERED, REFUSED, GONE, UNANSWERED = OUTCOMES = ("delivered", "refused", "gone", "unanswered")
"""The outcomes of attempts: a 2xx status, any other, 410, and no answer."""

DISABLED_GONE, DISABLED_FAILING = REASONS = ("gone", "failing")
"""Why endpoints are disabled, besides by their owners."""

ATTEMPTS = Counter("webhook_attempts_total", "Attempts to deliver an event, by their outcome", ["outcome"])
SECONDS = Histogram(
    "webhook_attempt_seconds",
    "Time of an attempt until its answer or its failure",
    buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 15, 30),
)
IN_FLIGHT = Gauge("webhook_attempts_in_flight", "Attempts that this process is making")
DISABLED = Counter(
    "webhook_endpoints_disabled_total", "Endpoints that were disabled, except by their owners", ["reason"]
)
_endpoints = Gauge("webhook_endpoints", "Endpoints, by whether they are enabled", ["state"])
_overdue = Gauge("webhook_overdue_deliveries", "Deliveries whose next attempt is due, counted up to 10,000")
_oldest = Gauge(
    "webhook_oldest_overdue_seconds",
    "Time for which the first of the deliveries that are due has been due, by whether their endpoint is failing",
    ["state"],
)

for _state in ("working", "failing"):
    _oldest.labels(_state)
for _outcome in OUTCOMES:
    ATTEMPTS.labels(_outcome)
for _reason in REASONS:
    DISABLED.labels(_reason)


def outcome_of(attempt: Attempt) -> str:
    """Return the outcome of an attempt, as metrics name it."""
    if attempt.status is None:
        return UNANSWERED
    if attempt.gone:
        return GONE
    return DELIVERED if attempt.succeeded else REFUSED


@dataclass(frozen=True, slots=True)
class Counts:
    """Counts what is in the database, for the metrics."""

    endpoints: Endpoints
    deliveries: Deliveries
    clock: Clock

    async def run(self) -> None:
        """Count until cancelled."""
        await run_periodically(self.measure, every=COUNT_SECONDS, name="counting webhooks")

    async def measure(self) -> None:
        """Count once."""
        for enabled, number in (await self.endpoints.count_all()).items():
            _endpoints.labels("enabled" if enabled else "disabled").set(number)
        now = self.clock()
        _overdue.set(await self.deliveries.count_due(now))
        first = await self.deliveries.first_due(now)
        failing = await self.endpoints.failing(first)
        for state, since in (
            ("failing", [at for endpoint_id, at in first.items() if endpoint_id in failing]),
            ("working", [at for endpoint_id, at in first.items() if endpoint_id not in failing]),
        ):
            _oldest.labels(state).set((now - min(since, default=now)).total_seconds())
