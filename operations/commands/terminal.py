"""What commands print with: consoles and JSON that nothing from outside can use to act on the operator's terminal.

Every command gets its console here. A record may hold any text that a client, a provider or a broken sender has
written; whatever a command prints of it, control and format characters come out escaped.
"""

import json
import os
from collections.abc import Iterator
from typing import IO, Any

import typer
from rich.console import Console, ConsoleOptions, RenderableType
from rich.markup import escape
from rich.segment import Segment

from shared.printable import printable

UNLIMITED_WIDTH = 100_000
"""Columns of what is no terminal: a line that a program reads is never wrapped or cut."""

_DELETE = "\x7f"


class _SafeConsole(Console):
    """A console that escapes what is not printable in everything but its own control codes."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        for segment in super().render(renderable, options):
            if segment.control or segment.text.isprintable():
                yield segment
            else:
                yield Segment(printable(segment.text, keep_lines=True), segment.style)


def open_console(*, stderr: bool = False, file: IO[str] | None = None, **options: Any) -> Console:
    """Return a console on stdout, on stderr, or on a file; `options` are those of Rich.

    Where it is no terminal and COLUMNS is not set, lines have no limit.
    """
    console = _SafeConsole(stderr=stderr, file=file, emoji=False, **options)
    if not console.is_terminal and "width" not in options and "COLUMNS" not in os.environ:
        console.width = UNLIMITED_WIDTH
    return console


def foreign(text: object) -> str:
    """Return text from outside as one line of Rich markup that shows it as it is."""
    return escape(printable(str(text)))


def print_error(text: str) -> None:
    """Print what went wrong to stderr."""
    open_console(stderr=True).print(text, style="red", markup=False, highlight=False, soft_wrap=True)


def print_json(document: object) -> None:
    """Print a JSON document to stdout; see `as_ascii_json`."""
    typer.echo(as_ascii_json(document, indent=2))


def as_ascii_json(document: object, *, indent: int | None = None) -> str:
    """Write a document as JSON in printable ASCII, so that no string in it can act on a terminal.

    What JSON does not know, such as a time, is written as text.
    """
    return json.dumps(document, indent=indent, default=str).replace(_DELETE, r"\u007f")
