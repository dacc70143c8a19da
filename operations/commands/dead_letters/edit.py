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

from operations.commands.dead_letters.options import WITHIN_SECONDS, AsJson, LetterId, Wait, Why, Within
from operations.commands.dead_letters.replay import conclude, run_replay
from operations.commands.dead_letters.session import require_unmasked, run
from operations.commands.operator import current_operator
from operations.dead_letters.connection import DeadLetterConnection
from operations.dead_letters.replays import NotPossibleError


def edit_letter(
    letter_id: LetterId,
    body: Annotated[
        str | None,
        typer.Option(
            "--body", metavar="FILE", help="File with the new body; - reads it from stdin.", show_default="your editor"
        ),
    ] = None,
    why: Why = None,
    wait: Wait = False,
    within: Within = WITHIN_SECONDS,
    as_json_document: AsJson = False,
) -> None:
    """Replay a letter with another body, from FILE or from your editor ($VISUAL, $EDITOR). The original is kept.

    The new body must be JSON, valid for the message's type, and about the same order. The editor shows tokens and
    personal fields, so your key needs letters:edit.

    Exit status 0 when sent (with --wait: handled), 1 if the body is not valid, the letter is not dead or it failed
    again, 2 for wrong usage, 3 if a server cannot be reached.
    """

    async def send(connection: DeadLetterConnection) -> None:
        whole_id = await connection.service.resolve(letter_id)
        new_body = read_body(body) if body is not None else await _edit_body(connection, whole_id)
        replay_id = await connection.service.edit_and_replay(whole_id, new_body, by=current_operator(), why=why or "")
        replay = await run_replay(connection, replay_id)
        await conclude(connection, replay, within if wait else None, as_json_document)

    run(send)


def read_body(name: str) -> bytes:
    """Return the content of a file, or of stdin for "-". Raises BadParameter if it cannot be read."""
    try:
        return sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    except OSError as error:
        raise typer.BadParameter(f"{name}: {error.strerror}", param_hint="--body") from error


async def _edit_body(connection: DeadLetterConnection, letter_id: str) -> bytes:
    await require_unmasked(connection, "the editor")
    letter = await connection.service.letter(letter_id)
    assert letter is not None  # noqa: S101 - letters are never deleted
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
