"""Options that several commands share, and the selection of letters that they describe."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated

import typer

from operations.commands.times import time_or_age_option
from operations.dead_letters.filters import Filters
from operations.dead_letters.status import OUTCOMES, STATUSES

WITHIN_SECONDS = 180.0
"""Slightly longer than all levels of the retry ladder take."""

LetterId = Annotated[str, typer.Argument(help="Id of the letter, or its first characters.")]
Ids = Annotated[
    list[str] | None, typer.Argument(help="Ids of letters, or their first characters.", show_default="all that match")
]
All = Annotated[bool, typer.Option("--all", help="Select all letters.")]
Service = Annotated[
    str | None, typer.Option("--service", help="Service that failed, such as inventory.", show_default="any")
]
Error = Annotated[
    str | None, typer.Option("--error", help="Type of the error, such as PoisonError.", show_default="any")
]
Type = Annotated[
    str | None, typer.Option("--type", help="Type of the message, such as order.created.", show_default="any")
]
Since = Annotated[
    str | None,
    typer.Option(
        "--since",
        metavar="TIME",
        help="Failed since a date or time, or within a span such as 2h.",
        show_default="any time",
    ),
]
Until = Annotated[
    str | None, typer.Option("--until", metavar="TIME", help="Failed before a date or time.", show_default="any time")
]
Order = Annotated[str | None, typer.Option("--order", help="Id of the order.", show_default="any")]
Text = Annotated[
    str | None,
    typer.Option(
        "--text",
        help="Full-text search in body, error and ids; all words must match, a trailing * matches a prefix.",
        show_default="any",
    ),
]
GroupId = Annotated[str | None, typer.Option("--group", help="Fingerprint of a group.", show_default="any")]
Replay = Annotated[
    str | None,
    typer.Option("--replay", help="Id of a replay that has sent them, in any status now.", show_default="any"),
]
Outcome = Annotated[
    str | None,
    typer.Option("--outcome", help=f"What became of them in that replay: {', '.join(OUTCOMES)}.", show_default="any"),
]
Unmasked = Annotated[
    bool, typer.Option("--unmasked", help="Show tokens and personal fields; your key needs letters:edit.")
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")]
Rate = Annotated[float, typer.Option("--rate", min=0.1, max=10_000, help="Letters per second.")]
Careful = Annotated[
    bool,
    typer.Option(
        "--careful/--at-once",
        help="Send 1 letter, then 5, 25 and so on up to the rate, each time once all that was sent is handled; "
        "stop when one fails again.",
    ),
]
Wait = Annotated[bool, typer.Option("--wait", help="Wait until the outcome of every message is known.")]
Within = Annotated[float, typer.Option("--within", min=0, metavar="SECONDS", help="Time limit of --wait.")]
Why = Annotated[
    str | None, typer.Option("--why", help="Reason, kept in the log of actions.", show_default="asked for where needed")
]


def build_filters(
    ids: Sequence[str] | None,
    service: str | None,
    error: str | None,
    type_: str | None,
    since: str | None,
    until: str | None,
    order: str | None,
    text: str | None,
    group: str | None,
    status: str | None = None,
    replay: str | None = None,
    outcome: str | None = None,
) -> Filters:
    """Return the filters that the options describe. Raises BadParameter for an invalid status, outcome or time."""
    now = datetime.now(UTC)
    statuses = STATUSES if status == "all" else tuple(name.strip() for name in (status or "").split(",") if name)
    try:
        return Filters(
            ids=tuple(dict.fromkeys(ids or ())),
            service=service,
            error=error,
            type=type_,
            status=statuses,
            since=time_or_age_option(since, "--since", now),
            until=time_or_age_option(until, "--until", now),
            order_id=order,
            text=text,
            group=group,
            replay=replay,
            outcome=outcome,
        )
    except ValueError as invalid:
        raise typer.BadParameter(str(invalid), param_hint="--outcome" if outcome else "--status") from invalid


def require_selection(filters: Filters, all_letters: bool) -> Filters:
    """Return the filters. Raises BadParameter unless either filters or --all are given."""
    if (filters != Filters()) == all_letters:
        raise typer.BadParameter("give ids, filters or --all (but not --all with others)")
    return filters


def require_yes_with_json(yes: bool, as_json_document: bool) -> None:
    """Raise BadParameter if a prompt would be necessary: --json does not prompt."""
    if as_json_document and not yes:
        raise typer.BadParameter("--json does not prompt: add --yes")
