"""The page that edits one dead letter: its identities are locked, and what changes is shown before it is sent."""

import hashlib
from collections.abc import Sequence
from typing import Annotated, NamedTuple

from fastapi import APIRouter, Form, Request, Response

from operations.console.bodies import BodyView, view, view_of
from operations.console.dependencies import ConsoleDependencies
from operations.console.forms import Why, actor, redirect
from operations.console.pages import Pages
from operations.console.upstream import path
from operations.dead_letters.difference import Change, differences
from operations.dead_letters.editing import (
    InvalidBodyError,
    check_body,
    locked_identities,
    with_identities,
    without_identities,
)
from operations.dead_letters.effects import Preview
from operations.dead_letters.patching import LOCKABLE
from operations.dead_letters.previewing import ReplayPreviews
from operations.dead_letters.replays import NotPossibleError
from operations.dead_letters.service import DeadLetterService
from shared.access.middleware import requires
from shared.access.permissions import Permission
from shared.database import Document
from shared.http import conflict, invalid, not_found

Identity = Annotated[str, Form(max_length=40)]
Value = Annotated[str, Form(max_length=300)]


class Written(NamedTuple):
    """What an operator has written into the form: `identity` is the one that is to change, to `value`."""

    text: str
    why: str = ""
    identity: str = ""
    value: str = ""

    @property
    def changes(self) -> dict[str, str]:
        """The identities that are to change."""
        return {self.identity: self.value.strip()} if self.identity else {}


class Shown(NamedTuple):
    """What the form says about the body that was written: what is wrong with it, or what it changes and does.

    `seen` is the digest of a body whose changes are shown; only such a body is sent.
    """

    errors: Sequence[tuple[str, str]] = ()
    changes: Sequence[Change] | None = None
    preview: Preview | None = None
    seen: str = ""


class LetterEditor:
    """The form that edits one letter."""

    def __init__(self, dependencies: ConsoleDependencies, pages: Pages) -> None:
        self._service = DeadLetterService(dependencies.operations)
        self._previews = ReplayPreviews(dependencies.client, dependencies.prefix)
        self._pages = pages

    async def open(self, request: Request, letter_id: str) -> Response:
        """Show the form with the body of a letter. Raises the 409 problem if a form cannot edit it."""
        stored = await self._service.letter_for_page(letter_id)
        if stored is None:
            raise not_found(f"Dead letter {letter_id}")
        _check_editable(view(stored["edits"][-1]["body"]) if stored["edits"] else view_of(stored))
        letter = await self._find(letter_id)
        return self._show(request, letter, Written(view(without_identities(letter)).text), Shown())

    async def preview(self, request: Request, letter_id: str, written: Written) -> Response:
        """Show the form again, with what this body changes and a replay would do, or with its errors."""
        letter = await self._find(letter_id)
        _, shown = await self._look(letter, written)
        return self._show(request, letter, written, shown, 422 if shown.errors else 200)

    async def send(self, request: Request, letter_id: str, written: Written, seen: str) -> Response:
        """Replay the letter with this body, if the form has shown what it changes; else show the form again."""
        letter = await self._find(letter_id)
        body, shown = await self._look(letter, written)
        if shown.errors or shown.seen != seen:
            return self._show(request, letter, written, shown, 422 if shown.errors else 200)
        try:
            replay_id = await self._service.edit_and_replay(
                letter_id, body, by=actor(request), why=written.why, unlocked=written.changes
            )
        except (InvalidBodyError, NotPossibleError) as error:
            return self._show(request, letter, written, Shown([("letter", str(error))]), 409)
        return redirect(path("dead-letters", "replays", replay_id))

    async def _find(self, letter_id: str) -> Document:
        letter = await self._service.letter(letter_id)
        if letter is None:
            raise not_found(f"Dead letter {letter_id}")
        return letter

    def _show(self, request: Request, letter: Document, written: Written, shown: Shown, status: int = 200) -> Response:
        locked = locked_identities(letter)
        return self._pages.show(
            request, "edit.html", status, letter=letter, locked=locked, written=written, shown=shown
        )

    async def _look(self, letter: Document, written: Written) -> tuple[bytes, Shown]:
        """Return the body that was written, and what is to be said about it."""
        if written.identity and written.identity not in LOCKABLE:
            raise invalid(("identity", f"is {written.identity!r}, must be one of {', '.join(LOCKABLE)}"))
        if written.identity and not written.value.strip():
            return b"", Shown([(written.identity, "type its new value to unlock it, or leave it locked")])
        body = with_identities(written.text, locked_identities(letter), written.changes)
        try:
            check_body(letter, body, written.changes)
        except InvalidBodyError as error:
            return body, Shown(error.errors)
        changes, preview = differences(letter["current"], body), await self._previews.of_letter(letter, body)
        return body, Shown((), changes, preview, hashlib.sha256(body).hexdigest())


def create_letter_edit(dependencies: ConsoleDependencies, pages: Pages) -> APIRouter:
    """Return the routes that edit one letter."""
    router, editor = pages.router(), LetterEditor(dependencies, pages)

    @router.get("/dead-letters/letters/{letter_id}/edit")
    @requires(Permission.LETTERS_EDIT)
    async def ask(request: Request, letter_id: str) -> Response:
        return await editor.open(request, letter_id)

    @router.post("/dead-letters/letters/{letter_id}/edit")
    @requires(Permission.LETTERS_EDIT)
    async def edit(
        request: Request,
        letter_id: str,
        body: Annotated[str, Form()],
        why: Annotated[Why, Form()],
        identity: Identity = "",
        value: Value = "",
        seen: Annotated[str, Form(max_length=64)] = "",
    ) -> Response:
        """Replay the letter with another body, or show the form again: what it changes, or the errors of the body."""
        return await editor.send(request, letter_id, Written(_as_written(body), why, identity, value), seen)

    @router.post("/dead-letters/letters/{letter_id}/edit/preview")
    @requires(Permission.LETTERS_EDIT)
    async def preview_edit(
        request: Request,
        letter_id: str,
        body: Annotated[str, Form()],
        why: Annotated[str, Form(max_length=500)] = "",
        identity: Identity = "",
        value: Value = "",
    ) -> Response:
        """Show the form again, with what this body changes and a replay would do, or with the errors of the body."""
        return await editor.preview(request, letter_id, Written(_as_written(body), why, identity, value))

    return router


def _check_editable(body: BodyView) -> None:
    """Raise the 409 problem for a body that a form cannot edit."""
    if not body.editable or body.cut:
        raise conflict("The body is too large for a form, or not text: use `ordersaga dead-letters edit --body FILE`")


def _as_written(text: str) -> str:
    """Return a text as its writer sees it: browsers end the lines of a text field with CR LF."""
    return text.replace("\r\n", "\n")
