"""Shows a message's body to people: indented JSON, else text, else bytes; never more than a page can hold. Pure."""

import json
from typing import Literal, NamedTuple

from shared.database import Document

MOST_SHOWN = 100_000
"""Characters of a body that are shown."""

MOST_INDENTED = 1_000_000
"""Bytes of JSON that are indented: it is read whole for that, though written only as far as it is shown."""

MOST_EDITED = 200 * 1024
"""Bytes that can be edited in a form: a request is limited to 256 KiB."""

_DUMPED = 1024


class BodyView(NamedTuple):
    """What is shown of a body, and how many bytes it has."""

    kind: Literal["JSON", "text", "bytes"]
    text: str
    size: int
    cut: bool

    @property
    def editable(self) -> bool:
        """Whether a form can hold it."""
        return self.kind != "bytes" and self.size <= MOST_EDITED


def view(body: bytes) -> BodyView:
    """Return how a body is shown."""
    try:
        text = body.decode()
    except UnicodeDecodeError:
        return BodyView("bytes", _dump(body[:_DUMPED]), len(body), len(body) > _DUMPED)
    indented = _indented(text) if len(body) <= MOST_INDENTED else None
    shown = indented if indented is not None else text
    return BodyView("text" if indented is None else "JSON", shown[:MOST_SHOWN], len(body), len(shown) > MOST_SHOWN)


def view_of(letter: Document) -> BodyView:
    """Return how the body of a letter is shown on a page, which does not load a big one: by its beginning."""
    if letter["body"] is None:
        return BodyView("text", letter["bodyText"], letter["size"], cut=True)
    return view(letter["body"])


def _indented(text: str) -> str | None:
    """Indent what is shown of a JSON text, and a little more where that is not all; None for what is no JSON.

    Indenting makes much of little where lists are nested: all of it could take seconds, in which nobody is answered.
    """
    parts, length = [], 0
    try:
        for part in json.JSONEncoder(indent=2, ensure_ascii=False).iterencode(json.loads(text)):
            parts.append(part)
            length += len(part)
            if length > MOST_SHOWN:
                break
    except (ValueError, RecursionError):
        return None
    # Half of a surrogate pair is no text, but its escape is, and means the same to who reads the JSON again.
    return "".join(parts).encode("utf-8", "backslashreplace").decode()


def _dump(body: bytes) -> str:
    """Write bytes as sixteen to a line, with what is readable beside them."""
    lines = []
    for start in range(0, len(body), 16):
        part = body[start : start + 16]
        readable = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in part)
        lines.append(f"{start:06x}  {part.hex(' '):<47}  {readable}")
    return "\n".join(lines)
