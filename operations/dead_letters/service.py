"""Dead letters as operators see and act on them: the one entry point for the command line and the console."""

from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any, NamedTuple

from operations.actions import STARTED, interrupted_since, record_action
from operations.dead_letters.editing import MOST_EDITS, check_body
from operations.dead_letters.filters import Filters, restorable
from operations.dead_letters.group_filters import GroupFilters
from operations.dead_letters.groups import MOST_NOTES, Group, GroupOrder, GroupPage, GroupRecords
from operations.dead_letters.letter import why_not_replayable
from operations.dead_letters.letter_json import letter_as_json
from operations.dead_letters.masking import mask_letter
from operations.dead_letters.outcome import ReplayOutcome, outcome_of, outcomes_of
from operations.dead_letters.patching import Edit, Patch
from operations.dead_letters.records import LetterOrder, LetterPage, LetterRecords
from operations.dead_letters.replays import DEFAULT_RATE, NotPossibleError, ReplayRecords, new_id
from operations.dead_letters.schema import SCHEMA
from shared import schema
from shared.clock import utc_now
from shared.database import Database, Document
from shared.failpoints import GROUPS_REOPENED, LETTERS_CHOSEN, LETTERS_DECIDED, Failpoint, nothing_fails

EXPORT_PAGE = 100

MOST_FOREIGN = 100
"""The most foreign letters that a selection names."""

ALL_GROUPS = GroupFilters()

LONGEST_NOTE = 2000
"""Characters of a note or a reason."""


class Decided(NamedTuple):
    """How many letters an act has changed, and how many of the selected ones an earlier attempt at it had changed."""

    number: int
    before: int = 0

    @property
    def after(self) -> str:
        """What there is to say of an act that goes on with an earlier attempt's; nothing of any other."""
        return f", after {self.before:,} by an earlier attempt" if self.before else ""


