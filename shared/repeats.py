"""Counts and logs what is answered from its record: a request or a message that had been handled before."""

from collections.abc import Iterable
from itertools import islice
from typing import Any

import structlog
from prometheus_client import Counter

_LISTED = 10
"""The number of ids in a line; the count has no limit."""

_log = structlog.get_logger(__name__)
_repeats = Counter(
    "repeats_answered_total",
    "Requests and messages that had been handled before and were answered from their record",
    ["operation"],
)


def note_repeats(operation: str, order_ids: Iterable[str]) -> None:
    """Count and log the orders for which the operation had been done before; an empty batch leaves no trace."""
    repeated = list(order_ids)
    if repeated:
        _note(operation, len(repeated), order_ids=list(islice(repeated, _LISTED)))


def note_repeat(operation: str, **ids: str) -> None:
    """Count and log one operation that had been done before; `ids` name its subject."""
    _note(operation, 1, **ids)


def _note(operation: str, number: int, **fields: Any) -> None:
    _repeats.labels(operation).inc(number)
    _log.info("already processed, answered from the record", operation=operation, number=number, **fields)
