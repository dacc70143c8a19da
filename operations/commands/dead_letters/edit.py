"""The command `ordersaga dead-letters edit`."""

import asyncio
import json
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import orjson
import typer

from operations.commands.dead_letters.desk import LetterDesk
from operations.commands.dead_letters.display import show_changes
from operations.commands.dead_letters.edit_many import EditOptions, edit_many, patch_of
from operations.commands.dead_letters.options import (
    WITHIN_SECONDS,
    All,
    Careful,
    Error,
    GroupId,
    Ids,
    Order,
    Rate,
    Service,
    Since,
    Text,
    Type,
    Until,
    Wait,
    Why,
    Within,
    Yes,
    build_filters,
    require_selection,
    require_yes_with_json,
)
from operations.commands.dead_letters.replay import conclude, run_replay
from operations.commands.dead_letters.session import reason_given, require_unmasked, run
from operations.commands.options import AsJson
from operations.commands.terminal import open_console, print_json
from operations.dead_letters.filters import Filters
from operations.dead_letters.patching import LOCKABLE
from operations.dead_letters.replays import DEFAULT_RATE, NotPossibleError
from shared.printable import printable


def edit_letters(
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
            help="File with the new body of one letter; - reads it from stdin.",
            show_default="your editor",
        ),
    ] = None,
    patch: Annotated[
        str | None,
        typer.Option(
            "--patch",
            metavar="FILE|JSON",
            help="JSON patch (RFC 6902) for each of the letters: a file, the patch itself, or - for stdin.",
            show_default="one letter is edited",
        ),
    ] = None,
    unlock: Annotated[
        list[str] | None,
        typer.Option(
            "--unlock", metavar="FIELD", help="Let the edit change an identity, such as orderId.", show_default="none"
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would change, and change nothing.")] = False,
    samples: Annotated[
        int, typer.Option("--samples", min=0, max=1000, help="Letters of a patch whose changes are shown.")
    ] = 3,
    rate: Rate = DEFAULT_RATE,
    careful: Careful = True,
    why: Why = None,
    wait: Wait = False,
    within: Within = WITHIN_SECONDS,
    yes: Yes = False,
    as_json_document: AsJson = False,
) -> None:
    """Replay letters with other bodies, after showing what changes. The originals are kept.

    One letter gets its new body from --body or from your editor ($VISUAL, $EDITOR). With --patch, the same change is
    made to every selected letter; those to which it does not apply are counted by reason, and left as they are. A new
    body must be JSON, valid for the message's type, and about the same order: --unlock orderId allows another one. The
    editor shows tokens and personal fields, so your key needs letters:edit.

    Exit status 0 when sent (carefully or with --wait: handled), 1 if the body is not valid, nothing would change, the
    letter is not dead, one failed again, or it is not confirmed, 2 for wrong usage, 3 if a server cannot be reached.
    """
    filters = build_filters(ids, service, error, type_, since, until, order, text, group)
    unlocked = tuple(unlock or ())
    if unknown := sorted(set(unlocked) - set(LOCKABLE)):
        raise typer.BadParameter(f"{unknown[0]!r} is none of {', '.join(LOCKABLE)}", param_hint="--unlock")
    if not dry_run:
        require_yes_with_json(yes, as_json_document)
        if "-" in (body, patch) and not yes:
            raise typer.BadParameter("stdin has the new body or the patch, and cannot be asked: add --yes or --dry-run")
    options = EditOptions(dry_run, samples, rate, careful, why, within if wait else None, yes, as_json_document)
    if patch is None:
        if all_letters or len(filters.ids) != 1 or filters != Filters(ids=filters.ids):
            raise typer.BadParameter("give one id, or --patch for many letters")
        run(lambda desk: _edit_one(desk, filters.ids[0], body, unlocked, options))
        return
    if body is not None:
        raise typer.BadParameter("is for one letter, and --patch for many: give one of them", param_hint="--body")
    if why is None and yes and not dry_run:
        raise typer.BadParameter("required with --yes and --patch", param_hint="--why")
    require_selection(filters, all_letters)
    read = patch_of(patch, unlocked)
    run(lambda desk: edit_many(desk, filters, read, options), only_reads=dry_run)


async def _edit_one(
    desk: LetterDesk, prefix: str, body: str | None, unlocked: tuple[str, ...], options: EditOptions
) -> None:
    (letter_id,) = (await desk.resolve(Filters(ids=(prefix,)))).ids
    new_body = read_body(body) if body is not None else await _edit_body(desk, letter_id)
    changes, identities = await desk.preview_body(letter_id, new_body, unlocked)
    if options.dry_run and options.as_json_document:
        print_json({"id": letter_id, "changes": [change.as_json() for change in changes]})
    else:
        show_changes(changes, open_console(stderr=not options.dry_run))
    if options.dry_run:
        return
    if not options.yes:
        if not typer.confirm("Replay the letter with this body?", err=True):
            raise typer.Exit(1)
        for name, (old, new) in identities.items():
            question = f"{name} would no longer be {printable(str(old))}. Type the new {name}"
            if typer.prompt(question, err=True) != str(new):
                raise NotPossibleError(f"the new {name} is not confirmed, so nothing is sent")
    needs_reason = await desk.needs_reason(Filters(ids=(letter_id,)))
    reason = reason_given(desk, options.why, options.yes) if needs_reason else options.why or ""
    replay_id = await desk.edit_one(letter_id, new_body, why=reason, unlocked=unlocked)
    await conclude(desk, await run_replay(desk, replay_id), options.within, options.as_json_document)


def read_body(name: str) -> bytes:
    """Return the content of a file, or of stdin for "-". Raises BadParameter if it cannot be read."""
    try:
        return sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    except OSError as error:
        raise typer.BadParameter(f"{name}: {error.strerror}", param_hint="--body") from error


async def _edit_body(desk: LetterDesk, letter_id: str) -> bytes:
    await require_unmasked(desk, "the editor")
    letter = await desk.letter(letter_id)
    text = letter["current"].decode("utf-8", "replace")
    if letter["contentType"] == "application/json":
        text = json.dumps(orjson.loads(letter["current"]), indent=2, ensure_ascii=False)
    edited = await asyncio.to_thread(_open_editor, text.encode())
    if edited == text.encode():
        raise NotPossibleError("the body was not changed, so nothing is sent")
    return edited


def _open_editor(text: bytes) -> bytes:
    editor = os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi"
    with tempfile.TemporaryDirectory(prefix="ordersaga-") as folder:
        file = Path(folder) / "body.json"
        file.write_bytes(text)
        try:
            subprocess.run([*shlex.split(editor), str(file)], check=True)  # noqa: S603 - the operator's own editor
        except (OSError, subprocess.CalledProcessError) as error:
            raise NotPossibleError(f"the editor {editor} failed ({error}), so nothing is sent") from error
        return file.read_bytes()
