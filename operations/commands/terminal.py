"""Safe output on the operator's terminal: consoles and JSON with control characters escaped.

Every command gets its console here. A record may contain any text that a client, a provider or a faulty sender wrote;
control and format characters in it must not reach the terminal.
"""

import json
from collections.abc import Iterator
from typing import IO, Any

import typer
from rich.console import Console, ConsoleOptions, RenderableType
from rich.markup import escape
from rich.segment import Segment

from shared.printable import printable

UNLIMITED_WIDTH = 100_000_000
"""Columns if the output is not a terminal: lines for a program are never wrapped or cut. No record is longer."""

_DELETE = "\x7f"


class _SafeConsole(Console):
    """A console that escapes all unprintable characters except its own control codes."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        for segment in super().render(renderable, options):
            if segment.control or segment.text.isprintable():
                yield segment
            else:
                yield Segment(printable(segment.text, keep_lines=True), segment.style)


def open_console(*, stderr: bool = False, file: IO[str] | None = None, **options: Any) -> Console:
    """Return a console on stdout, on stderr or on a file; `options` are those of Rich.

    If it is not a terminal, the line length is unlimited, whatever COLUMNS says: that is the width of a terminal.
    """
    console = _SafeConsole(stderr=stderr, file=file, emoji=False, **options)
    if not console.is_terminal and "width" not in options:
        console.width = UNLIMITED_WIDTH
    return console


def foreign(text: object) -> str:
    """Return text from outside as one line of Rich markup that displays it literally."""
    return escape(printable(str(text)))


def counted(number: int, plural: str) -> str:
    """Return a number with its noun, such as "1 file" or "1,200 files"; the plural ends in an s."""
    return f"{number:,} {plural.removesuffix('s') if number == 1 else plural}"


def print_error(text: str) -> None:
    """Print an error to stderr."""
    open_console(stderr=True).print(text, style="red", markup=False, highlight=False, soft_wrap=True)


def print_json(document: object) -> None:
    """Print a JSON document to stdout; see `as_ascii_json`."""
    typer.echo(as_ascii_json(document, indent=2))


def as_ascii_json(document: object, *, indent: int | None = None) -> str:
    """Return a document as JSON in printable ASCII, so no string in it can control the terminal.

    Values that JSON does not support, such as times, are written as text.
    """
    return json.dumps(document, indent=indent, default=str).replace(_DELETE, r"\u007f")
