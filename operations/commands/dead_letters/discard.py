"""The commands `ordersaga dead-letters discard` and `restore`."""

from typing import Literal

import typer

from operations.commands.dead_letters.desk import LetterDesk
from operations.commands.dead_letters.options import (
    All,
    Error,
    GroupId,
    Ids,
    Order,
    Service,
    Since,
    Text,
    Type,
    Until,
    Why,
    Yes,
    build_filters,
    require_selection,
    require_yes_with_json,
)
from operations.commands.dead_letters.session import confirm, run
from operations.commands.options import AsJson
from operations.commands.reason import checked_reason
from operations.commands.terminal import print_json
from operations.dead_letters.filters import Filters


def discard_letters(
    ids: Ids = None,
    all_letters: All = False,
    service: Service = None,
    error: Error = None,
    type_: Type = None,
    since: Since = None,
    until: Until = None,
    order: Order = None,
    text: Text = None,
    group: GroupId = None,
    why: Why = None,
    yes: Yes = False,
    as_json_document: AsJson = False,
) -> None:
    """Set letters aside, with a reason (--why). `list --status discarded` shows them, and `restore` takes them back.

    Exit status 0 when done, 1 if there is nothing to discard or it is not confirmed, 2 for wrong usage, 3 if a server
    cannot be reached.
    """
    filters = build_filters(ids, service, error, type_, since, until, order, text, group)
    _check_options(filters, all_letters, why, yes, as_json_document)

    _decide("discard", filters, why, yes, as_json_document)


def restore_letters(
    ids: Ids = None,
    all_letters: All = False,
    service: Service = None,
    error: Error = None,
    type_: Type = None,
    since: Since = None,
    until: Until = None,
    order: Order = None,
    text: Text = None,
    group: GroupId = None,
    why: Why = None,
    yes: Yes = False,
    as_json_document: AsJson = False,
) -> None:
    """Take discarded letters back, with a reason (--why): they wait for a decision again.

    Exit status 0 when done, 1 if there is nothing to restore or it is not confirmed, 2 for wrong usage, 3 if a server
    cannot be reached.
    """
    filters = build_filters(ids, service, error, type_, since, until, order, text, group)
    _check_options(filters, all_letters, why, yes, as_json_document)

    _decide("restore", filters, why, yes, as_json_document)


def _check_options(filters: Filters, all_letters: bool, why: str | None, yes: bool, as_json_document: bool) -> None:
    """Raise BadParameter for options that do not go together."""
    require_selection(filters, all_letters)
    require_yes_with_json(yes, as_json_document)
    if why is None and yes:
        raise typer.BadParameter("required with --yes", param_hint="--why")


def _decide(
    act: Literal["discard", "restore"], filters: Filters, why: str | None, yes: bool, as_json_document: bool
) -> None:
    """Discard or restore letters after confirmation, and say how many; or ask a second person."""

    async def work(desk: LetterDesk) -> None:
        selection = await desk.freeze(filters)
        await confirm(desk, selection, act, yes)
        reason = checked_reason(why if why is not None else typer.prompt("Reason", err=True))
        decided = await desk.decide(act, selection, why=reason)
        done = {"discard": "discarded", "restore": "restored"}[act]
        if as_json_document:
            print_json({done: decided.number, "before": decided.before})
        else:
            typer.echo(f"{done} {decided.number:,}{decided.after}")

    run(work)