class DeadLetterService:
    """The dead letters in the database of operations. Lets the driver's errors out."""

    def __init__(self, database: Database, failpoint: Failpoint = nothing_fails) -> None:
        self._database = database
        self._failpoint = failpoint
        self._letters = LetterRecords(database)
        self._groups = GroupRecords(database)
        self._replays = ReplayRecords(database)

    async def prepare(self) -> None:
        """Create missing collections and indexes."""
        await schema.prepare(self._database, SCHEMA)

    # --- Reading. ---

    async def counts(self) -> dict[str, int]:
        """Count the letters by status."""
        return await self._letters.counts()

    async def count_decidable(self, filters: Filters) -> int:
        """Count the selected letters that can be discarded."""
        return await self._letters.count_decidable(filters)

    async def count_replayable(self, filters: Filters) -> int:
        """Count the selected letters that can be replayed."""
        return await self._letters.count_replayable(filters)

    async def foreign(self, filters: Filters, most: int = MOST_FOREIGN) -> list[Document]:
        """Return foreign letters of a selection that are open, the newest first; see `letter.is_foreign`."""
        return await self._letters.foreign(filters, most)

    async def page(
        self,
        filters: Filters,
        *,
        limit: int = 50,
        cursor: str | None = None,
        order: LetterOrder = LetterOrder.NEWEST,
    ) -> LetterPage:
        """Return a page of letters without big fields. Raises ValueError for a wrong cursor."""
        return await self._letters.page(filters, limit, cursor, order)

    async def letter(self, letter_id: str) -> Document | None:
        """Return a whole letter: `body` as it was received, `current` as a replay would send it."""
        return await self._letters.letter(letter_id)

    async def letter_for_page(self, letter_id: str) -> Document | None:
        """Return a letter as a page shows it: `body` is None over 1 MiB, `bodyText` its beginning."""
        return await self._letters.without_big_body(letter_id)

    async def resolve(self, prefix: str) -> str:
        """Return the id of the letter whose id begins with the prefix. Raises NotPossibleError unless there is one."""
        found = await self._letters.beginning_with(prefix)
        if prefix in found or len(found) == 1:
            return found[0]
        if found:
            raise NotPossibleError(f"several dead letters have ids that begin with {prefix}")
        raise NotPossibleError(f"there is no dead letter {prefix}")

    async def groups(
        self,
        *,
        status: str | None = None,
        open_only: bool = False,
        since: datetime | None = None,
        until: datetime | None = None,
        bins: int = 24,
        limit: int = 50,
    ) -> list[Group]:
        """Return the groups, newest failure first; see `group_page`."""
        filters = GroupFilters(status=status, open_only=open_only, since=since, until=until)
        return list((await self.group_page(filters, bins=bins, limit=limit)).items)

    async def group_page(
        self,
        filters: GroupFilters = ALL_GROUPS,
        *,
        order: GroupOrder = GroupOrder.NEWEST,
        bins: int = 24,
        limit: int = 50,
        skip: int = 0,
    ) -> GroupPage:
        """Return a page of the selected groups, without the first `skip`, and their total number.

        The times of the filters bound the histograms too.
        """
        return await self._groups.list(
            fingerprints=await self._groups.fingerprints(filters),
            open_only=filters.open_only,
            since=filters.since,
            until=filters.until,
            in_period=filters.in_period,
            bins=bins,
            order=order,
            limit=limit,
            skip=skip,
        )

    async def group(
        self, fingerprint: str, *, since: datetime | None = None, until: datetime | None = None, bins: int = 24
    ) -> Group | None:
        """Return one group, if it exists."""
        found = await self._groups.list(
            fingerprints=[fingerprint], open_only=False, since=since, until=until, bins=bins, limit=1
        )
        return found.items[0] if found.items else None

    async def replay(self, replay_id: str) -> Document | None:
        """Return the record of a replay: its `status`, and `published` of `total` letters."""
        return await self._replays.find(replay_id)

    async def replays(self, limit: int = 20, skip: int = 0) -> list[Document]:
        """Return the newest replays, without the first `skip`."""
        return await self._replays.newest(limit, skip)

    async def count_replays(self) -> int:
        """Count all replays."""
        return await self._replays.count()

    async def count(self, filters: Filters, most: int) -> int:
        """Count the selected letters of every status that the filters name, up to `most`."""
        return await self._letters.count(filters, most)

    async def outcome(self, replay_id: str) -> ReplayOutcome:
        """Count the outcomes of a replay's letters."""
        return await outcome_of(self._database, replay_id)

    async def outcomes(self, replay_ids: Iterable[str]) -> Mapping[str, ReplayOutcome]:
        """Count the outcomes of the letters of several replays."""
        return await outcomes_of(self._database, list(replay_ids))

    async def export(self, filters: Filters, *, masked: bool = True) -> AsyncIterator[dict[str, Any]]:
        """Yield each selected letter as a JSON document, with its body as text or in base64.

        Without `masked`, with its tokens and personal fields.
        """
        cursor = None
        while True:
            page = await self._letters.page(filters, EXPORT_PAGE, cursor)
            for listed in page.items:
                letter = await self._letters.letter(listed["_id"])
                if letter is not None:
                    yield letter_as_json(mask_letter(letter) if masked else letter)
            if (cursor := page.next_cursor) is None:
                return

    # --- Acting. ---

    async def set_group_status(self, fingerprint: str, status: str, *, by: str) -> None:
        """Set the status of a group. Raises ValueError for another status, NotPossibleError for an unknown group."""
        if not await self._groups.set_status(fingerprint, status, by):
            raise NotPossibleError(f"there is no group {fingerprint}")
        await self._log(by, "", "dead-letters.group", fingerprint, status)

    async def add_note(self, fingerprint: str, text: str, *, by: str) -> None:
        """Add a note to a group.

        Raises ValueError for an empty note, NotPossibleError if the group is unknown or has MOST_NOTES.
        """
        note = {"at": utc_now(), "by": by, "text": _checked(text, "note")}
        if not await self._groups.add_note(fingerprint, note):
            if await self.group(fingerprint) is None:
                raise NotPossibleError(f"there is no group {fingerprint}")
            raise NotPossibleError(f"group {fingerprint} already has {MOST_NOTES} notes, the maximum")
        await self._log(by, "", "dead-letters.note", fingerprint, "noted")

    async def start_replay(
        self,
        filters: Filters,
        *,
        by: str,
        why: str,
        rate: float = DEFAULT_RATE,
        careful: bool = False,
        replay_id: str | None = None,
    ) -> str:
        """Start a replay of the selected letters, at most `rate` per second; return its id.

        A careful one goes in steps, and stops by itself at the first letter that fails again. The operations process
        runs it, or any other process with a Replayer. With an id that a replay has already, start none. Raises
        NotPossibleError if none of the letters can be replayed, ValueError for a rate that is not positive.
        """
        if not rate > 0:
            raise ValueError(f"the rate is {rate}, and must be more than 0")
        if replay_id is not None and await self._replays.find(replay_id) is not None:
            return replay_id
        replay = await self._replays.start(filters, by=by, why=why, rate=rate, careful=careful, replay_id=replay_id)
        outcome = f"{replay['total']} to replay{', carefully' if replay['careful'] else ''}"
        await self._log(by, why, "dead-letters.replay", _subject(filters, replay["_id"]), outcome)
        return str(replay["_id"])

    async def edit_and_replay(
        self, letter_id: str, body: bytes, *, by: str, why: str, unlocked: Collection[str] = ()
    ) -> str:
        """Start a replay of one letter with another body, and keep the original; return the replay's id.

        The identities that are `unlocked`, by name, may change. Raises InvalidBodyError with the fields that are wrong,
        NotPossibleError if the letter cannot be replayed.
        """
        letter = await self._letters.letter(letter_id)
        if letter is None:
            raise NotPossibleError(f"there is no dead letter {letter_id}")
        if reason := why_not_replayable(letter):
            raise NotPossibleError(f"{letter_id} cannot be replayed: {reason}")
        if len(letter["edits"]) >= MOST_EDITS:
            raise NotPossibleError(f"{letter_id} has already been edited {MOST_EDITS} times, the maximum")
        edit = Edit(body, check_body(letter, body, unlocked))
        replay = await self._replays.start(Filters(ids=(letter_id,)), by=by, why=why, rate=DEFAULT_RATE, edit=edit)
        moved = "".join(f", {name} {old} → {new}" for name, (old, new) in edit.identities.items())
        await self._log(by, why, "dead-letters.edit", letter_id, f"replayed with {len(body)} bytes{moved}")
        return str(replay["_id"])

    async def start_edit(
        self,
        filters: Filters,
        patch: Patch,
        *,
        by: str,
        why: str,
        rate: float = DEFAULT_RATE,
        careful: bool = True,
        replay_id: str | None = None,
    ) -> str:
        """Start a replay that edits each of the selected letters with a patch; return its id.

        Letters that the patch leaves as they are stay dead. With an id that a replay has already, start none. Raises
        what `start_replay` raises.
        """
        if not rate > 0:
            raise ValueError(f"the rate is {rate}, and must be more than 0")
        reason, replay_id = _checked(why, "reason"), replay_id or new_id()
        if await self._replays.find(replay_id) is not None:
            return replay_id
        logged = by, reason, "dead-letters.edit", _subject(filters, replay_id)
        if await self.count_replayable(filters):
            await self._log(*logged, STARTED)
        replay = await self._replays.start(
            filters, by=by, why=reason, rate=rate, careful=careful, patch=patch, replay_id=replay_id
        )
        unlocked = f", {' and '.join(patch.unlocked)} unlocked" if patch.unlocked else ""
        await self._log(*logged, f"replay {replay_id}: up to {replay['total']} to edit and replay{unlocked}")
        return replay_id

    async def cancel_replay(self, replay_id: str, *, by: str) -> bool:
        """Stop a replay early; return False if it has ended already. Published letters stay published."""
        cancelled = await self._replays.cancel(replay_id)
        if cancelled:
            await self._log(by, "", "dead-letters.cancel", replay_id, "stopped")
        return cancelled

    async def discard(self, filters: Filters, *, by: str, why: str) -> Decided:
        """Set letters aside, with the status discarded; return how many. Raises ValueError without a reason.

        Interrupted, it has done it for some letters; once more, it goes on with the others.
        """
        return await self._decide("discard", "discarded", self._letters.discard, filters, by, why)

    async def restore(self, filters: Filters, *, by: str, why: str) -> Decided:
        """Take discarded letters back, so that they wait for a decision again; return how many.

        Their groups are new again if they were resolved. Raises ValueError without a reason. Interrupted, it has done
        it for some letters, like `discard`.
        """

        async def take_back(selected: Filters, restored: Document) -> int:
            # The groups first: once a letter is taken back, an interrupted act would not find its group any more.
            await self._groups.reopen(restorable(selected), restored["at"])
            self._failpoint(GROUPS_REOPENED)
            return await self._letters.restore(selected, restored)

        return await self._decide("restore", "restored", take_back, filters, by, why)

    async def _decide(
        self,
        action: str,
        participle: str,
        decide: Callable[[Filters, Document], Awaitable[int]],
        filters: Filters,
        by: str,
        why: str,
    ) -> Decided:
        """Change the status of letters, and log it before and after: an interrupted act is logged too.

        Who repeats an act selects what failed until then, which is another time than before. So that is no part of the
        subject, by which attempts are recognised, but of the outcome.
        """
        reason = _checked(why, "reason")
        logged = by, reason, f"dead-letters.{action}", _subject(replace(filters, until=None), "")
        since = await interrupted_since(self._database, *logged)
        await self._log(*logged, STARTED)
        self._failpoint(LETTERS_CHOSEN)
        # Before it goes on: what is counted here is not counted twice.
        before = 0 if since is None else await self._letters.count_decided(filters, participle, by, reason, since)
        number = await decide(filters, {"at": utc_now(), "by": by, "why": reason})
        self._failpoint(LETTERS_DECIDED)
        decided = Decided(number, before)
        bound = "" if filters.until is None else f" of those that failed before {filters.until:%Y-%m-%d %H:%M:%S} UTC"
        await self._log(*logged, f"{number} {participle}{bound}{decided.after}")
        return decided

    async def _log(self, by: str, why: str, action: str, subject: str, outcome: str) -> None:
        await record_action(self._database, by=by, why=why, action=action, subject=subject, outcome=outcome)


def _checked(text: str, what: str) -> str:
    stripped = text.strip()
    if not stripped or len(stripped) > LONGEST_NOTE:
        raise ValueError(f"the {what} has {len(stripped)} characters, and must have 1 to {LONGEST_NOTE}")
    return stripped


def _subject(filters: Filters, otherwise: str) -> str:
    """Name the one letter or group that is selected, else describe the selection, for the log of actions."""
    if len(filters.ids) == 1:
        return filters.ids[0]
    return filters.group or otherwise or filters.subject
