"""What an operator can ask about dead letters and do with them: the one way in for the command line and the console."""

import base64
from collections.abc import AsyncIterator, Mapping
from datetime import datetime
from typing import Any

from bson import Int64

from operations.actions import record_action
from operations.dead_letters.editing import MOST_EDITS, InvalidBodyError, check_body
from operations.dead_letters.filters import Filters
from operations.dead_letters.groups import MOST_NOTES, Group, GroupPage, GroupRecords
from operations.dead_letters.letter import why_not_replayable
from operations.dead_letters.outcome import Outcome, outcome_of
from operations.dead_letters.records import SCHEMA, LetterRecords, Page, decidable
from operations.dead_letters.replaying import DEFAULT_RATE, NotPossibleError, Replays
from shared import schema
from shared.clock import to_rfc3339, utc_now
from shared.database import Database, Document

EXPORTED_AT_ONCE = 100

LONGEST_NOTE = 2000
"""Characters of a note or a reason."""


class DeadLetterService:
    """The dead letters in the database of operations. Drivers' errors come out as they are."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._letters = LetterRecords(database)
        self._groups = GroupRecords(database)
        self._replays = Replays(database)

    async def prepare(self) -> None:
        """Make the collections and indexes that are missing."""
        await schema.prepare(self._database, SCHEMA)

    # --- Looking. ---

    async def counts(self) -> dict[str, int]:
        """How many letters there are, by status."""
        return await self._letters.counts()

    async def page(self, filters: Filters, *, limit: int = 50, cursor: str | None = None) -> Page:
        """A page of letters, newest failure first, without what is big. Raises ValueError for a wrong cursor."""
        return await self._letters.page(filters, limit, cursor)

    async def letter(self, letter_id: str) -> Document | None:
        """All of a letter; `body` is what came, `current` what a replay would send."""
        return await self._letters.letter(letter_id)

    async def letter_for_page(self, letter_id: str) -> Document | None:
        """A letter as a page shows it: `body` is None where it is over 1 MiB, `bodyText` its beginning."""
        return await self._letters.without_big_body(letter_id)

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
        """The groups, newest failure first; see `group_page`."""
        page = await self.group_page(
            status=status, open_only=open_only, since=since, until=until, bins=bins, limit=limit
        )
        return list(page.items)

    async def group_page(
        self,
        *,
        status: str | None = None,
        open_only: bool = False,
        since: datetime | None = None,
        until: datetime | None = None,
        bins: int = 24,
        limit: int = 50,
        skip: int = 0,
    ) -> GroupPage:
        """Some of the groups, newest failure first, and how many there are.

        `since` and `until` bound their histograms alone; the first `skip` are left out.
        """
        fingerprints = None if status is None else await self._groups.fingerprints(status)
        return await self._groups.list(
            fingerprints=fingerprints, open_only=open_only, since=since, until=until, bins=bins, limit=limit, skip=skip
        )

    async def group(
        self, fingerprint: str, *, since: datetime | None = None, until: datetime | None = None, bins: int = 24
    ) -> Group | None:
        """One group, or None."""
        found = await self._groups.list(
            fingerprints=[fingerprint], open_only=False, since=since, until=until, bins=bins, limit=1
        )
        return found.items[0] if found.items else None

    async def replay(self, replay_id: str) -> Document | None:
        """How far a replay has come: `published` of `total`, and its `status`."""
        return await self._replays.find(replay_id)

    async def outcome(self, replay_id: str) -> Outcome:
        """What became of the letters of a replay, as far as it is known."""
        return await outcome_of(self._database, replay_id)

    async def replays(self, limit: int = 20) -> list[Document]:
        """The newest replays."""
        return await self._replays.newest(limit)

    async def resolve(self, beginning: str) -> str:
        """The id of the one letter whose id begins so. Raises NotPossibleError if there is none, or more than one."""
        found = await self._letters.beginning_with(beginning)
        if beginning in found or len(found) == 1:
            return found[0]
        there = "are several dead letters whose ids begin with" if found else "is no dead letter"
        raise NotPossibleError(f"there {there} {beginning}")

    # --- Deciding. ---

    async def set_group_status(self, fingerprint: str, status: str, *, by: str) -> None:
        """Say how far somebody has come with a group. Raises ValueError, NotPossibleError if there is no such group."""
        if not await self._groups.set_status(fingerprint, status, by):
            raise NotPossibleError(f"there is no group {fingerprint}")
        await self._log(by, "", "dead-letters.group", fingerprint, status)

    async def add_note(self, fingerprint: str, text: str, *, by: str) -> None:
        """Add a note to a group.

        Raises ValueError for an empty one, NotPossibleError if there is no such group or it has MOST_NOTES.
        """
        note = {"at": utc_now(), "by": by, "text": _told(text, "note")}
        if not await self._groups.add_note(fingerprint, note):
            if await self.group(fingerprint) is None:
                raise NotPossibleError(f"there is no group {fingerprint}")
            raise NotPossibleError(f"group {fingerprint} has {MOST_NOTES} notes, which is the most")
        await self._log(by, "", "dead-letters.note", fingerprint, "noted")

    async def start_replay(self, filters: Filters, *, by: str, why: str, rate: float = DEFAULT_RATE) -> str:
        """Have letters replayed, at most `rate` a second; returns the replay's id.

        The operations process carries it out, or whoever holds a Replayer. Raises NotPossibleError if there is none
        that can be replayed, ValueError for a rate that is not positive.
        """
        if not rate > 0:
            raise ValueError(f"the rate is {rate}, and must be more than 0")
        replay = await self._replays.start(filters, by=by, why=why, rate=rate)
        await self._log(
            by, why, "dead-letters.replay", _subject(filters, replay["_id"]), f"{replay['total']} to replay"
        )
        return str(replay["_id"])

    async def edit_and_replay(self, letter_id: str, body: bytes, *, by: str, why: str) -> str:
        """Have a letter replayed with another body, the one that came is kept; returns the replay's id.

        Raises InvalidBodyError, which names the fields, and NotPossibleError if the letter is not there or not dead.
        """
        letter = await self._letters.letter(letter_id)
        if letter is None:
            raise NotPossibleError(f"there is no dead letter {letter_id}")
        if reason := why_not_replayable(letter):
            raise NotPossibleError(f"{letter_id} cannot be replayed: {reason}")
        if len(letter["edits"]) >= MOST_EDITS:
            raise NotPossibleError(f"{letter_id} has been edited {MOST_EDITS} times, which is the most")
        check_body(letter, body)
        replay = await self._replays.start(Filters(ids=(letter_id,)), by=by, why=why, rate=DEFAULT_RATE, edited=body)
        await self._log(by, why, "dead-letters.edit", letter_id, f"replayed with {len(body)} bytes")
        return str(replay["_id"])

    async def discard(self, filters: Filters, *, by: str, why: str) -> int:
        """Put letters aside for good; they are kept, and shown with the status discarded. Returns how many.

        Raises ValueError without a reason.
        """
        discarded = {"at": utc_now(), "by": by, "why": _told(why, "reason")}
        number = await self._letters.discard(filters, discarded)
        await self._log(by, why, "dead-letters.discard", _subject(filters, ""), f"{number} discarded")
        return number

    async def cancel_replay(self, replay_id: str, *, by: str) -> bool:
        """Have a replay end early; False if it has ended already. What is published stays published."""
        cancelled = await self._replays.cancel(replay_id)
        if cancelled:
            await self._log(by, "", "dead-letters.cancel", replay_id, "no more is replayed")
        return cancelled

    # --- Taking away. ---

    async def export(self, filters: Filters) -> AsyncIterator[dict[str, Any]]:
        """Each letter as a JSON document, with its body as text where it is text, else in base64."""
        cursor = None
        while True:
            page = await self._letters.page(filters, EXPORTED_AT_ONCE, cursor)
            for listed in page.items:
                letter = await self._letters.letter(listed["_id"])
                if letter is not None:
                    yield letter_as_json(letter)
            if (cursor := page.next_cursor) is None:
                return

    async def matching(self, filters: Filters) -> int:
        """How many of these letters can be replayed or discarded."""
        return await self._letters.count(filters, decidable(filters))

    async def _log(self, by: str, why: str, action: str, subject: str, outcome: str) -> None:
        await record_action(self._database, by=by, why=why, action=action, subject=subject, outcome=outcome)


def letter_as_json(letter: Document) -> dict[str, Any]:
    """A letter as a JSON document: times as text, what is no text in base64."""
    shown = {name: value for name, value in letter.items() if name not in _INTERNAL}
    shown = {"id" if name == "_id" else name: as_json(value) for name, value in shown.items()}
    if "body" in letter:
        shown |= _body_as_json(letter["body"])
    if "edits" in letter:
        shown["edits"] = [
            {name: as_json(value) for name, value in edit.items() if name != "body"}
            | (_body_as_json(edit["body"]) if "body" in edit else {})
            for edit in letter["edits"]
        ]
    return shown


_INTERNAL = frozenset(
    {
        "body",
        "bodyText",
        "current",
        "edits",
        "words",
        "changes",
        "lastReplay",
        "claimedBy",
        "nameless",
        "unacknowledged",
    }
)


def _body_as_json(body: bytes) -> dict[str, str]:
    try:
        return {"body": bytes(body).decode()}
    except UnicodeDecodeError:
        return {"bodyBase64": base64.b64encode(body).decode()}


def as_json(value: Any) -> Any:
    """A value of a record as JSON can have it: times as text, bytes in base64."""
    match value:
        case datetime():
            return to_rfc3339(value)
        case bytes():
            return {"base64": base64.b64encode(value).decode()}
        case Mapping():
            return {str(name): as_json(item) for name, item in value.items()}
        case list() | tuple():
            return [as_json(item) for item in value]
        case Int64():
            return int(value)
    return value


def _told(text: str, what: str) -> str:
    said = text.strip()
    if not said or len(said) > LONGEST_NOTE:
        raise ValueError(f"the {what} has {len(said)} characters, and must have 1 to {LONGEST_NOTE}")
    return said


def _subject(filters: Filters, otherwise: str) -> str:
    """What the log names: the one letter or group that is meant, else what was asked for."""
    if len(filters.ids) == 1:
        return filters.ids[0]
    return filters.group or otherwise or filters.in_words()[:200]


__all__ = [
    "DeadLetterService",
    "Filters",
    "Group",
    "GroupPage",
    "InvalidBodyError",
    "NotPossibleError",
    "Page",
    "letter_as_json",
]
