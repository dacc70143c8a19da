"""The pages that replay, discard or restore many letters: the confirmation says whom and what they concern."""

from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Form, Query, Request, Response

from operations.approvals import policy
from operations.console.approvals import ask_for_approval
from operations.console.dependencies import ConsoleDependencies
from operations.console.forms import Why, actor, redirect
from operations.console.letters_selection import (
    DISCARD,
    REPLAY,
    RESTORE,
    FiltersOf,
    LettersAct,
    back_to,
    read_selection,
    select,
    write_selection,
)
from operations.console.pages import Pages
from operations.console.upstream import path
from operations.dead_letters.filters import Filters
from operations.dead_letters.letter import why_foreign
from operations.dead_letters.masking import mask_letter
from operations.dead_letters.previewing import ReplayPreviews
from operations.dead_letters.records import LetterRecords
from operations.dead_letters.replays import DEFAULT_RATE, NotPossibleError, new_id
from operations.dead_letters.service import DeadLetterService
from operations.dead_letters.status import DISCARDED
from operations.impact.of_letters import Concerned, concerned
from operations.settings import ApprovalAction
from shared.access.middleware import requires
from shared.database import Document
from shared.http import conflict

SHOWN = 20
"""Letters that a confirmation names."""

Ids = Annotated[tuple[str, ...], Query(alias="letter", max_length=100)]
Selection = Annotated[str, Form(max_length=20_000)]
Token = Annotated[str, Form(pattern="^[0-9a-f]{16}$")]
Rate = Annotated[float, Form(gt=0, le=10_000)]

_NEEDING_TWO: dict[str, ApprovalAction] = {REPLAY.name: policy.REPLAY, DISCARD.name: policy.DISCARD}


def create_letters_many(dependencies: ConsoleDependencies, pages: Pages, filters_of: FiltersOf) -> APIRouter:
    """Return the routes of acts on many letters, apart from edits."""
    router = pages.router()
    for act in (REPLAY, DISCARD, RESTORE):
        _add_act(router, dependencies, pages, filters_of, act)
    return router


class LettersConfirmation:
    """The confirmation of an act on many letters."""

    def __init__(self, dependencies: ConsoleDependencies, pages: Pages, act: LettersAct) -> None:
        self._dependencies = dependencies
        self._pages = pages
        self._act = act
        self._service = DeadLetterService(dependencies.operations)
        self._records = LetterRecords(dependencies.operations)
        self._previews = ReplayPreviews(dependencies.client, dependencies.prefix)

    async def look(self, filters: Filters) -> Concerned:
        """Return what the selected letters concern. Raises the 409 problem if none can be acted on."""
        found = await concerned(self._dependencies.client, self._dependencies.prefix, self._act.query(filters))
        if not found.letters:
            raise conflict(f"None of the selected letters can be {self._act.participle}, or all of them are already")
        return found

    async def show(
        self, request: Request, filters: Filters, found: Concerned, *, why: str = "", changed: bool = False
    ) -> Response:
        """Show what the act is about, and ask for a reason."""
        letters = await self._records.first(self._act.query(filters), SHOWN)
        is_replay = self._act is REPLAY
        return self._pages.show(
            request,
            "letters_many.html",
            HTTPStatus.CONFLICT if changed else HTTPStatus.OK,
            act=self._act,
            why=why,
            changed=changed,
            found=found,
            items=[mask_letter(letter) for letter in letters],
            foreign=[(letter["_id"], why_foreign(letter)) for letter in letters if is_replay and letter.get("foreign")],
            effects=(await self._previews.of_selection(filters)).counts if is_replay else (),
            needs_two=self._second_person(filters) is not None,
            rate=DEFAULT_RATE,
            selection=write_selection(filters),
            confirmed=found.summary,
            token=new_id(),
            back=back_to(filters),
        )

    async def act(self, request: Request, filters: Filters, why: str, *, token: str, how: Document) -> Response:
        """Act on the selected letters, or ask a second person; `how` are the rate and care of a replay."""
        if (action := self._second_person(filters)) is not None:
            return await ask_for_approval(
                request,
                self._dependencies,
                action=action,
                subject=filters.subject,
                why=why,
                parameters={"filters": filters.as_document()} | (how if self._act is REPLAY else {}),
            )
        by = actor(request)
        if self._act is REPLAY:
            try:
                await self._service.start_replay(filters, by=by, why=why, replay_id=token, **how)
            except NotPossibleError as error:
                raise conflict(str(error)) from None
            return redirect(path("dead-letters", "replays", token))
        decide = self._service.discard if self._act is DISCARD else self._service.restore
        await decide(filters, by=by, why=why)
        return redirect(back_to(filters, status=DISCARDED if self._act is DISCARD else ""))

    def _second_person(self, filters: Filters) -> ApprovalAction | None:
        """Return the act for which a second person is needed, None if none is."""
        action, policy_of_two = _NEEDING_TWO.get(self._act.name), self._dependencies.approval_policy
        return action if action is not None and policy_of_two.letters_need(action, filters.ids) else None


def _add_act(
    router: APIRouter, dependencies: ConsoleDependencies, pages: Pages, filters_of: FiltersOf, act: LettersAct
) -> None:
    service, confirmation = DeadLetterService(dependencies.operations), LettersConfirmation(dependencies, pages, act)

    @router.get(act.address)
    @requires(act.permission)
    async def ask(request: Request, ids: Ids = (), matching: str = "") -> Response:
        """Show what the act is about, and ask for a reason."""
        filters = select(act, ids, matching, dict(request.query_params), filters_of, dependencies.clock())
        return await confirmation.show(request, filters, await confirmation.look(filters))

    @router.post(act.address)
    @requires(act.permission)
    async def do(
        request: Request,
        why: Annotated[Why, Form()],
        selection: Selection,
        confirmed: Annotated[str, Form(max_length=1000)],
        token: Token,
        rate: Rate = DEFAULT_RATE,
        careful: Annotated[bool, Form()] = False,
    ) -> Response:
        """Act on the selected letters, or ask a second person.

        If they concern something else by now than the form said, ask again. The token of the form is the id of the
        replay, so a form that is sent twice starts one.
        """
        filters = read_selection(selection)
        if act is REPLAY and await service.replay(token) is not None:
            return redirect(path("dead-letters", "replays", token))
        found = await confirmation.look(filters)
        if found.summary != confirmed:
            return await confirmation.show(request, filters, found, why=why, changed=True)
        return await confirmation.act(request, filters, why, token=token, how={"rate": rate, "careful": careful})
