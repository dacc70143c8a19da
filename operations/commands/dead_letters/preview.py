"""The command `ordersaga dead-letters preview`."""

from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text as Line

from operations.commands.dead_letters.desk import LetterDesk
from operations.commands.dead_letters.display import short, show_effects, wide
from operations.commands.dead_letters.edit import read_body
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
    build_filters,
    require_selection,
)
from operations.commands.dead_letters.session import run
from operations.commands.options import AsJson
from operations.commands.terminal import open_console, print_json
from operations.dead_letters.effects import Effect
from operations.dead_letters.previewing import SelectionPreview
from operations.dead_letters.replays import NotPossibleError
from shared.printable import printable


def preview_letters(
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
    body: Annotated[
        str | None,
        typer.Option(
            "--body",
            metavar="FILE",
            help="Preview an edit of one letter; - reads the body from stdin.",
            show_default="the body as it is",
        ),
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=0, max=1000, help="Maximum number of letters listed.")] = 20,
    as_json_document: AsJson = False,
) -> None:
    """Show what a replay would do, without doing it: counted, and letter by letter. Nothing is sent or changed.

    Messages for the order service, inventory and payment have a preview: what each service would decide on the records
    as they are now, where no bank, slot or hold decides. Of other messages, it is checked that they can be read.

    Exit status 0, 1 if nothing matches or would fail again, 2 for wrong usage, 3 if a server cannot be reached.
    """
    filters = build_filters(ids, service, error, type_, since, until, order, text, group)
    require_selection(filters, all_letters)
    if body is not None and len(filters.ids) != 1:
        raise typer.BadParameter("is the body of one letter: give one id", param_hint="--body")

    async def show(desk: LetterDesk) -> None:
        selection = await desk.resolve(filters)
        found = await desk.preview(selection, None if body is None else read_body(body))
        if not found.letters:
            raise NotPossibleError("there is no matching dead letter to replay")
        if as_json_document:
            print_json(found.as_json())
        else:
            _show(found, limit, open_console())
        if any(effect is Effect.FAILS for _, effect, _ in found.counts):
            raise typer.Exit(1)

    run(show, only_reads=True)


def _show(found: SelectionPreview, limit: int, console: Console) -> None:
    show_effects(found.counts, console)
    if len(found.letters) < found.total:
        console.print(f"the first {len(found.letters):,} of {found.total:,} letters", style="dim", highlight=False)
    if found.total == 1:
        return
    for letter_id, preview in found.letters[:limit]:
        shown = letter_id if wide(console) else short(letter_id)
        console.print(Line(f"{shown}  {printable(preview.in_words())}"), soft_wrap=True)
    if len(found.letters) > limit:
        console.print(f"{len(found.letters) - limit:,} more: --limit lists them", style="dim", highlight=False)
