"""Metrics of jobs: how they end, how long they take, and how many attempts at the provider they need."""

from prometheus_client import Counter, Histogram

from provisioning_service.job import ENDED_STATES, Job

BUY, ACCESS = "buy", "access"

_LAST_NUMBER = 5
"""Attempts beyond this number are counted together: settings allow up to 100."""

_ended = Counter("provisioning_jobs_total", "Runs of jobs that have ended", ["state"])
_durations = Histogram(
    "provisioning_job_seconds",
    "From the request of a run until its end",
    ["state"],
    buckets=(1, 2, 5, 10, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200),
)
_attempts = Counter(
    "provisioning_attempts_total",
    "Attempts at the provider to buy a server and to get the access to it, by their number within the run",
    ["call", "attempt"],
)
adopted = Counter("provisioning_adopted_total", "Servers found to be bought although the answer was lost")

for _state in ENDED_STATES:
    _ended.labels(_state)  # start at 0: Prometheus sees no increase in a series that begins with its first count


def count_attempt(call: str, number: int) -> None:
    """Count an attempt at the provider; `number` is 1 for the first one of a run."""
    _attempts.labels(call, str(number) if number < _LAST_NUMBER else f"{_LAST_NUMBER} or later").inc()


def count_end(job: Job) -> None:
    """Count the end of a run, and measure it."""
    _ended.labels(job.state).inc()
    if job.requested_at is not None:
        _durations.labels(job.state).observe((job.updated_at - job.requested_at).total_seconds())
