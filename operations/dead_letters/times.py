"""Reads the times that users type: a date, a time, or an age. Pure."""

import re
from datetime import UTC, datetime, timedelta

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def read_time(text: str, now: datetime) -> datetime:
    """Parse a date (2026-01-31), a time (2026-01-31T09:30:00Z) or an age (90s, 2h, 3d).

    Raises ValueError with a message for the user.
    """
    try:
        return _read(text, now).astimezone(UTC)
    except OverflowError:
        raise ValueError(f"{text!r} is outside of the years 1 to 9999") from None


def _read(text: str, now: datetime) -> datetime:
    if found := re.fullmatch(r"([0-9]{1,6})([smhdw])", text.strip()):
        return now - timedelta(**{_UNITS[found[2]]: int(found[1])})
    try:
        at = datetime.fromisoformat(text.strip())
    except ValueError:
        raise ValueError(
            f"{text!r} is not a time: write a date (2026-01-31), a time (2026-01-31T09:30:00Z) or an age (2h)"
        ) from None
    return at if at.tzinfo else at.replace(tzinfo=UTC)
