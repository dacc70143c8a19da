"""The commands `ordersaga dead-letters list`, `groups`, `show`, `replay`, `outcome`, `edit`, `discard` and `export`."""

import asyncio
import contextlib
import json
import logging
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, BinaryIO, NoReturn, TypeVar

import orjson
import typer
import uvloop
from pymongo.errors import PyMongoError
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from operations.commands.dead_letters_display import show_groups, show_letter, show_page
from operations.commands.operator import current_operator
from operations.commands.target import chosen_stack
from operations.commands.terminal import as_ascii_json, open_console, print_error, print_json
from operations.dead_letters.connection import DeadLetterConnection, abandoned, await_outcome, connect, follow
from operations.dead_letters.editing import InvalidBodyError
from operations.dead_letters.filters import Filters
from operations.dead_letters.letter_json import as_json, letter_as_json
from operations.dead_letters.outcome import Outcome
from operations.dead_letters.replays import CANCELLED, DEFAULT_RATE, NotPossibleError
from operations.dead_letters.status import STATUSES
from operations.dead_letters.times import read_time
from operations.errors import UnreachableError
from operations.stack.files import open_private
from shared.database import Document
from shared.observability import logs_to_stderr

dead_letters = typer.Typer(no_args_is_help=True)

T = TypeVar("T")

WITHIN_SECONDS = 180.0
"""As long as all rungs of the retry ladder take, and a little more."""

_LINES = (b"", b"\n", b"\n")
"""What stands before, between and behind the letters of an export."""

Ids = Annotated[list[str] | None, typer.Argument(help="Ids of letters, or their beginnings.", show_default=False)]
All = Annotated[bool, typer.Option("--all", help="All of them.")]
Service = Annotated[str | None, typer.Option("--service", help="Whose inbox they failed in, such as inventory.")]
Error = Annotated[str | None, typer.Option("--error", help="The error's type, such as PoisonError.")]
Type = Annotated[str | None, typer.Option("--type", help="The message's type, such as order.created.")]
Since = Annotated[str | None, typer.Option("--since", metavar="TIME", help="Failed since a date, a time or 2h ago.")]
Until = Annotated[str | None, typer.Option("--until", metavar="TIME", help="Failed before then.")]
Order = Annotated[str | None, typer.Option("--order", help="The order's id.")]
Words = Annotated[str | None, typer.Option("--text", help="Words of body, error or ids, all of them; word* begins so.")]
GroupId = Annotated[str | None, typer.Option("--group", help="The fingerprint of a group.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
Wait = Annotated[bool, typer.Option("--wait", help="Wait until it is known what became of every message.")]
Within = Annotated[float, typer.Option("--within", min=0, metavar="SECONDS", help="How long --wait waits.")]
Why = Annotated[str | None, typer.Option("--why", help="Why; it is kept in the log of actions.")]


@dead_letters.command("list")
def list_(
    ids: Ids = None,
    all_letters: Annotated[bool, typer.Option("--all", help="Of every status.")] = False,
    service: Service = None,
    error: Error = None,
    type_: Type = None,
    status: Annotated[
        str | None, typer.Option("--status", help=f"{', '.join(STATUSES)}, several with commas, or all.")
    ] = None,
    since: Since = None,
    until: Until = None,
    order: Order = None,
    text: Words = None,
    group: GroupId = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=1000)] = 20,
    cursor: Annotated[str | None, typer.Option("--cursor", help="Where the page before ended.")] = None,
    as_json_document: AsJson = False,
) -> None:
    """List letters, the last failure first: those that are not over, unless ids, a status or --all are given.

    Exit status 0, also when there are none, 1 for an id that is no letter's, 2 for wrong usage, 3 when a
    server does not answer.
    """
    filters = _filters(ids, service, error, type_, status, since, until, order, text, group)
    if all_letters:
        filters = replace(filters, status=filters.status or STATUSES)

    async def read(found: DeadLetterConnection) -> None:
        named = await _named(found, filters)
        try:
            page = await found.service.page(named, limit=limit, cursor=cursor)
        except ValueError as wrong:
            raise typer.BadParameter(str(wrong), param_hint="--cursor") from wrong
        if as_json_document:
            print_json({"items": [letter_as_json(letter) for letter in page.items], "nextCursor": page.next_cursor})
        else:
            show_page(page, open_console())

    _run(read)


@dead_letters.command()
def groups(
    status: Annotated[str | None, typer.Option("--status", help="new, looked at or mended.")] = None,
    all_groups: Annotated[bool, typer.Option("--all", help="Also those of which nothing is open.")] = False,
    limit: Annotated[int, typer.Option("--limit", min=1, max=1000)] = 20,
    as_json_document: AsJson = False,
) -> None:
    """List the causes: letters that failed in the same way, how many, since when, and how they spread over time."""

    async def read(found: DeadLetterConnection) -> None:
        page = await found.service.group_page(status=status, open_only=not all_groups, limit=limit)
        if as_json_document:
            print_json({"items": [as_json(group.as_json()) for group in page.items], "total": page.total})
        else:
            show_groups(page, open_console())

    _run(read)


