"""The commands `ordersaga dead-letters discard` and `restore`."""

from collections.abc import Callable
from typing import Literal

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
from shared.database import Document


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

    _decide("discard", filters, discardable, why, yes, as_json_document)


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

    _decide("restore", filters, restorable, why, yes, as_json_document)


def _check_options(filters: Filters, all_letters: bool, why: str | None, yes: bool, as_json_document: bool) -> None:
    """Raise BadParameter for options that do not go together."""
    require_selection(filters, all_letters)
    require_yes_with_json(yes, as_json_document)
    if why is None and yes:
        raise typer.BadParameter("required with --yes", param_hint="--why")


def _decide(
    act: Literal["discard", "restore"],
    filters: Filters,
    query: Callable[[Filters], Document],
    why: str | None,
    yes: bool,
    as_json_document: bool,
) -> None:
    """Discard or restore the letters of the query after confirmation, and say how many; or ask a second person."""

    async def work(connection: DeadLetterConnection) -> None:
        selection = await freeze(connection, filters)
        await confirm(connection, query(selection), act.capitalize(), yes)
        reason = checked_reason(why if why is not None else typer.prompt("Reason", err=True))
        if act == "discard":
            await _ask_second_person(connection, selection, reason)
            number = await connection.service.discard(selection, by=current_operator(), why=reason)
        else:
            number = await connection.service.restore(selection, by=current_operator(), why=reason)
        done = {"discard": "discarded", "restore": "restored"}[act]
        if as_json_document:
            print_json({done: number})
        else:
            typer.echo(f"{done} {number:,}")

    run(work)


async def _ask_second_person(connection: DeadLetterConnection, selection: Filters, reason: str) -> None:
    """End the command with a request if the stack wants a second person for as many letters."""
    if (await policy_of_stack(connection.database)).letters_need(DISCARD, selection.ids):
        parameters, subject = {"filters": selection.as_document()}, selection.subject
        await ask_for_approval(connection.stack, connection.database, DISCARD, subject, reason, parameters)
