"""Parses the ages and durations that users type, such as 30d. Pure."""

import re
from datetime import timedelta

UNITS = {
    "s": timedelta(seconds=1),
    "m": timedelta(minutes=1),
    "h": timedelta(hours=1),
    "d": timedelta(days=1),
    "w": timedelta(weeks=1),
}

LEAST = timedelta(days=1)
"""The minimum: a message of a younger order may still be under way, and must find its records."""

MOST = timedelta(days=36_500)


def read_duration(text: str) -> timedelta:
    """Parse a duration: a whole number and a unit (s, m, h, d or w).

    Raises ValueError with a message for the user if it is not one, or longer than MOST.
    """
    found = re.fullmatch(r"([0-9]{1,9})([smhdw])", text.strip())
    if not found:
        raise ValueError(f"{text!r} is not a duration: write a whole number and s, m, h, d or w, such as 30d")
    number, unit = int(found[1]), UNITS[found[2]]
    if number * unit.total_seconds() > MOST.total_seconds():
        raise ValueError(f"{text} is more than {MOST.days} days")
    return number * unit


def read_age(text: str) -> timedelta:
    """Parse an age: a whole number and a unit (s, m, h, d or w).

    Raises ValueError with a message for the user if it is not one, or less than a day.
    """
    age = read_duration(text)
    if age < LEAST:
        raise ValueError(f"{text} is less than a day: an order that young may still have messages under way")
    return age
