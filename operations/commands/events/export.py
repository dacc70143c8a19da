"""The command `ordersaga events export`."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer
import uvloop
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from operations.commands.events.options import FromOffset, Order, Since, Types, build_selection, failing_with_status
from operations.commands.target import chosen_stack
from operations.commands.terminal import open_console
from operations.events.event import Event, Selection
from operations.events.files import Format, Opener, opener
from operations.events.stream import Span, read_kept
from operations.stack.files import replaced_private

OFFSETS_SHOWN = 10


def export(
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="File to write; replaced at the end.")],
    format_: Annotated[
        Format, typer.Option("--format", help="JSON lines, or Parquet, which needs the extra `export` of the package.")
    ] = "jsonl",
    since: Since = None,
    types: Types = None,
    order: Order = None,
    offset: FromOffset = 0,
) -> None:
    """Write the events that the stream has now to a file, all or those of a time, a type or an order.

    The file takes its name when it is complete, also if it has no events; otherwise, an existing file stays as it is.
    Payment tokens are hidden. Of an event whose body is not a JSON object, the file has the length and the hash, and
    the command says at which offset.

    Exit status 0 when done, 1 if there is no stream, the extra is missing or the file cannot be written, 2 for wrong
    usage, 3 if the broker cannot be reached.
    """
    selection = build_selection(since, types, order, offset)
    if out.exists() and not out.is_file():
        raise typer.BadParameter(f"{out} is not a file", param_hint="--out")
    if not out.parent.is_dir():
        raise typer.BadParameter(f"{out.parent} is not a directory", param_hint="--out")
    console = open_console(stderr=True)
    with failing_with_status():
        opened, url = opener(format_), chosen_stack().amqp_url
        try:
            with _progress(console) as on_progress:
                written = uvloop.run(_export(url, selection, out, opened, on_progress))
        except OSError as error:
            typer.echo(f"{out} cannot be written: {error.strerror or error}", err=True)
            raise typer.Exit(1) from error
    typer.echo(f"exported {written.events:,} events to {out}", err=True)
    if written.unreadable:
        typer.echo(_about_unreadable(written), err=True)


@dataclass(slots=True)
class _Written:
    """How many events were written, how many of them without their body, and the offsets of the first of those."""

    events: int = 0
    unreadable: int = 0
    offsets: list[int] = field(default_factory=list)

    def add(self, events: Sequence[Event]) -> None:
        self.events += len(events)
        for event in events:
            if event.is_unreadable:
                self.unreadable += 1
                if len(self.offsets) < OFFSETS_SHOWN:
                    self.offsets.append(event.offset)


def _about_unreadable(written: _Written) -> str:
    shown = ", ".join(map(str, written.offsets))
    more = " and more" if written.unreadable > len(written.offsets) else ""
    return (
        f"{written.unreadable:,} of them without the body, which is not a JSON object or is nested too deeply: "
        f"the file has its length and hash (at offset {shown}{more})"
    )


async def _export(
    url: str, selection: Selection, out: Path, opened: Opener, on_progress: Callable[[Span], None]
) -> _Written:
    """Write the selected events to a new file in place of `out`."""
    written = _Written()
    with replaced_private(out) as file, opened(file) as writer:
        async with contextlib.aclosing(read_kept(url, selection, on_progress)) as batches:
            async for events in batches:
                writer.write(events)
                written.add(events)
    return written


@contextlib.contextmanager
def _progress(console: Console) -> Iterator[Callable[[Span], None]]:
    """Show a bar for the part of the stream that was read, if the console is a terminal."""
    columns = (TextColumn("events read"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("events", total=None)

        def show(span: Span) -> None:
            if span.first is None or span.next is None or span.last is None:
                return
            total = span.last - span.first + 1
            progress.update(task, total=total, completed=min(span.next - span.first, total))

        yield show
