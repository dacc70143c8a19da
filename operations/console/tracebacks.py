"""Divides a stack trace into frames of this project, which are shown, and of libraries, which are folded. Pure."""

import re
from collections.abc import Iterator
from itertools import groupby
from typing import NamedTuple

_FRAME = re.compile(r'^\s*File "([^"]*)", line \d+')
_LIBRARY = re.compile(r"(?:^|/)(?:site-packages|dist-packages|lib(?:64)?/python[0-9.]+)/|^<frozen ")


class TracebackPart(NamedTuple):
    """Some lines of a stack trace; `frames` of libraries are folded, and 0 for lines that are shown."""

    text: str
    frames: int = 0


def fold(traceback: str) -> list[TracebackPart]:
    """Return the parts of a stack trace; all their lines together are the trace.

    A frame is the line that names its file, and the more deeply indented lines after it.
    """
    parts = []
    for is_library, units in groupby(_units(traceback), key=lambda unit: unit[0]):
        texts = [text for _, text in units]
        parts.append(TracebackPart("".join(texts), len(texts) if is_library else 0))
    return parts


def _units(traceback: str) -> Iterator[tuple[bool, str]]:
    """Yield each frame and each other line, with whether it is a frame of a library."""
    frame: list[str] = []
    is_library, indent = False, 0
    for line in traceback.splitlines(keepends=True):
        found = _FRAME.match(line)
        if frame and not found and (_indent(line) > indent or not line.strip()):
            frame.append(line)
            continue
        if frame:
            yield is_library, "".join(frame)
            frame = []
        if found:
            frame, is_library, indent = [line], bool(_LIBRARY.search(found[1])), _indent(line)
        else:
            yield False, line
    if frame:
        yield is_library, "".join(frame)


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())
