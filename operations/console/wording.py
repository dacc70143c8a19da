"""How the console writes numbers, times and errors. Pure."""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fastapi.exceptions import RequestValidationError

from shared.money import to_json_number

ROOT = Path(__file__).parents[2]
"""Where the packages of this project are; every service of an installation has them from there."""

_UNITS = ((86400.0, "d"), (3600.0, "h"), (60.0, "min"))


def duration(seconds: float | None) -> str:
    """Write a time span: 12 ms, 3.4 s, 2 min 5 s, 3 h 10 min, 2 d 4 h; empty for None."""
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


def ago(moment: datetime, now: datetime) -> str:
    """Write how long ago, or in how long, a moment is."""
    seconds = (now - moment).total_seconds()
    if abs(seconds) < 1:
        return "now"
    span = _rounded(abs(seconds))
    return f"{span} ago" if seconds > 0 else f"in {span}"


def _rounded(seconds: float) -> str:
    for size, unit in _UNITS:
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def clock(moment: object) -> str:
    """Write a moment with its day, in UTC, to the second; nothing for what is no moment, as a field may be absent."""
    return "" if not isinstance(moment, datetime) else f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S}"


def iso(moment: object) -> str:
    """Write a moment for machines."""
    return "" if not isinstance(moment, datetime) else moment.astimezone(UTC).isoformat(timespec="milliseconds")


def number(value: object) -> str:
    """Write a count with separators: 12,345; a dash for what is not known."""
    if not isinstance(value, int | float):
        return "—"
    return f"{value:,.0f}" if float(value).is_integer() or abs(value) >= 100 else f"{value:,.1f}"


def percent(share: float | None) -> str:
    """Write a share of one as a percentage; a dash for what is not known."""
    return "—" if share is None else f"{share * 100:.1f} %"


def money(minor: Any) -> str:
    """Write minor units as an amount; a dash for what is not known."""
    return f"{to_json_number(minor):,.2f}" if isinstance(minor, int) else "—"


def in_project(traceback: str) -> str:
    """Write the files of this project in a traceback by where they are in the project, not on the machine."""
    return traceback.replace(f'"{ROOT}/', '"')


def size(count: int) -> str:
    """Write a number of bytes."""
    if count < 1024:
        return f"{count} bytes"
    return f"{count / 1024:.1f} KiB" if count < 1024**2 else f"{count / 1024**2:.1f} MiB"


def slug(text: object) -> str:
    """Write a word so that it can name a class of the style sheet."""
    return "".join(c if c.isalnum() else "-" for c in str(text).lower())


def in_words(error: RequestValidationError) -> str:
    """Say which fields of a form or an address are wrong."""
    problems = error.errors()[:10]
    return "; ".join(f"{'.'.join(str(part) for part in p['loc'][1:])}: {p['msg']}" for p in problems)


FILTERS: Mapping[str, Callable[..., str]] = {
    "duration": duration,
    "clock": clock,
    "iso": iso,
    "number": number,
    "percent": percent,
    "money": money,
    "size": size,
    "in_project": in_project,
    "slug": slug,
}
