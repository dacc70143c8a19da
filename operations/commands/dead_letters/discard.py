"""The commands `ordersaga dead-letters discard` and `restore`."""

import typer

from operations.approvals.policy import DISCARD
from operations.commands.approval import ask_for_approval, policy_of_stack
from operations.commands.dead_letters.options import (
    All,
    AsJson,
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
from operations.commands.dead_letters.session import confirm, freeze, run
from operations.commands.operator import current_operator
from operations.commands.reason import checked_reason
from operations.commands.terminal import print_json
from operations.dead_letters.connection import DeadLetterConnection
from operations.dead_letters.filters import Filters, discardable, restorable


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

    async def archive(connection: DeadLetterConnection) -> None:
        selection = await freeze(connection, filters)
        await confirm(connection, discardable(selection), "Discard", yes)
        reason = checked_reason(why if why is not None else typer.prompt("Reason", err=True))
        if not selection.ids and (await policy_of_stack(connection.database)).needs(DISCARD):
            parameters = {"filters": selection.as_document()}
            subject = selection.in_words()
            await ask_for_approval(connection.stack, connection.database, DISCARD, subject, reason, parameters)
        number = await connection.service.discard(selection, by=current_operator(), why=reason)
        _conclude("discarded", number, as_json_document)

    run(archive)


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

    async def take_back(connection: DeadLetterConnection) -> None:
        selection = await freeze(connection, filters)
        await confirm(connection, restorable(selection), "Restore", yes)
        reason = checked_reason(why if why is not None else typer.prompt("Reason", err=True))
        number = await connection.service.restore(selection, by=current_operator(), why=reason)
        _conclude("restored", number, as_json_document)

    run(take_back)


def _check_options(filters: Filters, all_letters: bool, why: str | None, yes: bool, as_json_document: bool) -> None:
    """Raise BadParameter for options that do not go together."""
    require_selection(filters, all_letters)
    require_yes_with_json(yes, as_json_document)
    if why is None and yes:
        raise typer.BadParameter("required with --yes", param_hint="--why")


def _conclude(participle: str, number: int, as_json_document: bool) -> None:
    if as_json_document:
        print_json({participle: number})
    else:
        typer.echo(f"{participle} {number:,}")
