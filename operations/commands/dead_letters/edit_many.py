"""Edits of many dead letters by one JSON patch: the preview, the confirmation, and the replay."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import typer
from rich.console import Console
from rich.text import Text

from operations.commands.dead_letters.desk import LetterDesk
from operations.commands.dead_letters.display import short, show_changes, show_effects, wide
from operations.commands.dead_letters.replay import conclude, run_replay
from operations.commands.dead_letters.session import in_words
from operations.commands.reason import checked_reason
from operations.commands.terminal import counted, open_console, print_json
from operations.dead_letters.edit_previewing import EditPreview
from operations.dead_letters.filters import Filters
from operations.dead_letters.patching import InvalidPatchError, Patch, read_patch
from operations.dead_letters.replays import NotPossibleError


@dataclass(frozen=True)
class EditOptions:
    """How the letters are edited and replayed; `why` is None if it is to be asked for, `within` if nobody waits."""

    dry_run: bool
    samples: int
    rate: float
    careful: bool
    why: str | None
    within: float | None
    yes: bool
    as_json_document: bool


def patch_of(given: str, unlocked: Sequence[str]) -> Patch:
    """Return the patch in an option: JSON, the name of a file, or "-" for stdin. Raises BadParameter."""
    try:
        if given == "-":
            text = sys.stdin.read()
        else:
            text = given if given.lstrip().startswith("[") else Path(given).read_text()
        return read_patch(text, unlocked)
    except (OSError, UnicodeDecodeError) as error:
        raise typer.BadParameter(f"{given}: {error}", param_hint="--patch") from error
    except InvalidPatchError as error:
        raise typer.BadParameter(str(error), param_hint="--patch") from error


async def edit_many(desk: LetterDesk, filters: Filters, patch: Patch, options: EditOptions) -> None:
    """Show what the patch does with the selected letters; unless it is a dry run, ask, then edit and replay them.

    Raises NotPossibleError if it changes none of them.
    """
    selection = await desk.freeze(filters)
    found = await desk.preview_patch(selection, patch, options.samples)
    if options.dry_run and options.as_json_document:
        print_json(found.as_json())
    else:
        _show(found, open_console(stderr=not options.dry_run))
    if not found.changed:
        raise NotPossibleError("there is no matching dead letter that the patch changes")
    if options.dry_run:
        return
    reason = await _confirm(desk, selection, patch, found, options)
    replay_id = await desk.edit(selection, patch, why=reason, rate=options.rate, careful=options.careful)
    replay = await run_replay(desk, replay_id)
    await conclude(desk, replay, options.within, options.as_json_document)


async def _confirm(desk: LetterDesk, selection: Filters, patch: Patch, found: EditPreview, options: EditOptions) -> str:
    """Ask for confirmation, with the names of the identities that may change, and return the reason."""
    if not options.yes:
        about = in_words((await desk.concern("replay", selection)).about)
        question = f"Edit and replay {counted(found.changed, 'dead letters')} (selected: {about})?"
        if not typer.confirm(question, err=True):
            raise typer.Exit(1)
        for name in patch.unlocked:
            if typer.prompt(f"The edit may change {name}. Type {name} to allow it", err=True) != name:
                raise NotPossibleError(f"{name} is not confirmed, so nothing is sent")
    return checked_reason(options.why if options.why is not None else typer.prompt("Reason", err=True))


def _show(found: EditPreview, console: Console) -> None:
    line = f"{counted(found.changed, 'letters')} changed, {found.looked_at - found.changed:,} left as they are"
    console.print(line, style="bold", highlight=False)
    if found.looked_at < found.total:
        console.print(f"the first {found.looked_at:,} of {found.total:,} letters", style="dim", highlight=False)
    for reason, number in found.left:
        console.print(Text(f"{number:>7,}  left: {reason}", style="yellow"), soft_wrap=True)
    for sample in found.samples:
        console.print(Text(sample.letter if wide(console) else short(sample.letter), style="bold"))
        show_changes(sample.changes, console)
    if found.effects:
        console.print("a replay of the edited letters:", highlight=False)
        show_effects(found.effects, console)
    if found.previewed < found.changed:
        console.print(f"of the first {found.previewed:,} of them", style="dim", highlight=False)
