"""What an edit changes in a body, field by field. Pure."""

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

from jsonpointer import JsonPointer

from operations.dead_letters.masking import MASK, is_sensitive, mask_text, mask_value

LONGEST_VALUE = 300
"""Characters of a value that are shown."""

_ABSENT = object()


class Change(NamedTuple):
    """A field that an edit changes: its JSON pointer, and its value as JSON before and after; None is no such field."""

    path: str
    before: str | None
    after: str | None

    def in_words(self) -> str:
        """Describe the change, such as "/totalAmount: 10 → 12"."""
        return f"{self.path or 'body'}: {self.before or 'nothing'} → {self.after or 'nothing'}"

    def as_json(self) -> dict[str, str | None]:
        """Return the change as a JSON document shows it."""
        return self._asdict()


def differences(before: bytes, after: bytes, *, masked: bool = False) -> list[Change]:
    """Return what differs between two bodies, in the order of the fields; with `masked`, without what is hidden.

    A body that is not JSON differs as a whole.
    """
    try:
        old, new = json.loads(before), json.loads(after)
    except (ValueError, RecursionError):
        texts = [body.decode("utf-8", "replace") for body in (before, after)]
        return [] if before == after else [Change("", *(_cut(mask_text(text) if masked else text) for text in texts))]
    return [
        Change(
            JsonPointer.from_parts(path).path,
            *(None if value is _ABSENT else _shown(path, value, masked) for value in values),
        )
        for path, *values in _changes((), old, new)
    ]


def is_same(old: Any, new: Any) -> bool:
    """Return whether two JSON values are the same; numbers of another type, such as 1 and 1.0, are not."""
    return next(_changes((), old, new), None) is None


def _changes(path: tuple[str, ...], old: Any, new: Any) -> Iterator[tuple[tuple[str, ...], Any, Any]]:
    if isinstance(old, dict) and isinstance(new, dict):
        for name in [*old, *(name for name in new if name not in old)]:
            yield from _changes((*path, name), old.get(name, _ABSENT), new.get(name, _ABSENT))
    elif isinstance(old, list) and isinstance(new, list):
        for index in range(max(len(old), len(new))):
            items = (values[index] if index < len(values) else _ABSENT for values in (old, new))
            yield from _changes((*path, str(index)), *items)
    elif type(old) is not type(new) or old != new:
        yield path, old, new


def _shown(path: tuple[str, ...], value: Any, masked: bool) -> str:
    if masked:
        value = MASK if any(map(is_sensitive, path)) else mask_value(value)
    return _cut(json.dumps(value, ensure_ascii=False))


def _cut(text: str) -> str:
    # A lone surrogate cannot be encoded, neither for a page nor for a terminal.
    text = text.encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= LONGEST_VALUE else f"{text[: LONGEST_VALUE - 1]}…"
