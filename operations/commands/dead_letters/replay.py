"""The commands `ordersaga dead-letters replay` and `outcome`."""

from typing import Annotated

import typer
from pymongo.errors import PyMongoError
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from operations.commands.dead_letters.desk import LetterDesk
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
from operations.commands.dead_letters.session import confirm, reason_given, run
from operations.commands.options import AsJson
from operations.commands.terminal import open_console, print_error, print_json
from operations.dead_letters.careful import why_stopped
from operations.dead_letters.filters import Filters
from operations.dead_letters.letter import type_of
from operations.dead_letters.letter_json import as_json
from operations.dead_letters.masking import mask_text
from operations.dead_letters.outcome import ReplayOutcome
from operations.dead_letters.replays import CUT_SHORT, DEFAULT_RATE, NotPossibleError
from operations.errors import UnreachableError
from shared.database import Document
from shared.printable import printable

MOST_NAMED = 20
"""The most letters of an outcome that are named; `list` shows all."""


def replay_letters(
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
    rate: Rate = DEFAULT_RATE,
    careful: Careful = True,
    why: Why = None,
    wait: Wait = False,
    within: Within = WITHIN_SECONDS,
    yes: Yes = False,
    as_json_document: AsJson = False,
) -> None:
    """Send dead letters again to the inboxes in which they failed.

    A message that was sent may fail again for the same reason. So several letters are sent carefully: the replay goes
    on only while all that it has sent is handled, and says which letter stopped it. --at-once sends all of them, and
    --wait waits for their outcome, which `dead-letters outcome` shows later. An interrupted replay is continued first,
    after confirmation. Foreign letters, whose sender has no right to send such a message, are left out unless their ids
    are given.

    Exit status 0 if all are sent (carefully or with --wait: handled), 1 if one failed again, could not be sent or has
    no outcome in time, if there is nothing to send or it is not confirmed, 2 for wrong usage, 3 if a server cannot be
    reached.
    """
    filters = build_filters(ids, service, error, type_, since, until, order, text, group)
    require_selection(filters, all_letters)
    require_yes_with_json(yes, as_json_document)

    async def send(desk: LetterDesk) -> None:
        await _continue_interrupted(desk, yes)
        selection = await desk.freeze(filters)
        await confirm(desk, selection, "replay", yes)
        reason = reason_given(desk, why, yes) if await desk.needs_reason(selection) else why or ""
        replay_id = await desk.replay(selection, why=reason, rate=rate, careful=careful)
        await conclude(desk, await run_replay(desk, replay_id), within if wait else None, as_json_document)

    run(send)


def outcome(
    replay_id: Annotated[str, typer.Argument(metavar="REPLAY", help="Id that `replay` printed.")],
    wait: Wait = False,
    within: Within = WITHIN_SECONDS,
    as_json_document: AsJson = False,
) -> None:
    """Show the outcome of a replay: the number of letters that were handled, failed again, or are pending.

    Exit status 0 if no letter has failed again (with --wait: if all are handled), 1 if not or if the replay is unknown,
    3 if a server cannot be reached.
    """

    async def show(desk: LetterDesk) -> None:
        replay = await desk.find_replay(replay_id)
        if replay is None:
            raise NotPossibleError(f"there is no replay {replay_id}")
        await conclude(desk, replay, within if wait else None, as_json_document)

    run(show)


async def _continue_interrupted(desk: LetterDesk, yes: bool) -> None:
    for replay_id in await desk.abandoned():
        if not yes and not typer.confirm(f"Continue the interrupted replay {replay_id}?", err=True):
            continue
        try:
            done = await run_replay(desk, replay_id)
        except (UnreachableError, PyMongoError):
            raise
        except Exception as error:  # noqa: BLE001 - an error in another replay must not prevent this one
            print_error(f"could not continue replay {replay_id}: {error}")
            continue
        typer.echo(f"continued replay {replay_id}: {done['published']:,} of {done['total']:,} sent", err=True)


