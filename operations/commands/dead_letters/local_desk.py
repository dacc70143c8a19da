"""The dead letters of a stack whose databases and broker the command reaches itself."""

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from typing import Any

from operations.approvals.policy import DISCARD, EDIT, REPLAY
from operations.commands.approval import ask_for_approval, policy_of_stack
from operations.commands.dead_letters.desk import Act, BodyPreview, Concern, Listed
from operations.commands.operator import current_operator
from operations.dead_letters.connection import DeadLetterConnection, abandoned, await_outcome, follow
from operations.dead_letters.difference import differences
from operations.dead_letters.edit_previewing import EditPreview, EditPreviews
from operations.dead_letters.editing import check_body
from operations.dead_letters.filters import Filters, discardable, replayable, restorable, until_now
from operations.dead_letters.group_filters import GroupFilters
from operations.dead_letters.letter import why_foreign
from operations.dead_letters.outcome import ReplayOutcome
from operations.dead_letters.patching import Patch
from operations.dead_letters.previewing import ReplayPreviews, SelectionPreview
from operations.dead_letters.replaying import Progress
from operations.dead_letters.service import Decided
from operations.impact.impact import Impact
from operations.impact.of_letters import concerned
from operations.impact.ranking import RankedPage, Sorting, rank_groups
from operations.impact.reading import ImpactReader
from operations.order_actions.search import MOST_COUNTED
from operations.settings import ApprovalAction, Stack
from shared.clock import utc_now
from shared.database import Document

_QUERIES = {"replay": replayable, "discard": discardable, "restore": restorable}


