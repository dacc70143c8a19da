"""The page that edits many letters by one JSON patch: the patch, what it changes, and the confirmation."""

import hashlib
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Form, Request, Response

from operations.approvals import policy
from operations.console.approvals import ask_for_approval
from operations.console.bodies import view
from operations.console.dependencies import ConsoleDependencies
from operations.console.forms import Why, actor, redirect
from operations.console.letters_many import Ids, Rate, Selection, Token
from operations.console.letters_selection import (
    EDIT,
    FiltersOf,
    back_to,
    read_selection,
    select,
    write_selection,
)
from operations.console.pages import Pages
from operations.console.upstream import path
from operations.dead_letters.edit_previewing import EditPreview, EditPreviews, Sample
from operations.dead_letters.editing import without_identities
from operations.dead_letters.filters import Filters
from operations.dead_letters.patching import (
    LOCKABLE,
    MOST_BYTES,
    InvalidPatchError,
    Patch,
    patch_from_example,
    read_patch,
)
from operations.dead_letters.preview import body_to_send
from operations.dead_letters.previewing import ReplayPreviews
from operations.dead_letters.records import LetterRecords
from operations.dead_letters.replays import DEFAULT_RATE, NotPossibleError, new_id
from operations.dead_letters.service import DeadLetterService
from operations.impact.of_letters import concerned
from shared.access.middleware import requires
from shared.access.permissions import Permission
from shared.http import conflict

SAMPLES = 3
"""Letters whose changes a preview shows; any other one is shown on request."""

LARGEST_EXAMPLE = 32 * 1024
"""Bytes of a body that can be changed as an example."""

Unlock = Annotated[str, Form(max_length=200)]
PatchText = Annotated[str, Form(max_length=MOST_BYTES)]


@dataclass(frozen=True, slots=True)
class Written:
    """What an operator has written into the form: `unlock` has names of identities, `letter` the id of one to show."""

    patch: str = ""
    example: str = ""
    unlock: str = ""
    letter: str = ""
    why: str = ""
    rate: float = DEFAULT_RATE
    careful: bool = True

    def read(self) -> Patch:
        """Read the patch. Raises InvalidPatchError."""
        return read_patch(self.patch, self.unlock.replace(",", " ").split())


@dataclass(frozen=True, slots=True)
class Shown:
    """What the page says about the patch: why it cannot be used, or what it does."""

    error: str = ""
    found: EditPreview | None = None
    one: Sample | None = None
    confirmed: str = ""
    changed: bool = False


