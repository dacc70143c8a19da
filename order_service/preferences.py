"""The header `Prefer` (RFC 7240) of a request. Pure."""

import re
from collections.abc import Iterable, Iterator

LONGEST_WAIT = 30
"""The most seconds that a request may wait; a longer wish is cut to this."""

_PREFERENCE = re.compile(r'\s*([\w!#$%&\'*+.^`|~-]+)\s*(?:=\s*(?:"([^"\\]*)"|([^\s",;]*)))?\s*(?:;[^,]*)?')
_SECONDS = re.compile(r"[0-9]{1,9}")


def wait_in(headers: Iterable[str]) -> int | None:
    """Return the seconds of `wait=N`, at most LONGEST_WAIT; None if it is missing or no positive whole number.

    The first `wait` counts. As the RFC demands, preferences that are unknown or make no sense are ignored.
    """
    value = next((value for name, value in _preferences(headers) if name == "wait"), "")
    seconds = int(value) if _SECONDS.fullmatch(value) else 0
    return min(seconds, LONGEST_WAIT) or None


def _preferences(headers: Iterable[str]) -> Iterator[tuple[str, str]]:
    for header in headers:
        for part in header.split(","):
            if found := _PREFERENCE.fullmatch(part):
                yield found[1].lower(), found[2] or found[3] or ""
