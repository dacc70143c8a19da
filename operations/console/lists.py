"""What all lists share: the period that is asked for, the addresses of their pages, and how many there are. Pure."""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import NamedTuple
from urllib.parse import urlencode

from operations.dead_letters.times import read_time
from shared.http import invalid

SPANS = {"1h": timedelta(hours=1), "24h": timedelta(hours=24), "7d": timedelta(days=7)}
"""The periods to choose from."""


class Period(NamedTuple):
    """A time range; the end is exclusive, and None is open."""

    since: datetime | None = None
    until: datetime | None = None


class PageLinks(NamedTuple):
    """A numbered page: the numbers of its first and last entry, how many there are, and the pages beside it."""

    first: int
    last: int
    total: int
    newer: str | None
    older: str | None


def read_period(span: str, since: str, until: str, now: datetime) -> Period:
    """Return a time range as forms give it: a span such as 24h, or two times. Raises the 422 problem.

    A beginning outweighs a span.
    """
    if span and span not in SPANS:
        raise invalid(("span", f"is {span!r}, must be one of {', '.join(SPANS)}"))
    begin = _time("since", since, now) or (now - SPANS[span] if span else None)
    return Period(begin, _time("until", until, now))


def _time(field: str, text: str, now: datetime) -> datetime | None:
    if not text.strip():
        return None
    try:
        return read_time(text, now)
    except ValueError as error:
        raise invalid((field, str(error))) from None


def address(path: str, asked: Mapping[str, str], **changed: str) -> str:
    """Return the address of a list with these parameters, without the empty ones."""
    chosen = {name: value for name, value in {**asked, **changed}.items() if value}
    return f"{path}?{urlencode(chosen)}" if chosen else path


def page_links(
    path: str, asked: Mapping[str, str], *, page: int, size: int, shown: int, total: int, parameter: str = "page"
) -> PageLinks:
    """Return the links of a page with this number, which begins at 1, and this many entries."""
    skipped = (page - 1) * size
    return PageLinks(
        first=skipped + 1,
        last=skipped + shown,
        total=total,
        newer=address(path, asked, **{parameter: str(page - 1) if page > 2 else ""}) if page > 1 else None,
        older=address(path, asked, **{parameter: str(page + 1)}) if skipped + shown < total and shown else None,
    )
