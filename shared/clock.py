"""The time as records and messages have it: UTC, to the millisecond, which is MongoDB's precision."""

from collections.abc import Callable
from datetime import UTC, datetime

Clock = Callable[[], datetime]


def utc_now() -> datetime:
    """Return the current time in UTC, cut to the millisecond."""
    now = datetime.now(UTC)
    return now.replace(microsecond=now.microsecond // 1000 * 1000)


def in_utc(moment: datetime) -> datetime:
    """Return the same moment in UTC. Raises ValueError, for people, for one beyond the years that can be stored."""
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        raise ValueError("must be a time of the years 1 to 9999, in UTC") from None


def to_rfc3339(moment: datetime) -> str:
    """Format a time as `2026-01-31T09:30:00.250Z`."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def to_rfc3339_if_any(moment: datetime | None) -> str | None:
    """Format a time as `to_rfc3339` does; None without one."""
    return None if moment is None else to_rfc3339(moment)