@dead_letters.command()
def show(
    letter_id: Annotated[str, typer.Argument(help="Its id, or the beginning.")], as_json_document: AsJson = False
) -> None:
    """Show a letter: its error, body, headers, and what became of its replays.

    Exit status 0, 1 when there is no such letter, 3 when a server does not answer.
    """

    async def read(found: DeadLetterConnection) -> None:
        letter = await found.service.letter(await found.service.resolve(letter_id))
        assert letter is not None  # noqa: S101 - nothing is ever deleted
        if as_json_document:
            print_json(letter_as_json(letter))
        else:
            show_letter(letter, open_console())

    _run(read)


@dead_letters.command("replay")
def replay_letters(
    ids: Ids = None,
    all_letters: All = False,
    service: Service = None,
    error: Error = None,
    type_: Type = None,
    since: Since = None,
    until: Until = None,
    order: Order = None,
    text: Words = None,
    group: GroupId = None,
    rate: Annotated[float, typer.Option("--rate", min=0.1, max=10_000, help="Letters a second.")] = DEFAULT_RATE,
    why: Why = None,
    wait: Wait = False,
    within: Within = WITHIN_SECONDS,
    yes: Yes = False,
    as_json_document: AsJson = False,
) -> None:
    """Send letters again, to the inboxes that they failed in. Only what is dead is sent.

    Sent is not handled: a message may fail again of the same cause. --wait waits for the outcome, `dead-letters
    outcome` shows it later. A replay that was interrupted is continued first, if that is agreed to.

    Exit status 0 when all are sent (with --wait: handled), 1 when one failed again, could not be sent or is not known
    about in time, when there is nothing to send or it is not agreed to, 2 for wrong usage, 3 when a server does not
    answer.
    """
    filters = _chosen(_filters(ids, service, error, type_, None, since, until, order, text, group), all_letters)
    _must_not_ask(yes, as_json_document)

    async def send(found: DeadLetterConnection) -> None:
        await _go_on_with_unfinished(found, yes)
        named = await _named(found, filters)
        number = await found.service.count_decidable(named)
        _agree(number, "Replay", yes)
        replay_id = await found.service.start_replay(named, by=current_operator(), why=why or "", rate=rate)
        await _conclude(found, await _followed(found, replay_id), within if wait else None, as_json_document)

    _run(send)


@dead_letters.command()
def outcome(
    replay_id: Annotated[str, typer.Argument(metavar="REPLAY", help="The id that `replay` has printed.")],
    wait: Wait = False,
    within: Within = WITHIN_SECONDS,
    as_json_document: AsJson = False,
) -> None:
    """Show what became of a replay: how many letters were handled, failed again, or are not known about yet.

    Exit status 0 when no letter has failed again (with --wait: when all are handled), else 1, also for an unknown
    replay, 3 when a server does not answer.
    """

    async def look(found: DeadLetterConnection) -> None:
        replay = await found.service.replay(replay_id)
        if replay is None:
            raise NotPossibleError(f"there is no replay {replay_id}")
        await _conclude(found, replay, within if wait else None, as_json_document)

    _run(look)


@dead_letters.command()
def edit(
    letter_id: Annotated[str, typer.Argument(help="Its id, or the beginning.")],
    body: Annotated[
        str | None, typer.Option("--body", metavar="FILE", help="The new body; - reads it from stdin.")
    ] = None,
    why: Why = None,
    wait: Wait = False,
    within: Within = WITHIN_SECONDS,
    as_json_document: AsJson = False,
) -> None:
    """Send a letter again with another body, from FILE or from your editor ($EDITOR). The body that came is kept.

    It must be JSON, valid for the message's type, and about the same order. Exit status 0 when it is sent (with --wait:
    handled), 1 when it is not valid, the letter is not dead, or it failed again, 3 when a server does not answer.
    """

    async def send(found: DeadLetterConnection) -> None:
        known = await found.service.resolve(letter_id)
        written = _read_body(body) if body is not None else await _edited(found, known)
        replay_id = await found.service.edit_and_replay(known, written, by=current_operator(), why=why or "")
        await _conclude(found, await _followed(found, replay_id), within if wait else None, as_json_document)

    _run(send)


