"""Times on the command line."""

from datetime import UTC, datetime
from typing import Annotated

import typer

from operations.dead_letters.times import read_time

PeriodStart = Annotated[
    str | None,
    typer.Option("--from", metavar="TIME", help="Start of the period.", show_default="the first movement"),
]
PeriodEnd = Annotated[
    str | None, typer.Option("--to", metavar="TIME", help="End of the period, exclusive.", show_default="now")
]


def time_option(text: str | None, option: str) -> datetime | None:
    """Return the time that an option gives, in UTC unless it has an offset; None if it is not given."""
    if text is None:
        return None
    try:
        at = datetime.fromisoformat(text)
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is not a date or a time", param_hint=option) from error
    return at if at.tzinfo else at.replace(tzinfo=UTC)


def time_or_age_option(text: str | None, option: str, now: datetime) -> datetime | None:
    """Return the time that an option gives as a date, a time, or an age such as 2h; None if it is not given."""
    try:
        return None if text is None else read_time(text, now)
    except ValueError as invalid:
        raise typer.BadParameter(str(invalid), param_hint=option) from invalid
