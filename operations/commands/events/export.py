"""The command `ordersaga events export`."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import typer
import uvloop
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from operations.commands.events.options import FromOffset, Order, Since, Types, build_selection, failing_with_status
from operations.commands.target import chosen_stack
from operations.commands.terminal import open_console
from operations.events.event import Selection
from operations.events.files import Format, Opener, opener
from operations.events.stream import Span, read_kept
from operations.stack.files import replaced_private


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
    Payment tokens are hidden.

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
                number = uvloop.run(_export(url, selection, out, opened, on_progress))
        except OSError as error:
            typer.echo(f"{out} cannot be written: {error.strerror or error}", err=True)
            raise typer.Exit(1) from error
    typer.echo(f"exported {number:,} events to {out}", err=True)


async def _export(
    url: str, selection: Selection, out: Path, opened: Opener, on_progress: Callable[[Span], None]
) -> int:
    """Write the selected events to a new file in place of `out`; return their number."""
    number = 0
    with replaced_private(out) as file, opened(file) as writer:
        async with contextlib.aclosing(read_kept(url, selection, on_progress)) as batches:
            async for events in batches:
                writer.write(events)
                number += len(events)
    return number


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
