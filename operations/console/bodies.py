"""Formats a message's body for a page: indented JSON, else text, else a hex dump, cut to a bearable size. Pure."""

import json
from typing import Literal, NamedTuple

from operations.dead_letters.masking import masked
from shared.database import Document

MOST_SHOWN = 100_000
"""Characters of a body that are shown."""

MOST_INDENTED = 1_000_000
"""The largest JSON that is indented, in bytes: it is parsed whole, though formatted only as far as it is shown."""

MOST_EDITED = 200 * 1024
"""The largest body that a form can edit, in bytes: a request is limited to 256 KiB."""

HIDDEN = "This body is no JSON, or too large to hide what is confidential in it: only who may edit letters sees it"

_DUMPED = 1024


class BodyView(NamedTuple):
    """The visible part of a body, and its size in bytes."""

    kind: Literal["JSON", "text", "bytes"]
    text: str
    size: int
    cut: bool

    @property
    def editable(self) -> bool:
        """True if a form can edit the body."""
        return self.kind != "bytes" and self.size <= MOST_EDITED


def view(body: bytes) -> BodyView:
    """Format a body for a page."""
    try:
        text = body.decode()
    except UnicodeDecodeError:
        return BodyView("bytes", _dump(body[:_DUMPED]), len(body), len(body) > _DUMPED)
    indented = _indented(text) if len(body) <= MOST_INDENTED else None
    shown = indented if indented is not None else text
    return BodyView("text" if indented is None else "JSON", shown[:MOST_SHOWN], len(body), len(shown) > MOST_SHOWN)


def view_masked(body: bytes | None, size: int) -> BodyView:
    """Format a body for somebody who must not see tokens and personal fields."""
    shown = masked(body) if body is not None else None
    if shown is None:
        return BodyView("text", f"{HIDDEN} ({size} bytes)", size, cut=False)
    return view(shown)._replace(size=size)


def view_of(letter: Document, *, unmasked: bool) -> BodyView:
    """Format the body of a letter; of a big one, which a page does not load, only the beginning."""
    if not unmasked:
        return view_masked(letter["body"], letter["size"])
    if letter["body"] is None:
        return BodyView("text", letter["bodyText"], letter["size"], cut=True)
    return view(letter["body"])


def _indented(text: str) -> str | None:
    """Indent the visible part of a JSON text, and a little more if it is longer; return None if it is not JSON.

    Indenting nested lists can multiply their size: formatting all of it could block the process for seconds.
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
    # A lone surrogate cannot be encoded; its escape can, and means the same in JSON.
    return "".join(parts).encode("utf-8", "backslashreplace").decode()


def _dump(body: bytes) -> str:
    """Format bytes as a hex dump, sixteen per line, with the printable characters beside them."""
    lines = []
    for start in range(0, len(body), 16):
        part = body[start : start + 16]
        readable = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in part)
        lines.append(f"{start:06x}  {part.hex(' '):<47}  {readable}")
    return "\n".join(lines)
