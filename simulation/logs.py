"""What the services log while a world runs: warnings and errors are steps of its trace, unexpected errors are defects.

The services survive unexpected errors: they log them, answer with 500 and try again. Here each of them is a finding,
also if everything has come right in the end.
"""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import structlog

from shared.errors import NewerOrderError, NewerReleaseError
from simulation.loop import LIFE
from simulation.trace import Trace

_EXPECTED = frozenset({"payment still without an outcome", "message dead-lettered"})
"""Errors in the log that faults cause, and dead letters, which the world looks at itself."""
_RETRIED = "message retried"
"""A warning, because the next attempt may succeed; unless the message waits for a newer release, it is a defect too."""
_WAITS = frozenset({NewerReleaseError.__name__, NewerOrderError.__name__})


class Logs:
    """What was logged in one world."""

    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        self.defects: dict[str, None] = {}
        """Unexpected errors, each once, in order."""

    def note(self, _logger: Any, level: str, event: Any) -> Any:
        """Take a line of the log; it goes nowhere else."""
        about = " ".join(f"{name}={event[name]}" for name in ("work", "queue", "error") if name in event)
        self._trace.note(f"{level}: {event.get('event')} {about}".rstrip()[:300])
        life = LIFE.get()
        if _is_defect(level, event) and not (life is not None and life.ended):
            process = "world" if life is None else life.process
            self.defects[f"defect, {event['event']}: {process}: {_error(event)} {about}".rstrip()[:400]] = None
        raise structlog.DropEvent


def _is_defect(level: str, event: Mapping[str, Any]) -> bool:
    if event.get("event") == _RETRIED:
        return event.get("error_type") not in _WAITS
    return level in ("error", "critical") and event.get("event") not in _EXPECTED


def _error(event: Mapping[str, Any]) -> str:
    """Return the error that a line is about."""
    error = event.get("exc_info")
    if error is True:
        error = sys.exc_info()[1]
    if isinstance(error, BaseException):
        return repr(error)
    return str(event.get("error_type", ""))


@contextmanager
def logging_to(trace: Trace) -> Iterator[Logs]:
    """Put warnings and errors of the services into the trace until the context ends."""
    before, logs = structlog.get_config(), Logs(trace)
    structlog.configure(processors=[logs.note], wrapper_class=structlog.make_filtering_bound_logger(30))
    try:
        yield logs
    finally:
        structlog.configure(**before)