class LettersEditor:
    """The form that edits many letters."""

    def __init__(self, dependencies: ConsoleDependencies, pages: Pages) -> None:
        self._dependencies = dependencies
        self._pages = pages
        self._service = DeadLetterService(dependencies.operations)
        self._records = LetterRecords(dependencies.operations)
        replays = ReplayPreviews(dependencies.client, dependencies.prefix)
        self._previews = EditPreviews(dependencies.operations, replays)

    async def show(
        self, request: Request, filters: Filters, written: Written, shown: Shown, status: int = HTTPStatus.OK
    ) -> Response:
        """Show the form. Raises the 409 problem if none of the letters can be edited."""
        found = await concerned(self._dependencies.client, self._dependencies.prefix, EDIT.query(filters))
        if not found.letters:
            raise conflict("None of the selected letters can be edited")
        example = await self._example(filters)
        return self._pages.show(
            request,
            "letters_edit.html",
            status,
            act=EDIT,
            concerned=found,
            written=written,
            shown=shown,
            example=None if example is None else (example[0], written.example or view(example[1]).text),
            lockable=LOCKABLE,
            needs_two=self._dependencies.approval_policy.letters_need(policy.REPLAY, filters.ids),
            selection=write_selection(filters),
            token=new_id(),
            back=back_to(filters),
        )

    async def preview(self, request: Request, filters: Filters, written: Written) -> Response:
        """Show the form again, with what the patch would change, and what a replay would then do."""
        try:
            written = await self._completed(filters, written)
            patch = written.read()
        except InvalidPatchError as error:
            return await self.show(request, filters, written, Shown(str(error)), HTTPStatus.UNPROCESSABLE_ENTITY)
        return await self.show(request, filters, written, await self._look(filters, written, patch))

    async def send(
        self, request: Request, filters: Filters, written: Written, *, confirmed: str, token: str
    ) -> Response:
        """Edit and replay the letters, or ask a second person.

        If the patch, or what it does, is another by now than the form said, ask again. The token of the form is the id
        of the replay, so a form that is sent twice starts one.
        """
        replays = path("dead-letters", "replays", token)
        if await self._service.replay(token) is not None:
            return redirect(replays)
        try:
            written = await self._completed(filters, written)
            patch = written.read()
        except InvalidPatchError as error:
            return await self.show(request, filters, written, Shown(str(error)), HTTPStatus.UNPROCESSABLE_ENTITY)
        shown = await self._look(filters, written, patch)
        if shown.confirmed != confirmed:
            return await self.show(request, filters, written, replace(shown, changed=True), HTTPStatus.CONFLICT)
        how = {"rate": written.rate, "careful": written.careful}
        if self._dependencies.approval_policy.letters_need(policy.REPLAY, filters.ids):
            parameters = {"filters": filters.as_document(), "patch": patch._asdict()} | how
            return await ask_for_approval(
                request,
                self._dependencies,
                action=policy.EDIT,
                subject=filters.subject,
                why=written.why,
                parameters=parameters,
            )
        try:
            await self._service.start_edit(
                filters,
                patch,
                by=actor(request),
                why=written.why,
                rate=written.rate,
                careful=written.careful,
                replay_id=token,
            )
        except NotPossibleError as error:
            raise conflict(str(error)) from None
        return redirect(replays)

    async def _example(self, filters: Filters) -> tuple[str, bytes] | None:
        """Return the id of the first letter that can be changed as an example, and its body without what is locked."""
        async for letter in self._records.to_replay(filters, SAMPLES):
            body = body_to_send(letter)
            if body is not None and len(body) <= LARGEST_EXAMPLE and view(body).kind == "JSON":
                return letter["_id"], without_identities(letter)
        return None

    async def _completed(self, filters: Filters, written: Written) -> Written:
        """Return what was written, with the patch that an example makes.

        Raises InvalidPatchError, also if there are both a patch and a changed example: one would be dropped.
        """
        example = await self._example(filters)
        if example is None:
            return written
        if not written.patch.strip():
            return replace(written, patch=patch_from_example(example[1], written.example), example="")
        now = written.example.replace("\r\n", "\n").strip()  # browsers end the lines of a text field with CR LF
        if now and now != view(example[1]).text.strip():
            raise InvalidPatchError("there is a patch, and the example is changed too: empty one of the two fields")
        return replace(written, example="")

    async def _look(self, filters: Filters, written: Written, patch: Patch) -> Shown:
        """Return what the patch does, and what it does with the letter that was asked for."""
        found = await self._previews.of_selection(filters, patch, samples=SAMPLES, masked=False)
        one, error = None, ""
        if asked := written.letter.strip():
            try:
                one = await self._previews.of_letter(await self._service.resolve(asked), patch, masked=False)
            except NotPossibleError as unknown:
                error = str(unknown)
        return Shown(error, found, one, _summary(patch, found))


def create_letters_edit(dependencies: ConsoleDependencies, pages: Pages, filters_of: FiltersOf) -> APIRouter:
    """Return the routes that edit many letters."""
    router, editor = pages.router(), LettersEditor(dependencies, pages)

    @router.get(EDIT.address)
    @requires(Permission.LETTERS_EDIT)
    async def ask(request: Request, ids: Ids = (), matching: str = "") -> Response:
        """Ask for the patch."""
        filters = select(EDIT, ids, matching, dict(request.query_params), filters_of, dependencies.clock())
        return await editor.show(request, filters, Written(), Shown())

    @router.post(EDIT.address + "/preview")
    @requires(Permission.LETTERS_EDIT)
    async def preview(
        request: Request,
        selection: Selection,
        patch: PatchText = "",
        example: PatchText = "",
        unlock: Unlock = "",
        letter: Annotated[str, Form(max_length=100)] = "",
        why: Annotated[str, Form(max_length=500)] = "",
        rate: Rate = DEFAULT_RATE,
        careful: Annotated[bool, Form()] = False,
    ) -> Response:
        written = Written(patch, example, unlock, letter, why, rate, careful)
        return await editor.preview(request, read_selection(selection), written)

    @router.post(EDIT.address)
    @requires(Permission.LETTERS_EDIT)
    async def edit(
        request: Request,
        why: Annotated[Why, Form()],
        selection: Selection,
        confirmed: Annotated[str, Form(max_length=64)],
        token: Token,
        patch: PatchText = "",
        example: PatchText = "",
        unlock: Unlock = "",
        rate: Rate = DEFAULT_RATE,
        careful: Annotated[bool, Form()] = False,
    ) -> Response:
        written = Written(patch=patch, example=example, unlock=unlock, why=why, rate=rate, careful=careful)
        return await editor.send(request, read_selection(selection), written, confirmed=confirmed, token=token)

    return router


def _summary(patch: Patch, found: EditPreview) -> str:
    """Return what a confirmation is about, as the form carries it."""
    digest = hashlib.sha256("\n".join([patch.text, *patch.unlocked, found.summary]).encode())
    return digest.hexdigest()
