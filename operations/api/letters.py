"""The routes about dead letters: the list, one letter, its preview, and edits and discards."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Request, Response
from pydantic import ConfigDict, Field

from operations.api.letter_groups import PreviewOfSelection
from operations.api.replays import NewReplay, ReplayView, started
from operations.api.routes import ACCEPTED, Accepted, Reason, ask_second_person, staff_router
from operations.api.selections import QueryFilters, Selection
from operations.api.views import ConcernedView, concern
from operations.approvals.policy import DISCARD, EDIT, REPLAY
from operations.console.dependencies import ConsoleDependencies
from operations.console.forms import actor
from operations.dead_letters.difference import differences
from operations.dead_letters.edit_previewing import EditPreviews
from operations.dead_letters.editing import InvalidBodyError, check_body
from operations.dead_letters.filters import discardable, restorable
from operations.dead_letters.letter_json import letter_as_json
from operations.dead_letters.masking import mask_letter
from operations.dead_letters.patching import LOCKABLE, MOST_BYTES, InvalidPatchError, read_patch
from operations.dead_letters.previewing import ReplayPreviews, SelectionPreview
from operations.dead_letters.service import DeadLetterService
from operations.order_actions.search import MOST_COUNTED
from shared.access.middleware import Caller, requires
from shared.access.permissions import Permission
from shared.access.principal import Principal
from shared.clock import utc_now
from shared.database import Document
from shared.http import Body, View, invalid, json_response, not_found
from shared.openapi import documented
from shared.paging import DEFAULT_LIMIT, CursorParameter, Limit, wrong_cursor

SAMPLES = 5
"""Letters whose changes a preview shows."""


NewBody = Annotated[str, Field(description="the whole body, as text", examples=['{"orderId": "5f0c2b1e9d"}'])]
Unlocked = Annotated[
    list[Annotated[str, Field(max_length=40)]],
    Field(max_length=20, description="what messages are about and the edit may change, such as `orderId`"),
]


class ErrorView(View):
    """Why a message could not be handled."""

    type: str
    message: str


class LetterView(View):
    """A dead letter; tokens and personal fields are masked for callers who may not edit letters.

    A letter has more fields than these, such as its headers and the outcomes of its replays.
    """

    model_config = ConfigDict(extra="allow")

    id: str
    status: str
    service: str
    queue: str
    routing_key: str
    order_id: str | None
    fingerprint: str = Field(description="that of its group")
    error: ErrorView
    first_failed_at: datetime
    last_failed_at: datetime
    body: str | None = Field(None, description="not in lists; `bodyBase64` if it is not text")


class LetterPage(View):
    """A page of letters, the latest failure first, without bodies."""

    items: list[LetterView]
    next_cursor: str | None
    total: int = Field(description="on all pages; with 10,000 or more, the least that there are")
    total_is_exact: bool


class PreviewView(View):
    """What a replay would do."""

    effect: str = Field(description="changes, changes nothing, fails again or no preview")
    text: str = Field(examples=["PENDING → CONFIRMED, sends order.confirmed"])


class SelectionToPreview(Body):
    """Letters, and for one of them another body."""

    letters: Selection
    body: NewBody | None = None


class Edit(Body):
    """Another body for a letter, and why."""

    body: NewBody
    reason: Reason
    unlock: Unlocked = Field(default_factory=list)
    dry_run: bool = Field(False, description="only answer what it would change")


class ChangeView(View):
    """A field that an edit changes, by its JSON pointer, with its value as JSON before and after."""

    path: str
    before: str | None
    after: str | None


class PreviewOfBody(View):
    """What another body would change, without tokens and personal fields, and which identities."""

    id: str
    changes: list[ChangeView]
    identities: dict[str, list[str | None]] = Field(description="by name, before and after")


class Decision(Body):
    """Which letters, and why."""

    letters: Selection
    reason: Reason
    dry_run: bool = Field(False, description="only answer what it is about")


class Discarded(Accepted):
    """How many letters were discarded, and how many an earlier attempt at the same act had discarded."""

    discarded: int
    before: int


class Restored(View):
    """How many letters were restored, and how many an earlier attempt at the same act had restored."""

    restored: int
    before: int


class PatchedEdit(NewReplay):
    """Which letters to edit by a patch and to send again, how, and why."""

    patch: Annotated[
        str,
        Field(
            max_length=MOST_BYTES,
            description="JSON patch (RFC 6902), as text",
            examples=['[{"op": "replace", "path": "/items/0/quantity", "value": 1}]'],
        ),
    ]
    unlock: Unlocked = Field(default_factory=list)
    dry_run: bool = Field(False, description="only answer what it would do")
    samples: Annotated[int, Field(ge=0, le=1000, description="letters whose changes a dry run shows")] = SAMPLES
    masked: bool = Field(False, description="whether a dry run hides tokens and personal fields")


class PreviewOfEdit(View):
    """What a patch would do; it has more fields than these, such as the changes of some letters."""

    model_config = ConfigDict(extra="allow")

    total: int
    looked_at: int
    changed: int


def create_letters(dependencies: ConsoleDependencies) -> APIRouter:
    """Return the routes."""
    router, service = staff_router("dead letters"), DeadLetterService(dependencies.operations)
    _add_reading(router, service, ReplayPreviews(dependencies.client, dependencies.prefix))
    _add_deciding(router, dependencies, service)
    _add_bulk_edit(router, dependencies, service)
    return router


def _add_reading(router: APIRouter, service: DeadLetterService, previews: ReplayPreviews) -> None:
    @router.get("/dead-letters", response_model=LetterPage)
    @requires(Permission.LETTERS_READ)
    async def list_dead_letters(
        filters: QueryFilters, limit: Limit = DEFAULT_LIMIT, cursor: CursorParameter = None, *, caller: Caller
    ) -> Response:
        """Dead letters that match all that is asked for, the latest failure first; without a status, the open ones."""
        filters = replace(filters, ids=tuple([await service.resolve(prefix) for prefix in filters.ids]))
        try:
            page = await service.page(filters, limit=limit, cursor=cursor)
        except ValueError:
            raise wrong_cursor() from None
        total = await service.count(filters, MOST_COUNTED)
        return json_response(
            {
                "items": [letter_as_json(_visible(letter, caller)) for letter in page.items],
                "nextCursor": page.next_cursor,
                "total": total,
                "totalIsExact": total < MOST_COUNTED,
            }
        )

    @router.get("/dead-letters/{letter_id}", response_model=LetterView)
    @requires(Permission.LETTERS_READ)
    async def get_dead_letter(letter_id: str, caller: Caller) -> Response:
        """A dead letter with its body, its headers and the outcomes of its replays."""
        return json_response(letter_as_json(_visible(await _letter(service, letter_id), caller)))

    @router.get("/dead-letters/{letter_id}/preview", response_model=PreviewView)
    @requires(Permission.LETTERS_READ)
    async def preview_replay_of_dead_letter(letter_id: str) -> Response:
        """What a replay of the letter would do, without doing it."""
        preview = await previews.of_letter(await _letter(service, letter_id))
        return json_response({"effect": preview.effect, "text": preview.in_words()})

    @router.post("/dead-letters/preview", response_model=PreviewOfSelection, responses=documented(404))
    @requires(Permission.LETTERS_READ)
    async def preview_replay_of_dead_letters(body: SelectionToPreview) -> Response:
        """What a replay of letters would do, counted and letter by letter; of one, also with another body."""
        filters = body.letters.filters(utc_now())
        if body.body is None:
            return json_response((await previews.of_selection(filters)).as_json())
        if len(filters.ids) != 1:
            raise invalid(("body", "is the body of one letter: give one id"))
        letter, new = await _letter(service, filters.ids[0]), body.body.encode()
        _check_body(letter, new, ())
        found = SelectionPreview([(letter["_id"], await previews.of_letter(letter, new))], 1)
        return json_response(found.as_json())


def _add_deciding(router: APIRouter, dependencies: ConsoleDependencies, service: DeadLetterService) -> None:
    @router.post(
        "/dead-letters/{letter_id}/edit",
        status_code=202,
        response_model=ReplayView,
        responses=ACCEPTED | {200: {"model": PreviewOfBody, "description": "With `dryRun`"}} | documented(404, 409),
    )
    @requires(Permission.LETTERS_EDIT)
    async def edit_dead_letter(request: Request, letter_id: str, body: Edit) -> Response:
        """Replay a letter with another body; the original is kept, too.

        The body must keep the ids of the original, but for those that are unlocked. With `dryRun`, answer with 200 what
        it would change, and do nothing.
        """
        letter, new = await _letter(service, letter_id), body.body.encode()
        identities = _check_body(letter, new, body.unlock)
        if body.dry_run:
            changes = [change.as_json() for change in differences(letter["current"], new, masked=True)]
            named = {name: [None if each is None else str(each) for each in both] for name, both in identities.items()}
            return json_response({"id": letter_id, "changes": changes, "identities": named})
        replay_id = await service.edit_and_replay(
            letter_id, new, by=actor(request), why=body.reason, unlocked=body.unlock
        )
        return await started(service, replay_id)

    @router.post(
        "/dead-letters/discard",
        response_model=Discarded | ConcernedView,
        responses=documented(409) | {202: {"model": Accepted}},
    )
    @requires(Permission.LETTERS_DECIDE)
    async def discard_dead_letters(request: Request, body: Decision) -> Response:
        """Archive letters: nothing is sent again, and nothing is deleted.

        With `dryRun`, answer how many letters, orders, customers and how much money it is about, and do nothing.
        """
        filters = body.letters.filters(dependencies.clock())
        if body.dry_run:
            return await concern(dependencies, filters, discardable(filters))
        if dependencies.approval_policy.letters_need(DISCARD, filters.ids):
            return await ask_second_person(
                request,
                dependencies,
                action=DISCARD,
                subject=filters.subject,
                why=body.reason,
                parameters={"filters": filters.as_document()},
            )
        done = await service.discard(filters, by=actor(request), why=body.reason)
        return json_response({"outcome": "done", "approval": None, "discarded": done.number, "before": done.before})

    @router.post("/dead-letters/restore", response_model=Restored | ConcernedView, responses=documented(409))
    @requires(Permission.LETTERS_DECIDE)
    async def restore_dead_letters(request: Request, body: Decision) -> Response:
        """Take discarded letters back: they wait for a decision again; `dryRun` is as with discarding."""
        filters = body.letters.filters(dependencies.clock())
        if body.dry_run:
            return await concern(dependencies, filters, restorable(filters))
        done = await service.restore(filters, by=actor(request), why=body.reason)
        return json_response({"restored": done.number, "before": done.before})


def _add_bulk_edit(router: APIRouter, dependencies: ConsoleDependencies, service: DeadLetterService) -> None:
    previews = EditPreviews(dependencies.operations, ReplayPreviews(dependencies.client, dependencies.prefix))

    @router.post(
        "/dead-letters/edit",
        status_code=202,
        response_model=ReplayView | Accepted,
        responses=ACCEPTED | {200: {"model": PreviewOfEdit, "description": "With `dryRun`"}} | documented(409),
    )
    @requires(Permission.LETTERS_EDIT)
    async def edit_dead_letters(request: Request, body: PatchedEdit) -> Response:
        """Edit letters by one JSON patch, and replay those to which it applies; the originals are kept.

        With `dryRun`, answer with 200 what it would change and what a replay would then do, and do nothing.
        """
        filters = body.letters.filters(dependencies.clock())
        try:
            patch = read_patch(body.patch, body.unlock)
        except InvalidPatchError as error:
            raise invalid(("patch", str(error))) from None
        if body.dry_run:
            found = await previews.of_selection(filters, patch, samples=body.samples, masked=body.masked)
            return json_response(found.as_json())
        how = {"rate": body.rate, "careful": body.careful}
        if dependencies.approval_policy.letters_need(REPLAY, filters.ids):
            return await ask_second_person(
                request,
                dependencies,
                action=EDIT,
                subject=filters.subject,
                why=body.reason,
                parameters={"filters": filters.as_document(), "patch": patch._asdict()} | how,
            )
        replay_id = await service.start_edit(
            filters, patch, by=actor(request), why=body.reason, rate=body.rate, careful=body.careful
        )
        return await started(service, replay_id)


async def _letter(service: DeadLetterService, letter_id: str) -> Document:
    found = await service.letter(letter_id)
    if found is None:
        raise not_found(f"Dead letter {letter_id}")
    return found


def _check_body(letter: Document, body: bytes, unlocked: Sequence[str]) -> Mapping[str, list[Any]]:
    """Return the identities that a new body changes. Raises the 422 problem for a body that is not valid."""
    if unknown := sorted(set(unlocked) - set(LOCKABLE)):
        raise invalid(("unlock", f"{unknown[0]!r} is none of {', '.join(LOCKABLE)}"))
    try:
        return check_body(letter, body, unlocked)
    except InvalidBodyError as error:
        raise invalid(*error.errors) from None


def _visible(letter: Document, caller: Principal) -> Document:
    """Return the letter as the caller may see it: only who may edit letters sees tokens and personal fields."""
    return letter if caller.may(Permission.LETTERS_EDIT) else mask_letter(letter)