@dead_letters.command()
def discard(
    ids: Ids = None,
    all_letters: All = False,
    service: Service = None,
    error: Error = None,
    type_: Type = None,
    since: Since = None,
    until: Until = None,
    order: Order = None,
    text: Words = None,
    group: GroupId = None,
    why: Why = None,
    yes: Yes = False,
    as_json_document: AsJson = False,
) -> None:
    """Put letters aside for good, for a reason (--why). They are kept: `list --status discarded` shows them.

    Exit status 0 when done, 1 when there is nothing to discard or it is not agreed to, 2 for wrong usage, 3 when a
    server does not answer.
    """
    filters = _chosen(_filters(ids, service, error, type_, None, since, until, order, text, group), all_letters)
    _must_not_ask(yes, as_json_document)
    if why is None and (yes or as_json_document):
        raise typer.BadParameter("say why", param_hint="--why")

    async def put_aside(found: DeadLetterConnection) -> None:
        named = await _named(found, filters)
        _agree(await found.service.count_decidable(named), "Discard", yes)
        reason = why if why is not None else typer.prompt("Why?", err=True)
        number = await found.service.discard(named, by=current_operator(), why=reason)
        if as_json_document:
            print_json({"discarded": number})
        else:
            typer.echo(f"discarded {number:,}")

    _run(put_aside)


@dead_letters.command()
def export(
    ids: Ids = None,
    all_letters: All = False,
    service: Service = None,
    error: Error = None,
    type_: Type = None,
    status: Annotated[str | None, typer.Option("--status", help="As for list.")] = None,
    since: Since = None,
    until: Until = None,
    order: Order = None,
    text: Words = None,
    group: GroupId = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The file to write.", show_default="stdout")
    ] = None,
    as_json_document: AsJson = False,
) -> None:
    """Write letters as JSON lines (--json: as one document), with their bodies: as text, or else in base64.

    --all stands for every letter, whatever its status. Exit status 0 when done, 1 when there is none, 2 for wrong
    usage, 3 when a server does not answer.
    """
    filters = _filters(ids, service, error, type_, status, since, until, order, text, group)
    filters = replace(filters, status=STATUSES) if all_letters else _chosen(filters, all_letters)

    async def write(found: DeadLetterConnection) -> None:
        # First of all: a file that is there is not to be emptied for a letter that is not.
        named = await _named(found, filters)
        before, between, after = (b'{"items": [', b", ", b'], "nextCursor": null}\n') if as_json_document else _LINES
        number = 0
        with _opened(output) as file:
            file.write(before)
            async for letter in found.service.export(named):
                file.write((between if number else b"") + as_ascii_json(letter).encode())
                number += 1
            file.write(after if number or as_json_document else b"")
            file.flush()
        typer.echo(f"exported {number:,}", err=True)
        if not number:
            raise typer.Exit(1)

    _run(write)


# --- What was asked for. ---


def _filters(
    ids: Sequence[str] | None,
    service: str | None,
    error: str | None,
    type_: str | None,
    status: str | None,
    since: str | None,
    until: str | None,
    order: str | None,
    text: str | None,
    group: str | None,
) -> Filters:
    statuses = STATUSES if status == "all" else tuple(name.strip() for name in (status or "").split(",") if name)
    try:
        return Filters(
            ids=tuple(dict.fromkeys(ids or ())),
            service=service,
            error=error,
            type=type_,
            status=statuses,
            since=_time(since, "--since"),
            until=_time(until, "--until"),
            order_id=order,
            text=text,
            group=group,
        )
    except ValueError as wrong:
        raise typer.BadParameter(str(wrong), param_hint="--status") from wrong


def _time(text: str | None, option: str) -> datetime | None:
    try:
        return None if text is None else read_time(text, datetime.now(UTC))
    except ValueError as wrong:
        raise typer.BadParameter(str(wrong), param_hint=option) from wrong


def _chosen(filters: Filters, all_letters: bool) -> Filters:
    """The filters, if anything is chosen; --all has to be said, and says nothing beside anything else."""
    if (filters != Filters()) == all_letters:
        raise typer.BadParameter("name ids, give filters, or add --all (and not both)")
    return filters


def _must_not_ask(yes: bool, as_json_document: bool) -> None:
    if as_json_document and not yes:
        raise typer.BadParameter("--json cannot ask: add --yes")


async def _named(found: DeadLetterConnection, filters: Filters) -> Filters:
    """The filters with whole ids in the place of their beginnings."""
    return replace(filters, ids=tuple([await found.service.resolve(beginning) for beginning in filters.ids]))


def _agree(number: int, doing: str, yes: bool) -> None:
    if not number:
        raise NotPossibleError(f"there is no dead letter like this to {doing.lower()}")
    letters = "1 dead letter" if number == 1 else f"{number:,} dead letters"
    if not yes and not typer.confirm(f"{doing} {letters}?", err=True):
        raise typer.Exit(1)


def _read_body(name: str) -> bytes:
    try:
        return sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    except OSError as error:
        raise typer.BadParameter(f"{name}: {error.strerror}", param_hint="--body") from error


