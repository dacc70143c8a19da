"""Messages of errors reduced to a pattern, so that failures of one cause are recognised as such. Pure."""

import re
from collections.abc import Iterable

MOST_COMPARED = 500
"""Characters of a message that are compared; the rest is detail."""

_HOLE = "#"
_HOLES: tuple[tuple[re.Pattern[str], str], ...] = (
    # "(got …)" is how our own readers show a rejected value, whatever its shape.
    (re.compile(r"\(got .*?\)(?=;|$)", re.DOTALL), "(got #)"),
    (re.compile(r"\b[a-z][a-z0-9+.-]*://[^\s'\",;)]+", re.IGNORECASE), _HOLE),
    (re.compile(r"'[^']*'|\"[^\"]*\"|`[^`]*`"), _HOLE),
    (re.compile(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+"), _HOLE),
    # Numbers, versions, IP addresses with their port; then every word that contains a digit, but not the path around an
    # index: items.0.price and items.0.quantity are different fields.
    (re.compile(r"\b\d+(?:\.\d+)+(?::\d+)?\b"), _HOLE),
    (re.compile(r"[\w:+-]*\d[\w:+-]*"), _HOLE),
    (re.compile(r"\b[0-9a-f]{16,}\b", re.IGNORECASE), _HOLE),
    (re.compile(r"\b(?:True|False|None|null|true|false)\b"), _HOLE),
    (re.compile(rf"{_HOLE}(?:[\s,;:/.-]*{_HOLE})+"), _HOLE),
    (re.compile(r"\s+"), " "),
)


def pattern(message: str, known: Iterable[str] = ()) -> str:
    """Return a message without ids, numbers, quoted values and addresses; `known` are certain to be ids."""
    text = message[:MOST_COMPARED]
    for value in sorted({value for value in known if len(value) > 2}, key=len, reverse=True):
        text = text.replace(value, _HOLE)
    for hole, filled in _HOLES:
        text = hole.sub(filled, text)
    return text.strip(" .")
