"""Formats numbers, times and errors for the console. Pure."""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fastapi.exceptions import RequestValidationError

from operations.console.tracebacks import fold
from operations.impact.wording import amounts_in_words, money_in_words, orders_in_words
from order_service.order_number import order_number
from shared.money import to_json_number

ROOT = Path(__file__).parents[2]
"""The directory of this project's packages, the same for every service of an installation."""

_UNITS = ((86400.0, "d"), (3600.0, "h"), (60.0, "min"))


def duration(seconds: float | None) -> str:
    """Format a time span: 12 ms, 3.4 s, 2 min 5 s, 3 h 10 min, 2 d 4 h; empty for None."""
    if seconds is None:
        return ""
    if seconds < 0:
        return f"-{duration(-seconds)}"
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    for (size, unit), (smaller, name) in zip(_UNITS, (*_UNITS[1:], (1.0, "s")), strict=True):
        if seconds >= size:
            whole, rest = divmod(seconds, size)
            return f"{whole:.0f} {unit}" + (f" {rest // smaller:.0f} {name}" if rest >= smaller else "")
    return ""


def ago(at: datetime, now: datetime) -> str:
    """Format a time relative to now: 3 min ago, in 10 s."""
    seconds = (now - at).total_seconds()
    if abs(seconds) < 1:
        return "just now"
    span = _rounded(abs(seconds))
    return f"{span} ago" if seconds > 0 else f"in {span}"


def _rounded(seconds: float) -> str:
    for size, unit in _UNITS:
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def clock(at: object) -> str:
    """Format a time in UTC, to the second; empty for anything else, since fields may be absent."""
    return "" if not isinstance(at, datetime) else f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S}"


def iso(at: object) -> str:
    """Format a time for machines."""
    return "" if not isinstance(at, datetime) else at.astimezone(UTC).isoformat(timespec="milliseconds")


def number(value: object) -> str:
    """Format a number with separators: 12,345; a dash for None."""
    if not isinstance(value, int | float):
        return "—"
    return f"{value:,.0f}" if float(value).is_integer() or abs(value) >= 100 else f"{value:,.1f}"


def percent(share: float | None) -> str:
    """Format a share as a percentage; a dash for None."""
    return "—" if share is None else f"{share * 100:.1f} %"


def money(minor: Any) -> str:
    """Format minor units as an amount; a dash for anything else."""
    return f"{to_json_number(minor):,.2f}" if isinstance(minor, int) else "—"


def number_of(order_id: str) -> str:
    """Return the number of an order for people; the beginning of an id that has none."""
    return order_number(order_id) or (order_id if len(order_id) <= 13 else f"{order_id[:12]}…")


def in_project(traceback: str) -> str:
    """Make the paths of this project's files in a traceback relative to the project."""
    return traceback.replace(f'"{ROOT}/', '"')


def size(count: int) -> str:
    """Format a number of bytes."""
    if count < 1024:
        return f"{count} bytes"
    return f"{count / 1024:.1f} KiB" if count < 1024**2 else f"{count / 1024**2:.1f} MiB"


def sentence(text: str) -> str:
    """Return a text that begins a sentence."""
    return text[:1].upper() + text[1:]


def slug(text: object) -> str:
    """Convert a word to a class name of the style sheet."""
    return "".join(c if c.isalnum() else "-" for c in str(text).lower())


def validation_text(error: RequestValidationError) -> str:
    """Describe the invalid fields of a form or a URL."""
    problems = error.errors()[:10]
    return "; ".join(f"{'.'.join(str(part) for part in p['loc'][1:])}: {p['msg']}" for p in problems)


FILTERS: Mapping[str, Callable[..., Any]] = {
    "duration": duration,
    "clock": clock,
    "iso": iso,
    "number": number,
    "order_number": number_of,
    "percent": percent,
    "money": money,
    "size": size,
    "in_project": in_project,
    "sentence": sentence,
    "slug": slug,
    "fold": fold,
    "impact_orders": orders_in_words,
    "impact_money": money_in_words,
    "amounts": amounts_in_words,
}