async def _edited(found: DeadLetterConnection, letter_id: str) -> bytes:
    letter = await found.service.letter(letter_id)
    assert letter is not None  # noqa: S101 - nothing is ever deleted
    text = letter["current"].decode("utf-8", "replace")
    if letter["contentType"] == "application/json":
        text = json.dumps(orjson.loads(letter["current"]), indent=2, ensure_ascii=False)
    written = await asyncio.to_thread(_written_in_editor, text.encode())
    if written == text.encode():
        raise NotPossibleError("nothing was changed, so nothing is sent")
    return written


def _written_in_editor(text: bytes) -> bytes:
    editor = os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi"
    with tempfile.TemporaryDirectory(prefix="ordersaga-") as folder:
        file = Path(folder) / "body.json"
        file.write_bytes(text)
        try:
            subprocess.run([*shlex.split(editor), str(file)], check=True)  # noqa: S603 - the operator's own editor
        except (OSError, subprocess.CalledProcessError) as error:
            raise NotPossibleError(f"the editor {editor} did not end well ({error}), so nothing is sent") from error
        return file.read_bytes()


@contextlib.contextmanager
def _opened(output: Path | None) -> Iterator[BinaryIO]:
    try:
        with contextlib.nullcontext(sys.stdout.buffer) if output is None else open_private(output, "wb") as file:
            yield file
    except OSError as error:
        if output is None:
            raise
        raise typer.BadParameter(f"{output}: {error.strerror or error}", param_hint="--output") from error


# --- What comes of it. ---


async def _go_on_with_unfinished(found: DeadLetterConnection, yes: bool) -> None:
    for replay_id in await abandoned(found):
        if not yes and not typer.confirm(f"Go on with replay {replay_id}, which was interrupted?", err=True):
            continue
        try:
            done = await _followed(found, replay_id)
        except (UnreachableError, PyMongoError):
            raise
        except Exception as error:  # noqa: BLE001 - what is wrong with another replay is not to hold up this one
            print_error(f"could not go on with replay {replay_id}: {error}")
            continue
        typer.echo(f"went on with replay {replay_id}: {done['published']:,} of {done['total']:,} sent", err=True)


async def _followed(found: DeadLetterConnection, replay_id: str) -> Document:
    console = open_console(stderr=True)
    columns = (TextColumn("replaying"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("replay", total=None)
        return await follow(
            found, replay_id, lambda r: progress.update(task, total=r["total"], completed=r["published"])
        )


async def _conclude(
    found: DeadLetterConnection, replay: Document, within: float | None, as_json_document: bool
) -> None:
    """Print how far a replay has come and what became of it, after a wait if that is asked for; 1 for a failure."""
    if within is None:
        became = await found.service.outcome(replay["_id"])
    else:
        became = await _awaited(found, replay["_id"], within)
    if as_json_document:
        names = ("_id", "at", "by", "why", "rate", "total", "published", "status", "doneAt")
        document = {name.removeprefix("_"): as_json(replay[name]) for name in names}
        print_json(document | became.as_json())
    else:
        _print_outcome(replay, became, within)
    if replay["status"] == CANCELLED or became.failed or (within is not None and became.unknown):
        raise typer.Exit(1)


def _print_outcome(replay: Document, became: Outcome, within: float | None) -> None:
    typer.echo(f"replayed {replay['published']:,} of {replay['total']:,} (replay {replay['_id']})")
    typer.echo(became.in_words())
    if became.failed:
        typer.echo("`ordersaga dead-letters list` shows those that failed again")
    if became.unknown and within is None:
        typer.echo(
            f"sent is not handled: `ordersaga dead-letters outcome {replay['_id']} --wait` waits for the outcome"
        )
    elif became.unknown:
        typer.echo(f"not known after {within:g} s: does every service run? A retry may take minutes")


async def _awaited(found: DeadLetterConnection, replay_id: str, within: float) -> Outcome:
    console = open_console(stderr=True)
    columns = (TextColumn("waiting for the outcome"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("outcome", total=None)

        def show_progress(became: Outcome) -> None:
            known = became.handled + became.failed
            progress.update(task, total=known + became.unknown, completed=known)

        return await await_outcome(found, replay_id, within, show_progress)


def _run(work: Callable[[DeadLetterConnection], Awaitable[T]]) -> T:
    async def run() -> T:
        async with connect(chosen_stack()) as found:
            return await work(found)

    try:
        with logs_to_stderr(logging.ERROR):  # the bus warns of what is over when the answer comes
            return uvloop.run(run())
    except NotPossibleError as error:
        _fail(str(error))
    except InvalidBodyError as error:
        _fail("the body is not valid:\n" + "\n".join(f"  {field}: {message}" for field, message in error.errors))
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def _fail(reason: str) -> NoReturn:
    print_error(reason)
    raise typer.Exit(1)
