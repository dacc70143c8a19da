"""The outcome of a replay: sent is not handled, because a message may fail again for the same reason."""

from dataclasses import dataclass
from typing import Any

from operations.dead_letters.schema import LETTERS
from operations.dead_letters.status import DEAD, HANDLED, PENDING, STATUSES
from shared.database import Database, Document, aggregate


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
        return f"{self.handled:,} handled, {self.failed:,} failed again, {self.unknown:,} pending"

    def as_json(self) -> dict[str, int]:
        """Return the numbers as JSON documents show them."""
        return {"handled": self.handled, "failedAgain": self.failed, "unknown": self.unknown}


async def outcome_of(database: Database, replay_id: str) -> ReplayOutcome:
    """Count the outcomes of a replay in the database of operations. Lets the driver's errors out.

    A letter records the outcome of each of its replays: handled once a consumer has reported it, dead if the message
    came back as a dead letter or could not be sent.
    """
    pipeline: list[Document] = [
        # Every status is named because the index begins with the status.
        {"$match": {"status": {"$in": list(STATUSES)}, "replays.replay": replay_id}},
        {"$project": {"replays.replay": True, "replays.outcome": True}},
        {"$unwind": "$replays"},
        {"$match": {"replays.replay": replay_id}},
        {"$group": {"_id": "$replays.outcome", "number": {"$sum": 1}}},
    ]
    found: dict[str, Any] = {group["_id"]: group["number"] async for group in aggregate(database[LETTERS], pipeline)}
    return ReplayOutcome(found.get(HANDLED, 0), found.get(DEAD, 0), found.get(PENDING, 0))