async def run_replay(desk: LetterDesk, replay_id: str) -> Document:
    """Run a replay to its end with a progress bar and return its record."""
    console = open_console(stderr=True)
    columns = (TextColumn("replaying"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("replay", total=None)
        return await desk.follow(replay_id, lambda r: progress.update(task, total=r["total"], completed=r["published"]))


async def conclude(desk: LetterDesk, replay: Document, within: float | None, as_json_document: bool) -> None:
    """Print a replay and its outcome, after waiting for up to `within` seconds; exit with status 1 for a failure."""
    if within is None:
        result = await desk.outcome(replay["_id"])
    else:
        result = await _await_outcome(desk, replay["_id"], within)
    if as_json_document:
        names = ("_id", "at", "by", "why", "rate", "total", "published", "status", "doneAt")
        document = {name.removeprefix("_"): as_json(replay[name]) for name in names}
        named = {
            f"{name}Letters": [letter["_id"] for letter in await _some_letters(desk, replay, name)]
            for name in ("failed", "unknown")
        }
        how = {"careful": replay.get("careful", False), "stoppedBecause": _why_stopped(replay)}
        if "left" in replay:
            how["leftOut"] = replay["left"]
        print_json(document | how | result.as_json() | named)
    else:
        await _print_outcome(desk, replay, result, within)
    if replay["status"] in CUT_SHORT or result.failed or (within is not None and result.unknown):
        raise typer.Exit(1)


async def _print_outcome(desk: LetterDesk, replay: Document, result: ReplayOutcome, within: float | None) -> None:
    typer.echo(f"replayed {replay['published']:,} of {replay['total']:,} (replay {replay['_id']})")
    for left in replay.get("left", ()):
        typer.echo(printable(f"  {left['letters']:,} left as they are: {left['reason']}"))
    typer.echo(result.in_words())
    if why := _why_stopped(replay):
        typer.echo(printable(f"stopped: {why}"))
    for letter in await _some_letters(desk, replay, "failed") if result.failed else ():
        error = next(r["error"] for r in reversed(letter["replays"]) if r["replay"] == replay["_id"])
        failed = f"  {letter['_id']} failed again: {error['type']}: {mask_text(error['message'])[:200]}"
        typer.echo(printable(failed))
    _point_to_others(replay, "failed", result.failed)
    if result.unknown and within is None:
        typer.echo(f"`ordersaga dead-letters outcome {replay['_id']} --wait` waits until the outcome is known")
    elif result.unknown:
        typer.echo(f"no outcome after {within:g} s: check that every service runs; a retry may take minutes")
        for letter in await _some_letters(desk, replay, "unknown"):
            typer.echo(printable(f"  {letter['_id']} is not known yet: {type_of(letter)} in {letter['queue']}"))
        _point_to_others(replay, "unknown", result.unknown)


def _why_stopped(replay: Document) -> str | None:
    """Return why a careful replay stopped by itself; a record that came from a console says it in words."""
    return replay.get("stoppedBecause") or why_stopped(replay)


async def _some_letters(desk: LetterDesk, replay: Document, outcome: str) -> list[Document]:
    """Return the first letters of a replay that came to this outcome."""
    found = await desk.page(Filters(replay=replay["_id"], outcome=outcome), limit=MOST_NAMED, cursor=None)
    return found.page.items


def _point_to_others(replay: Document, outcome: str, number: int) -> None:
    if number > MOST_NAMED:
        command = f"ordersaga dead-letters list --replay {replay['_id']} --outcome {outcome}"
        typer.echo(f"  and {number - MOST_NAMED:,} more: `{command}` lists them")


async def _await_outcome(desk: LetterDesk, replay_id: str, within: float) -> ReplayOutcome:
    console = open_console(stderr=True)
    columns = (TextColumn("waiting for the outcome"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("outcome", total=None)

        def show_progress(result: ReplayOutcome) -> None:
            known = result.handled + result.failed
            progress.update(task, total=known + result.unknown, completed=known)

        return await desk.await_outcome(replay_id, within, show_progress)
