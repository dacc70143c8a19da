"""The dead letters of a stack of which the command reaches the console alone."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from http import HTTPStatus
from typing import Any

from operations.approvals.policy import DISCARD, EDIT, REPLAY
from operations.commands.approval import say_that_it_waits
from operations.commands.dead_letters.desk import Act, BodyPreview, Concern, Listed
from operations.commands.remote.api import (
    POLL_SECONDS,
    ById,
    InvalidRequestError,
    OperationsApi,
    RefusedError,
)
from operations.dead_letters.difference import Change
from operations.dead_letters.edit_previewing import EditPreview, edit_preview_from_json
from operations.dead_letters.editing import InvalidBodyError
from operations.dead_letters.filters import Filters
from operations.dead_letters.group_filters import GroupFilters
from operations.dead_letters.groups import group_from_json
from operations.dead_letters.letter_json import from_json, letter_as_json, letter_from_json
from operations.dead_letters.masking import mask_letter
from operations.dead_letters.outcome import ReplayOutcome, outcome_from_json
from operations.dead_letters.patching import Patch
from operations.dead_letters.previewing import SelectionPreview, selection_preview_from_json
from operations.dead_letters.records import LetterPage
from operations.dead_letters.replaying import Progress
from operations.dead_letters.replays import UNFINISHED, NotPossibleError
from operations.dead_letters.service import Decided
from operations.impact.impact import Impact, impact_from_json
from operations.impact.of_letters import Concerned
from operations.impact.ranking import RankedGroup, RankedPage, Sorting
from operations.settings import RemoteStack
from shared.clock import to_rfc3339_if_any
from shared.cursors import MAX_LIMIT, write_cursor
from shared.database import Document

_IMPOSSIBLE = (HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT)
"""The statuses of answers that say what is not possible."""

BY_ID = ById("id", "id", "lastFailedAt")

_ASKING = {"reason": "only asks", "dryRun": True}


class RemoteDesk:
    """A `LetterDesk` over the operations API."""

    def __init__(self, api: OperationsApi) -> None:
        self._api = api

    @property
    def stack(self) -> RemoteStack:
        """The stack."""
        return self._api.stack

    async def resolve(self, filters: Filters) -> Filters:
        """See `LetterDesk`."""
        found: list[str] = []
        for start in range(0, len(filters.ids), MAX_LIMIT):
            asked = filters.ids[start : start + MAX_LIMIT]
            page = await self._ask("GET", "dead-letters", id=list(asked), limit=len(asked))
            ids = [letter["id"] for letter in page["items"]]
            found += [next(each for each in ids if each.startswith(prefix)) for prefix in asked]
        return replace(filters, ids=tuple(found))

    async def freeze(self, filters: Filters) -> Filters:
        """See `LetterDesk`: by the clock of the console."""
        selection = await self.resolve(filters)
        if selection.ids:
            return selection
        asked = _ASKING | {"letters": _selection(selection)}
        until = (await self._ask("POST", "replays", body=asked, only_asks=True))["until"]
        return replace(selection, until=datetime.fromisoformat(until))

    async def page(self, filters: Filters, *, limit: int, cursor: str | None) -> Listed:
        """See `LetterDesk`."""
        found = await self._list(filters, limit=limit, cursor=cursor)
        letters = [letter_from_json(each) for each in found["items"]]
        return Listed(LetterPage(letters, found["nextCursor"]), found["total"])

    async def letter(self, letter_id: str) -> Document:
        """See `LetterDesk`."""
        (whole,) = (await self.resolve(Filters(ids=(letter_id,)))).ids
        return letter_from_json(await self._ask("GET", "dead-letters", whole))

    async def impact(self, letter: Document) -> Impact:
        """See `LetterDesk`."""
        return impact_from_json((await self._ask("GET", "dead-letter-groups", letter["fingerprint"]))["impact"])

    async def export(self, filters: Filters, *, masked: bool) -> AsyncIterator[dict[str, Any]]:
        """See `LetterDesk`."""
        cursor = None
        while True:
            page = await self._list(filters, limit=MAX_LIMIT, cursor=cursor)
            for listed in page["items"]:
                letter = await self._ask("GET", "dead-letters", listed["id"])
                yield letter_as_json(mask_letter(letter_from_json(letter))) if masked else letter
            if (cursor := page["nextCursor"]) is None:
                return

    async def groups(self, filters: GroupFilters, *, by: Sorting, limit: int, skip: int) -> RankedPage:
        """See `LetterDesk`."""
        found = await self._api.pages(
            "dead-letter-groups",
            limit=limit,
            cursor=write_cursor([skip]) if skip else None,
            status=filters.status,
            open=filters.open_only,
            service=filters.service,
            inbox=filters.queue,
            cause=filters.cause,
            productId=filters.product,
            since=to_rfc3339_if_any(filters.since),
            until=to_rfc3339_if_any(filters.until),
            sort=by.value,
        )
        groups = [
            RankedGroup(group_from_json(from_json(each)), impact_from_json(each["impact"])) for each in found["items"]
        ]
        return RankedPage(groups, found["total"], found["allCompared"], found["allCounted"])

    async def preview(self, filters: Filters, body: bytes | None) -> SelectionPreview:
        """See `LetterDesk`."""
        asked: dict[str, Any] = {"letters": _selection(filters)}
        asked |= {} if body is None else {"body": _text(body)}
        with_errors = body is not None
        return selection_preview_from_json(
            await self._ask("POST", "dead-letters", "preview", body=asked, only_asks=True, about_body=with_errors)
        )

    async def preview_patch(self, filters: Filters, patch: Patch, samples: int) -> EditPreview:
        """See `LetterDesk`."""
        asked = _ASKING | _patched(filters, patch) | {"samples": samples, "masked": True}
        return edit_preview_from_json(await self._ask("POST", "dead-letters", "edit", body=asked, only_asks=True))

    async def preview_body(self, letter: str, body: bytes, unlocked: Sequence[str]) -> BodyPreview:
        """See `LetterDesk`."""
        asked = _ASKING | {"body": _text(body), "unlock": list(unlocked)}
        found = await self._ask("POST", "dead-letters", letter, "edit", body=asked, only_asks=True, about_body=True)
        return BodyPreview([Change(**each) for each in found["changes"]], found["identities"])

    async def concern(self, act: Act, filters: Filters) -> Concern:
        """See `LetterDesk`."""
        asked = _ASKING | {"letters": _selection(filters)}
        found = await self._ask("POST", *_address(act), body=asked, only_asks=True)
        about = Concerned(found["letters"], impact_from_json(found["impact"]))
        return Concern(about, {each["id"]: each["why"] for each in found["foreign"]})

    async def needs_reason(self, filters: Filters) -> bool:  # noqa: ARG002 - the API wants one for all
        """See `LetterDesk`."""
        return True

    async def replay(self, filters: Filters, *, why: str, rate: float, careful: bool) -> str:
        """See `LetterDesk`."""
        asked = {"letters": _selection(filters), "reason": why, "rate": rate, "careful": careful}
        return str(self._started(await self._ask("POST", "replays", body=asked), REPLAY)["id"])

    async def edit(self, filters: Filters, patch: Patch, *, why: str, rate: float, careful: bool) -> str:
        """See `LetterDesk`."""
        asked = _patched(filters, patch) | {"reason": why, "rate": rate, "careful": careful}
        return str(self._started(await self._ask("POST", "dead-letters", "edit", body=asked), EDIT)["id"])

    async def edit_one(self, letter: str, body: bytes, *, why: str, unlocked: Sequence[str]) -> str:
        """See `LetterDesk`."""
        asked = {"body": _text(body), "reason": why, "unlock": list(unlocked)}
        return str((await self._ask("POST", "dead-letters", letter, "edit", body=asked, about_body=True))["id"])

    async def decide(self, act: Act, filters: Filters, *, why: str) -> Decided:
        """See `LetterDesk`."""
        asked = {"letters": _selection(filters), "reason": why}
        done = self._started(await self._ask("POST", *_address(act), body=asked), DISCARD)
        return Decided(done["discarded" if act == "discard" else "restored"], done["before"])

    async def abandoned(self) -> list[str]:
        """See `LetterDesk`: none, because the console continues each replay."""
        return []

    async def find_replay(self, replay_id: str) -> Document | None:
        """See `LetterDesk`."""
        try:
            return _replay(await self._api.get("replays", replay_id))
        except RefusedError as error:
            if error.status != HTTPStatus.NOT_FOUND:
                raise
            return None

    async def follow(self, replay_id: str, on_progress: Progress) -> Document:
        """See `LetterDesk`."""
        while True:
            replay = _replay(await self._ask("GET", "replays", replay_id))
            on_progress(replay)
            if replay["status"] not in UNFINISHED:
                return replay
            await asyncio.sleep(POLL_SECONDS)

    async def outcome(self, replay_id: str) -> ReplayOutcome:
        """See `LetterDesk`."""
        return outcome_from_json(await self._ask("GET", "replays", replay_id))

    async def await_outcome(
        self, replay_id: str, within: float, on_progress: Callable[[ReplayOutcome], None]
    ) -> ReplayOutcome:
        """See `LetterDesk`."""
        deadline = time.monotonic() + within
        while True:
            outcome = await self.outcome(replay_id)
            on_progress(outcome)
            if not outcome.unknown or time.monotonic() > deadline:
                return outcome
            await asyncio.sleep(POLL_SECONDS)

    async def _list(self, filters: Filters, *, limit: int, cursor: str | None) -> dict[str, Any]:
        asked = _query(filters)
        return await self._api.pages_by_id("dead-letters", filters.ids, BY_ID, limit=limit, cursor=cursor, **asked)

    async def _ask(
        self,
        method: str,
        *steps: str,
        body: Mapping[str, Any] | None = None,
        only_asks: bool = False,
        about_body: bool = False,
        **parameters: Any,
    ) -> Any:
        """Return an answer. Raises NotPossibleError for a conflict or what does not exist, InvalidBodyError."""
        try:
            if method == "GET":
                return await self._api.get(*steps, **parameters)
            return await self._api.post(*steps, body=body, only_asks=only_asks)
        except InvalidRequestError as error:
            if about_body and not any(field in ("reason", "unlock") for field, _ in error.errors):
                raise InvalidBodyError(error.errors) from None
            raise
        except RefusedError as error:
            if error.status in _IMPOSSIBLE:
                raise NotPossibleError(str(error)) from None
            raise

    def _started(self, answer: dict[str, Any], action: str) -> dict[str, Any]:
        """Return the answer to an act that was done; end the command if it waits for a second person."""
        if answer.get("outcome") == "waiting":
            say_that_it_waits(action, answer["approval"], "the owner of this key", self._api.stack.url)
        return answer


def _address(act: Act) -> tuple[str, ...]:
    return ("replays",) if act == "replay" else ("dead-letters", act)


def _query(filters: Filters) -> dict[str, Any]:
    """Return the parameters of a list of these letters, without their ids."""
    return (
        {"status": list(filters.status)}
        | _fields(filters)
        | {
            "replay": filters.replay,
            "outcome": filters.outcome,
        }
    )


def _selection(filters: Filters) -> dict[str, Any]:
    """Return the selection in a body."""
    if filters.ids:
        return {"ids": list(filters.ids)}
    return {name: value for name, value in _fields(filters).items() if value is not None} or {"all": True}


def _fields(filters: Filters) -> dict[str, Any]:
    return {
        "service": filters.service,
        "error": filters.error,
        "type": filters.type,
        "orderId": filters.order_id,
        "group": filters.group,
        "text": filters.text,
        "since": to_rfc3339_if_any(filters.since),
        "until": to_rfc3339_if_any(filters.until),
    }


def _patched(filters: Filters, patch: Patch) -> dict[str, Any]:
    return {"letters": _selection(filters), "patch": patch.text, "unlock": list(patch.unlocked)}


def _text(body: bytes) -> str:
    try:
        return body.decode()
    except UnicodeDecodeError:
        raise InvalidBodyError([("body", "is not text in UTF-8")]) from None


def _replay(document: dict[str, Any]) -> Document:
    """Return the record of a replay, with what is known of it from outside."""
    replay: Document = from_json(document)
    replay["_id"] = replay.pop("id")
    if (left := replay.pop("leftOut", None)) is not None:
        replay["left"] = left
    return replay
