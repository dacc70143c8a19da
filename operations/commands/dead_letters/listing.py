"""The commands `ordersaga dead-letters list`, `groups` and `show`."""

from dataclasses import replace
from typing import Annotated

import typer

from operations.commands.dead_letters.display import show_groups, show_letter, show_page
from operations.commands.dead_letters.options import (
    AsJson,
    Error,
    GroupId,
    Ids,
    LetterId,
    Order,
    Outcome,
    Replay,
    Service,
    Since,
    Text,
    Type,
    Unmasked,
    Until,
    build_filters,
)
from operations.commands.dead_letters.session import resolve_ids, run, visible
from operations.commands.terminal import open_console, print_json
from operations.dead_letters.connection import DeadLetterConnection
from operations.dead_letters.letter_json import as_json, letter_as_json
from operations.dead_letters.status import GROUP_STATUSES, STATUSES


def list_letters(
    ids: Ids = None,
    all_letters: Annotated[bool, typer.Option("--all", help="Include letters of every status.")] = False,
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
    replay: Replay = None,
    outcome: Outcome = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=1000, help="Maximum number of letters.")] = 20,
    cursor: Annotated[
        str | None, typer.Option("--cursor", help="Cursor that the previous page printed.", show_default="first page")
    ] = None,
    unmasked: Unmasked = False,
    as_json_document: AsJson = False,
) -> None:
    """List letters, latest failure first. By default only those that still need attention are listed.

    Exit status 0, also if the list is empty, 1 for an unknown id or if --unmasked is refused, 2 for wrong usage, 3 if
    MongoDB cannot be reached.
    """
    filters = build_filters(ids, service, error, type_, since, until, order, text, group, status, replay, outcome)
    if all_letters:
        filters = replace(filters, status=filters.status or STATUSES)

    async def read(connection: DeadLetterConnection) -> None:
        selection = await resolve_ids(connection, filters)
        try:
            page = await connection.service.page(selection, limit=limit, cursor=cursor)
        except ValueError as invalid:
            raise typer.BadParameter(str(invalid), param_hint="--cursor") from invalid
        page = page._replace(items=await visible(connection, page.items, unmasked))
        if as_json_document:
            print_json({"items": [letter_as_json(letter) for letter in page.items], "nextCursor": page.next_cursor})
        else:
            show_page(page, open_console())

    run(read, only_reads=True)


def groups(
    status: Annotated[
        str | None,
        typer.Option("--status", help=f"Status of the groups: {', '.join(GROUP_STATUSES)}.", show_default="any"),
    ] = None,
    all_groups: Annotated[bool, typer.Option("--all", help="Include groups without open letters.")] = False,
    limit: Annotated[int, typer.Option("--limit", min=1, max=1000, help="Maximum number of groups.")] = 20,
    as_json_document: AsJson = False,
) -> None:
    """List groups of letters that failed in the same way, with their number and their distribution over time.

    Exit status 0, also if the list is empty, 2 for wrong usage, 3 if MongoDB cannot be reached.
    """

    async def read(connection: DeadLetterConnection) -> None:
        page = await connection.service.group_page(status=status, open_only=not all_groups, limit=limit)
        if as_json_document:
            print_json({"items": [as_json(group.as_json()) for group in page.items], "total": page.total})
        else:
            show_groups(page, open_console())

    run(read, only_reads=True)


def show(letter_id: LetterId, unmasked: Unmasked = False, as_json_document: AsJson = False) -> None:
    """Show a letter: its error, body, headers and the outcomes of its replays.

    Exit status 0, 1 if there is no such letter or --unmasked is refused, 3 if MongoDB cannot be reached.
    """

    async def read(connection: DeadLetterConnection) -> None:
        letter = await connection.service.letter(await connection.service.resolve(letter_id))
        assert letter is not None  # noqa: S101 - letters are never deleted
        [letter] = await visible(connection, [letter], unmasked)
        if as_json_document:
            print_json(letter_as_json(letter))
        else:
            show_letter(letter, open_console())

    run(read, only_reads=True)
