"""The command `ordersaga dead-letters export`."""

import contextlib
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import typer

from operations.commands.dead_letters.desk import LetterDesk
from operations.commands.dead_letters.options import (
    Error,
    GroupId,
    Ids,
    Order,
    Service,
    Since,
    Text,
    Type,
    Unmasked,
    Until,
    build_filters,
    require_selection,
)
from operations.commands.dead_letters.session import require_unmasked, run
from operations.commands.options import AsJson
from operations.commands.terminal import as_ascii_json
from operations.dead_letters.status import STATUSES
from operations.stack.files import open_private, replaced_private

_LINES = (b"", b"\n", b"\n")
_DOCUMENT = (b'{"items": [', b", ", b'], "nextCursor": null}\n')
"""The bytes before, between and after the letters of an export."""


def export_letters(
    ids: Ids = None,
    all_letters: Annotated[bool, typer.Option("--all", help="Select all letters of every status.")] = False,
    service: Service = None,
    error: Error = None,
    type_: Type = None,
    status: Annotated[
        str | None,
        typer.Option(
            "--status",
            help=f"Statuses separated by commas ({', '.join(STATUSES)}), or all.",
            show_default="those that need attention",
        ),
    ] = None,
    since: Since = None,
    until: Until = None,
    order: Order = None,
    text: Text = None,
    group: GroupId = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Output file.", show_default="stdout")] = None,
    unmasked: Unmasked = False,
    as_json_document: AsJson = False,
) -> None:
    """Write letters as JSON lines (with --json as one document), with their bodies as text or in base64.

    Exit status 0 when done, 1 if no letter is selected or --unmasked is refused, 2 for wrong usage, 3 if a server
    cannot be reached.
    """
    filters = build_filters(ids, service, error, type_, since, until, order, text, group, status)
    filters = replace(filters, status=STATUSES) if all_letters else require_selection(filters, all_letters)

    async def write(desk: LetterDesk) -> None:
        selection = await desk.resolve(filters)
        if unmasked:
            await require_unmasked(desk, "--unmasked")
        letters = desk.export(selection, masked=not unmasked)
        with _opened(output) as file:
            number = await _write(letters, file, as_json_document)
        typer.echo(f"exported {number:,}", err=True)
        if not number:
            raise typer.Exit(1)

    run(write)


async def _write(letters: AsyncIterator[dict[str, Any]], file: BinaryIO, as_json_document: bool) -> int:
    """Write the letters and return their number."""
    before, between, after = _DOCUMENT if as_json_document else _LINES
    number = 0
    file.write(before)
    async for letter in letters:
        file.write((between if number else b"") + as_ascii_json(letter).encode())
        number += 1
    file.write(after if number or as_json_document else b"")
    file.flush()
    return number


@contextlib.contextmanager
def _opened(output: Path | None) -> Iterator[BinaryIO]:
    """Open the output; a file is replaced at the end, and stays as it was if letters cannot be read."""
    try:
        with _writing(output) as file:
            yield file
    except OSError as error:
        if output is None:
            raise
        raise typer.BadParameter(f"{output}: {error.strerror or error}", param_hint="--output") from error


def _writing(output: Path | None) -> AbstractContextManager[BinaryIO]:
    if output is None:
        return contextlib.nullcontext(sys.stdout.buffer)
    if output.exists() and not output.is_file():  # such as /dev/stdout
        return open_private(output, "wb")
    return replaced_private(output.resolve())
