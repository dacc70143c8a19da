"""A delivery: one event for one endpoint, with its attempts. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from http import HTTPStatus

MAX_ATTEMPTS_KEPT = 20
"""A delivery keeps its latest attempts; redelivered ones may have more."""

MAX_TIMEOUT_SECONDS = 120
"""The longest that a receiver may be given to answer; a claim lasts twice as long as an attempt."""

ENDPOINT_DISABLED = "The endpoint is disabled"


class Status(StrEnum):
    """Where a delivery is."""

    PENDING = "PENDING"
    """It has a time for its next attempt."""
    DELIVERED = "DELIVERED"
    FAILED = "FAILED"
    """There will be no further attempt, unless it is asked for."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt: the status that the receiver answered, or the error; `body` is the beginning of its answer."""

    at: datetime
    status: int | None
    error: str | None
    body: str
    seconds: float

    @property
    def succeeded(self) -> bool:
        """Return whether the receiver has taken the event."""
        return self.status is not None and HTTPStatus(200) <= self.status < HTTPStatus(300)

    @property
    def gone(self) -> bool:
        """Return whether the receiver wants nothing more."""
        return self.status == HTTPStatus.GONE


@dataclass(frozen=True, slots=True)
class Delivery:
    """A delivery as it is recorded; its id within the endpoint is that of the event."""

    endpoint_id: str
    event_id: str
    type: str
    body: str
    created_at: datetime
    status: Status
    owner_id: str | None = None
    order_id: str | None = None
    due_at: datetime | None = None
    tries: int = 0
    """The attempts since it was recorded or last asked for again: the place on the ladder of delays."""
    claim: str | None = None
    """Names the claim of the process that is at it."""
    attempts: tuple[Attempt, ...] = ()
    delivered_at: datetime | None = None
    failure_reason: str | None = None
    """Why there is no further attempt."""


@dataclass(frozen=True, slots=True)
class Next:
    """What follows from an attempt."""

    status: Status
    due_at: datetime | None = None
    failure_reason: str | None = None


def after_attempt(attempt: Attempt, tries: int, delays: Sequence[float], spread: float, ended: datetime) -> Next:
    """Decide what follows from an attempt, the `tries`th since the beginning of the ladder.

    `spread` multiplies the delay, so that the retries of many deliveries do not come at the same moment.
    """
    if attempt.succeeded:
        return Next(Status.DELIVERED)
    if attempt.gone:
        return Next(Status.FAILED, failure_reason="The endpoint answered 410 Gone")
    if tries > len(delays):
        return Next(Status.FAILED, failure_reason=f"All {tries} attempts failed")
    return Next(Status.PENDING, due_at=ended + timedelta(seconds=delays[tries - 1] * spread))
