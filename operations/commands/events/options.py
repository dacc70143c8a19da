"""Options that the commands share, and the errors that end them."""

import contextlib
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Annotated

import typer

from operations.commands.terminal import print_error
from operations.commands.times import time_or_age_option
from operations.errors import CommandError, DataDirectoryError, UnreachableError
from operations.events.event import Selection

SINCE = "Since a date or time, or within a span such as 2h."
"""The help of --since."""

Since = Annotated[str | None, typer.Option("--since", metavar="TIME", help=SINCE, show_default="all")]
Types = Annotated[
    list[str] | None,
    typer.Option(
        "--type", metavar="TYPE", help="Type such as order.failed or 'order.*'; may be repeated.", show_default="any"
    ),
]
FromOffset = Annotated[int, typer.Option("--offset", min=0, metavar="N", help="From this place in the stream on.")]
Order = Annotated[str | None, typer.Option("--order", metavar="ID", help="Id of the order.", show_default="any")]


def build_selection(since: str | None, types: Sequence[str] | None, order_id: str | None, offset: int) -> Selection:
    """Return the events that the options select. Raises BadParameter for an invalid time."""
    at = time_or_age_option(since, "--since", datetime.now(UTC))
    return Selection(tuple(types or ()), order_id, at, offset)


@contextlib.contextmanager
def failing_with_status() -> Iterator[None]:
    """End with exit status 1 for an error of the command; others have their own, which the command line knows."""
    try:
        yield
    except (UnreachableError, DataDirectoryError):
        raise
    except CommandError as error:
        print_error(str(error))
        raise typer.Exit(1) from None