class LocalDesk:
    """A `LetterDesk` over MongoDB and RabbitMQ."""

    def __init__(self, connection: DeadLetterConnection) -> None:
        self._connection = connection
        self._service = connection.service
        client, prefix = connection.database.client, connection.stack.database_prefix
        self._client, self._prefix = client, prefix
        self._previews = ReplayPreviews(client, prefix)
        self._impacts = ImpactReader(client, prefix)

    @property
    def stack(self) -> Stack:
        """The stack."""
        return self._connection.stack

    async def resolve(self, filters: Filters) -> Filters:
        """See `LetterDesk`."""
        return replace(filters, ids=tuple([await self._service.resolve(prefix) for prefix in filters.ids]))

    async def freeze(self, filters: Filters) -> Filters:
        """See `LetterDesk`."""
        return until_now(await self.resolve(filters), utc_now())

    async def page(self, filters: Filters, *, limit: int, cursor: str | None) -> Listed:
        """See `LetterDesk`."""
        page = await self._service.page(filters, limit=limit, cursor=cursor)
        return Listed(page, await self._service.count(filters, MOST_COUNTED))

    async def letter(self, letter_id: str) -> Document:
        """See `LetterDesk`."""
        letter = await self._service.letter(await self._service.resolve(letter_id))
        assert letter is not None  # noqa: S101 - letters are never deleted
        return letter

    async def impact(self, letter: Document) -> Impact:
        """See `LetterDesk`."""
        group = await self._service.group(letter["fingerprint"], bins=1)
        return await self._impacts.of_group(letter["fingerprint"], group.open if group else 0)

    def export(self, filters: Filters, *, masked: bool) -> AsyncIterator[dict[str, Any]]:
        """See `LetterDesk`."""
        return self._service.export(filters, masked=masked)

    async def groups(self, filters: GroupFilters, *, by: Sorting, limit: int, skip: int) -> RankedPage:
        """See `LetterDesk`."""
        return await rank_groups(self._service, self._impacts, filters, by=by, limit=limit, skip=skip)

    async def preview(self, filters: Filters, body: bytes | None) -> SelectionPreview:
        """See `LetterDesk`."""
        if body is None:
            return await self._previews.of_selection(filters)
        letter = await self.letter(filters.ids[0])
        check_body(letter, body)
        return SelectionPreview([(letter["_id"], await self._previews.of_letter(letter, body))], 1)

    async def preview_patch(self, filters: Filters, patch: Patch, samples: int) -> EditPreview:
        """See `LetterDesk`."""
        previews = EditPreviews(self._connection.database, self._previews)
        return await previews.of_selection(filters, patch, samples=samples, masked=True)

    async def preview_body(self, letter: str, body: bytes, unlocked: Sequence[str]) -> BodyPreview:
        """See `LetterDesk`."""
        found = await self.letter(letter)
        identities = check_body(found, body, unlocked)
        return BodyPreview(differences(found["current"], body, masked=True), identities)

    async def concern(self, act: Act, filters: Filters) -> Concern:
        """See `LetterDesk`."""
        foreign = await self._service.foreign(filters) if act == "replay" else []
        about = await concerned(self._client, self._prefix, _QUERIES[act](filters))
        return Concern(about, {letter["_id"]: why_foreign(letter) or "" for letter in foreign})

    async def needs_reason(self, filters: Filters) -> bool:
        """See `LetterDesk`: only a second person has to know why."""
        return await self._needs_second_person(REPLAY, filters)

    async def replay(self, filters: Filters, *, why: str, rate: float, careful: bool) -> str:
        """See `LetterDesk`."""
        if await self._needs_second_person(REPLAY, filters):
            parameters = {"filters": filters.as_document(), "rate": rate, "careful": careful}
            await self._ask(REPLAY, filters, why, parameters)
        return await self._service.start_replay(filters, by=current_operator(), why=why, rate=rate, careful=careful)

    async def edit(self, filters: Filters, patch: Patch, *, why: str, rate: float, careful: bool) -> str:
        """See `LetterDesk`."""
        if await self._needs_second_person(REPLAY, filters):
            how = {"rate": rate, "careful": careful, "patch": patch._asdict()}
            await self._ask(EDIT, filters, why, {"filters": filters.as_document()} | how)
        return await self._service.start_edit(
            filters, patch, by=current_operator(), why=why, rate=rate, careful=careful
        )

    async def edit_one(self, letter: str, body: bytes, *, why: str, unlocked: Sequence[str]) -> str:
        """See `LetterDesk`."""
        return await self._service.edit_and_replay(letter, body, by=current_operator(), why=why, unlocked=unlocked)

    async def decide(self, act: Act, filters: Filters, *, why: str) -> Decided:
        """See `LetterDesk`."""
        if act == "restore":
            return await self._service.restore(filters, by=current_operator(), why=why)
        if await self._needs_second_person(DISCARD, filters):
            await self._ask(DISCARD, filters, why, {"filters": filters.as_document()})
        return await self._service.discard(filters, by=current_operator(), why=why)

    async def abandoned(self) -> list[str]:
        """See `LetterDesk`: the unfinished replays that no process runs."""
        return await abandoned(self._connection)

    async def find_replay(self, replay_id: str) -> Document | None:
        """See `LetterDesk`."""
        return await self._service.replay(replay_id)

    async def follow(self, replay_id: str, on_progress: Progress) -> Document:
        """See `LetterDesk`."""
        return await follow(self._connection, replay_id, on_progress)

    async def outcome(self, replay_id: str) -> ReplayOutcome:
        """See `LetterDesk`."""
        return await self._service.outcome(replay_id)

    async def await_outcome(
        self, replay_id: str, within: float, on_progress: Callable[[ReplayOutcome], None]
    ) -> ReplayOutcome:
        """See `LetterDesk`."""
        return await await_outcome(self._connection, replay_id, within, on_progress)

    async def _needs_second_person(self, action: ApprovalAction, filters: Filters) -> bool:
        return (await policy_of_stack(self._connection.database)).letters_need(action, filters.ids)

    async def _ask(self, action: str, filters: Filters, why: str, parameters: Document) -> None:
        stack, database = self._connection.stack, self._connection.database
        await ask_for_approval(stack, database, action, filters.subject, why, parameters)
