"""What a failure has in common with others of the same cause: its message without what differs. Pure."""

import hashlib
import re
from collections.abc import Iterable

MOST_COMPARED = 500
"""Characters of a message that are looked at: what follows is detail."""

_HOLE = "#"
_HOLES: tuple[tuple[re.Pattern[str], str], ...] = (
    # "(got …)" is how our own readers show a refused value, whatever its shape.
    (re.compile(r"\(got .*?\)(?=;|$)", re.DOTALL), "(got #)"),
    (re.compile(r"\b[a-z][a-z0-9+.-]*://[^\s'\",;)]+", re.IGNORECASE), _HOLE),
    (re.compile(r"'[^']*'|\"[^\"]*\"|`[^`]*`"), _HOLE),
    (re.compile(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+"), _HOLE),
    # Numbers, versions, IP addresses with their port; then every word with a digit in it, but not the path around an
    # index: items.0.price is another field than items.0.quantity.
    (re.compile(r"\b\d+(?:\.\d+)+(?::\d+)?\b"), _HOLE),
    (re.compile(r"[\w:+-]*\d[\w:+-]*"), _HOLE),
    (re.compile(r"\b[0-9a-f]{16,}\b", re.IGNORECASE), _HOLE),
    (re.compile(r"\b(?:True|False|None|null|true|false)\b"), _HOLE),
    (re.compile(rf"{_HOLE}(?:[\s,;:/.-]*{_HOLE})+"), _HOLE),
    (re.compile(r"\s+"), " "),
)


def pattern(message: str, known: Iterable[str] = ()) -> str:
    """The message without ids, numbers, quoted values and addresses; `known` are texts that are ids for certain."""
    text = message[:MOST_COMPARED]
    for value in sorted({value for value in known if len(value) > 2}, key=len, reverse=True):
        text = text.replace(value, _HOLE)
    for hole, filled in _HOLES:
        text = hole.sub(filled, text)
    return text.strip(" .")


def fingerprint(queue: str, routing_key: str, error_type: str, message_pattern: str) -> str:
    """The id of the group of all failures with this queue, routing key, error type and message pattern."""
    parts = "\0".join((queue, routing_key, error_type, message_pattern))
    return hashlib.sha256(parts.encode("utf-8", "backslashreplace")).hexdigest()[:16]
