"""The metrics of transactions. All count operations, of which one transaction may carry out several, but for one.

That one, `transaction_group_size`, counts the operations of each transaction.
"""

import time
from collections import Counter as Tally
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from prometheus_client import Counter, Gauge, Histogram

from payment_service.ledger.refusals import LedgerRefusalError, Reason
from payment_service.ledger.transaction_errors import REASONS, failure_reason

_attempts = Counter("transaction_attempts_total", "Operations begun in a transaction, including retries", ["operation"])
_commits = Counter("transaction_commits_total", "Operations committed", ["operation"])
_aborts = Counter("transaction_aborts_total", "Operations aborted, including those retried", ["operation"])
_retries = Counter("transaction_retries_total", "Retries of operations and commits", ["operation", "reason"])
_failures = Counter("transaction_failures_total", "Operations that were not committed", ["operation", "reason"])
_refusals = Counter(
    "transaction_refusals_total", "Operations on funds that the books refused, by reason", ["operation", "reason"]
)
_waits = Histogram(
    "transaction_lock_wait_seconds",
    "Time that an operation waited for its turn on the accounts, within its process",
    ["operation"],
    buckets=(0.001, 0.005, 0.02, 0.1, 0.5, 1, 2, 5, 10, 30),
)
_durations = Histogram(
    "transaction_duration_seconds",
    "Duration of operations, including waiting and retries",
    ["operation"],
    buckets=(0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20),
)
_concurrent = Gauge("concurrent_operations", "Operations in progress, including waiting ones", ["operation"])
_group_sizes = Histogram(
    "transaction_group_size",
    "Operations in one committed transaction, including refused ones",
    buckets=(1, 2, 5, 10, 20, 50, 100, 200),
)


@contextmanager
def observed(operation: str) -> Iterator[None]:
    """Observe an operation from its arrival to its end."""
    _prepare(operation)
    started = time.perf_counter()
    try:
        with _concurrent.labels(operation).track_inprogress():
            yield
    except BaseException as error:
        _failures.labels(operation, failure_reason(error)).inc()
        if isinstance(error, LedgerRefusalError):
            _refusals.labels(operation, error.reason).inc()
        raise
    finally:
        _durations.labels(operation).observe(time.perf_counter() - started)


def waited(operation: str, seconds: float) -> None:
    """Observe how long an operation has waited for its turn."""
    _waits.labels(operation).observe(seconds)


def attempted(operations: Iterable[str]) -> None:
    """Count an attempt at a transaction of these operations."""
    _count(_attempts, operations)


def aborted(operations: Iterable[str]) -> None:
    """Count an attempt that was aborted."""
    _count(_aborts, operations)


def retried(operations: Iterable[str], reason: str) -> None:
    """Count a retry of a transaction, or of its commit."""
    for operation, number in Tally(operations).items():
        _retries.labels(operation, reason).inc(number)


def committed(granted: Iterable[str], *, group_size: int) -> None:
    """Count the operations that a transaction committed, and all that it has carried out, refused ones included."""
    _count(_commits, granted)
    _group_sizes.observe(group_size)


def _count(counter: Counter, operations: Iterable[str]) -> None:
    for operation, number in Tally(operations).items():
        counter.labels(operation).inc(number)


_prepared: set[str] = set()


def _prepare(operation: str) -> None:
    """Start the failure counts at zero: Prometheus sees no increase in a series that starts at one."""
    if operation not in _prepared:
        _prepared.add(operation)
        for reason in REASONS:
            _failures.labels(operation, reason)
        for refusal in Reason:
            _refusals.labels(operation, refusal)
