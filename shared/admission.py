"""What decides whether a request is served, whatever protocol it arrives by: callers, limits, places, audit log."""

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from shared.access.authenticator import Authenticator
from shared.access.limits import RequestLimits
from shared.audit_log import AuditLog


@dataclass(frozen=True, slots=True)
class Admission:
    """The parts of a service that decide whether a request is served, whatever protocol it arrives by."""

    authenticator: Authenticator
    limits: RequestLimits
    """The same object as HTTP's: a caller has one limit, not one per protocol."""
    audit: AuditLog
    refusal: Callable[[], str | None]
    """Returns the reason why no request can be served now, or None."""
    unready: Callable[[], Awaitable[dict[str, str]]]
    """Returns the reason why each failing part is down, by name; empty if the service is ready or degraded."""


class Places:
    """Counts what is in progress, for a limit that its user decides."""

    def __init__(self) -> None:
        self._taken = 0

    @contextmanager
    def one(self) -> Iterator[int]:
        """Take a place for as long as the context lasts; yields how many are taken with it."""
        self._taken += 1
        try:
            yield self._taken
        finally:
            self._taken -= 1


class OtherServer(Protocol):
    """A server that a service runs beside the one of HTTP."""

    async def start(self) -> None:
        """Listen. Raises StartError if that is not possible."""
        ...

    async def stop(self, within: float) -> None:
        """Take no more requests, and give those in progress this many seconds to finish."""
        ...
