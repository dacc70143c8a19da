"""The command `ordersaga events tail`."""

import contextlib
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Annotated, Protocol

import typer
import uvloop

from operations.commands.events.options import SINCE, FromOffset, Order, Types, build_selection, failing_with_status
from operations.commands.target import chosen_stack
from operations.commands.terminal import as_ascii_json, foreign, open_console
from operations.events.event import Event, summary
from operations.events.stream import follow, read_kept

WITHOUT_SINCE = "1h"


def tail(
    since: Annotated[
        str | None, typer.Option("--since", metavar="TIME", help=SINCE, show_default=f"{WITHOUT_SINCE}, or see above")
    ] = None,
    types: Types = None,
    order: Order = None,
    offset: FromOffset = 0,
    follow_on: Annotated[bool, typer.Option("--follow", "-f", help="Go on with each event as it comes.")] = False,
    as_json_document: Annotated[
        bool, typer.Option("--json", help="Print one JSON document; with --follow, one for each event in a line.")
    ] = False,
) -> None:
    """Show the events of the last hour, or of another time, in the order in which they were sent.

    Without --since, --order shows all that the stream still has of the order, and --offset all from there on. Payment
    tokens are hidden. With --follow, Ctrl-C ends it, and a broker that is away for less than a minute does not.

    Exit status 0, 1 if nothing was found or there is no stream, 2 for wrong usage, 3 if the broker cannot be reached.
    """
    selection = build_selection(since or (None if order or offset else WITHOUT_SINCE), types, order, offset)
    with failing_with_status():
        url = chosen_stack().amqp_url
        batches = follow(url, selection) if follow_on else read_kept(url, selection)
        found = _show_until_interrupted(batches, _printer(as_json_document, follow_on), stop_is_success=follow_on)
    if not found:
        raise typer.Exit(1)


def _show_until_interrupted(
    batches: AsyncGenerator[list[Event], None], printer: "_Printer", *, stop_is_success: bool
) -> bool:
    """Print the events; return whether there were any, or following them was ended with Ctrl-C."""
    try:
        with printer:
            return uvloop.run(_show(batches, printer.show))
    except KeyboardInterrupt:
        if stop_is_success:
            return True
        raise


async def _show(batches: AsyncGenerator[list[Event], None], show: Callable[[Sequence[Event]], None]) -> bool:
    found = False
    async with contextlib.aclosing(batches):
        async for events in batches:
            show(events)
            found = found or bool(events)
    return found


class _Printer(contextlib.AbstractContextManager[None], Protocol):
    def show(self, events: Sequence[Event]) -> None:
        """Print these events after the others."""


def _printer(as_json_document: bool, follow_on: bool) -> _Printer:
    if not as_json_document:
        return _Lines()
    return _JsonLines() if follow_on else _JsonDocument()


class _Lines(contextlib.nullcontext[None]):
    def __init__(self) -> None:
        super().__init__()
        self._console = open_console(highlight=False, soft_wrap=True)

    def show(self, events: Sequence[Event]) -> None:
        """Print a line for each event."""
        for event in events:
            at = f"{event.at:%Y-%m-%d %H:%M:%S}" if event.at else "at no known time"
            subject = f" [bold]{foreign(event.order_id)}[/]" if event.order_id else ""
            self._console.print(f"[dim]{at}[/]  {foreign(event.type):<18}{subject} {foreign(summary(event))}")


class _JsonLines(contextlib.nullcontext[None]):
    def show(self, events: Sequence[Event]) -> None:
        """Print each event as JSON in one line."""
        for event in events:
            typer.echo(as_ascii_json(event.as_json()))


class _JsonDocument(contextlib.AbstractContextManager[None]):
    def __init__(self) -> None:
        self._separator = ""

    def __enter__(self) -> None:
        typer.echo('{"items": [', nl=False)

    def show(self, events: Sequence[Event]) -> None:
        """Print these events as items of the document."""
        for event in events:
            typer.echo(f"{self._separator}\n{as_ascii_json(event.as_json())}", nl=False)
            self._separator = ","

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        if error is None:
            typer.echo('\n], "nextCursor": null}')
