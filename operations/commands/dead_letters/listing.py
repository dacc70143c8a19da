"""The commands `ordersaga dead-letters list`, `groups` and `show`."""

from dataclasses import replace
from typing import Annotated

import typer

from operations.commands.dead_letters.desk import LetterDesk
from operations.commands.dead_letters.display import show_groups, show_letter, show_page
from operations.commands.dead_letters.options import (
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
from operations.commands.dead_letters.session import run, visible
from operations.commands.options import AsJson
from operations.commands.terminal import open_console, print_json
from operations.commands.times import time_or_age_option
from operations.dead_letters.group_filters import GroupFilters
from operations.dead_letters.letter_json import as_json, letter_as_json
from operations.dead_letters.status import GROUP_STATUSES, STATUSES, group_status
from operations.impact.ranking import Sorting
from operations.order_actions.search import MOST_COUNTED
from shared.clock import utc_now


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

    async def read(desk: LetterDesk) -> None:
        selection = await desk.resolve(filters)
        try:
            page, total = await desk.page(selection, limit=limit, cursor=cursor)
        except ValueError as invalid:
            raise typer.BadParameter(str(invalid), param_hint="--cursor") from invalid
        page = page._replace(items=await visible(desk, page.items, unmasked))
        if as_json_document:
            print_json(
                {
                    "items": [letter_as_json(letter) for letter in page.items],
                    "nextCursor": page.next_cursor,
                    "total": total,
                    "totalIsExact": total < MOST_COUNTED,
                }
            )
        else:
            show_page(page, total, open_console())

    run(read, only_reads=True)


def groups(
    status: Annotated[
        str | None,
        typer.Option("--status", help=f"Status of the groups: {', '.join(GROUP_STATUSES)}.", show_default="any"),
    ] = None,
    all_groups: Annotated[bool, typer.Option("--all", help="Include groups without open letters.")] = False,
    service: Service = None,
    inbox: Annotated[
        str | None, typer.Option("--inbox", help="Inbox in which the letters failed.", show_default="any")
    ] = None,
    cause: Annotated[
        str | None, typer.Option("--cause", help="Part of the error's type or message.", show_default="any")
    ] = None,
    product: Annotated[
        str | None, typer.Option("--product", help="Id of a product that a letter names.", show_default="any")
    ] = None,
    since: Since = None,
    until: Until = None,
    sort: Annotated[Sorting, typer.Option("--sort", help="What comes first: harm, newest, oldest, letters.")] = (
        Sorting.HARM
    ),
    limit: Annotated[int, typer.Option("--limit", min=1, max=1000, help="Maximum number of groups.")] = 20,
    skip: Annotated[int, typer.Option("--skip", min=0, help="Groups to leave out, for the next page.")] = 0,
    as_json_document: AsJson = False,
) -> None:
    """List groups of letters that failed in the same way, with what they mean for customers, the most harmful first.

    Exit status 0, also if the list is empty, 2 for wrong usage, 3 if MongoDB cannot be reached.
    """

    wanted = group_status(status) if status else None
    if wanted not in (None, *GROUP_STATUSES):
        raise typer.BadParameter(f"{status!r} is none of {', '.join(GROUP_STATUSES)}", param_hint="--status")

    async def read(desk: LetterDesk) -> None:
        filters = GroupFilters(
            status=wanted,
            service=service,
            queue=inbox,
            cause=cause,
            product=product,
            since=time_or_age_option(since, "--since", now := utc_now()),
            until=time_or_age_option(until, "--until", now),
            open_only=not all_groups,
        )
        page = await desk.groups(filters, by=sort, limit=limit, skip=skip)
        if as_json_document:
            print_json(
                {
                    "items": [as_json(group.as_json()) | {"impact": impact.as_json()} for group, impact in page.items],
                    "total": page.total,
                    "allRanked": page.all_ranked,
                }
            )
        else:
            show_groups(page, open_console(), skip=skip)

    run(read, only_reads=True)


def show(letter_id: LetterId, unmasked: Unmasked = False, as_json_document: AsJson = False) -> None:
    """Show a letter: its error, body, headers and the outcomes of its replays.

    Exit status 0, 1 if there is no such letter or --unmasked is refused, 3 if MongoDB cannot be reached.
    """

    async def read(desk: LetterDesk) -> None:
        [letter] = await visible(desk, [await desk.letter(letter_id)], unmasked)
        impact = await desk.impact(letter)
        if as_json_document:
            print_json(letter_as_json(letter) | {"groupImpact": impact.as_json()})
        else:
            show_letter(letter, impact, open_console())

    run(read, only_reads=True)
