"""The outcome of a replay: sent is not handled, because a message may fail again for the same reason."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, NamedTuple

from operations.dead_letters.replays import CUT_SHORT, UNFINISHED
from operations.dead_letters.schema import LETTERS
from operations.dead_letters.status import DEAD, HANDLED, PENDING, STATUSES
from shared.database import Collection, Database, Document, aggregate


class Verdict(StrEnum):
    """What a replay has come to, in one word for operators."""

    FAILED = "failed again"
    RUNNING = "running"
    UNKNOWN = "not known yet"
    STOPPED = "stopped"
    HANDLED = "handled"
    NOTHING = "nothing sent"


@dataclass(frozen=True, slots=True)
class ReplayOutcome:
    """The number of letters of a replay that were handled, failed again, or have no known outcome yet.

    `unknown` counts letters that are sent or claimed, not those that a running replay has yet to reach.
    """

    handled: int = 0
    failed: int = 0
    unknown: int = 0

    def in_words(self) -> str:
        """Write the three numbers in one line."""
        return f"{self.handled:,} handled, {self.failed:,} failed again, {self.unknown:,} not known yet"

    def in_brief(self) -> str:
        """Write what there is, the worst first."""
        counts = {"failed again": self.failed, "not known yet": self.unknown, "handled": self.handled}
        return ", ".join(f"{number:,} {what}" for what, number in counts.items() if number) or "nothing sent"

    def as_json(self) -> dict[str, int]:
        """Return the numbers as JSON documents show them."""
        return {"handled": self.handled, "failedAgain": self.failed, "unknown": self.unknown}

    def verdict(self, replay: Document) -> Verdict:
        """Judge a replay by the outcome of its letters: one that failed outweighs all others."""
        if self.failed:
            return Verdict.FAILED
        if replay["status"] in UNFINISHED:
            return Verdict.RUNNING
        if self.unknown:
            return Verdict.UNKNOWN
        if replay["status"] in CUT_SHORT:
            return Verdict.STOPPED
        return Verdict.HANDLED if self.handled else Verdict.NOTHING


def outcome_from_json(document: Mapping[str, Any]) -> ReplayOutcome:
    """Return the numbers that a JSON document shows."""
    return ReplayOutcome(document["handled"], document["failedAgain"], document["unknown"])


class GroupReplay(NamedTuple):
    """A replay of letters of a group, and what became of those letters, whichever group they are in now."""

    replay: str
    by: str
    at: datetime
    outcome: ReplayOutcome

    def as_json(self) -> dict[str, Any]:
        """Return the replay as a JSON document shows it, with its time as a datetime."""
        return {"replay": self.replay, "by": self.by, "at": self.at} | self.outcome.as_json()


async def outcome_of(database: Database, replay_id: str) -> ReplayOutcome:
    """Count the outcomes of a replay in the database of operations. Lets the driver's errors out.

    A letter records the outcome of each of its replays: handled once a consumer has reported it, dead if the message
    came back as a dead letter or could not be sent.
    """
    return (await outcomes_of(database, [replay_id]))[replay_id]


async def outcomes_of(database: Database, replay_ids: Iterable[str]) -> Mapping[str, ReplayOutcome]:
    """Count the outcomes of several replays; one without letters has none. Lets the driver's errors out."""
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for (replay_id, _), outcomes in (await _counted(database[LETTERS], replay_ids)).items():
        found[replay_id].update(outcomes)
    return {replay_id: _outcome(found[replay_id]) for replay_id in replay_ids}


async def outcomes_by_group(letters: Collection, replay_ids: Iterable[str]) -> Mapping[tuple[str, str], ReplayOutcome]:
    """Count the outcomes of replays by replay and by the group that a letter was in when it was replayed."""
    return {key: _outcome(outcomes) for key, outcomes in (await _counted(letters, replay_ids)).items()}


async def _counted(letters: Collection, replay_ids: Iterable[str]) -> dict[tuple[str, str], Counter[str]]:
    """Count letters by replay and group, then by their recorded outcome."""
    among = {"$in": list(replay_ids)}
    if not among["$in"]:
        return {}
    own = {"$filter": {"input": "$replays", "cond": {"$in": ["$$this.replay", among["$in"]]}}}
    fields = {name: f"$replays.{name}" for name in ("replay", "group", "outcome")}
    pipeline: list[Document] = [
        # Every status is named because the index begins with the status.
        {"$match": {"status": {"$in": list(STATUSES)}, "replays.replay": among}},
        {"$project": {"replays": own}},
        {"$unwind": "$replays"},
        {"$group": {"_id": fields, "number": {"$sum": 1}}},
    ]
    found: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    async for counted in aggregate(letters, pipeline):
        of = counted["_id"]
        found[of["replay"], of.get("group", "")][of["outcome"]] += counted["number"]
    return found


def _outcome(counted: Mapping[str, int]) -> ReplayOutcome:
    return ReplayOutcome(counted.get(HANDLED, 0), counted.get(DEAD, 0), counted.get(PENDING, 0))
