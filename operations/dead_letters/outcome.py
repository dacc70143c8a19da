"""What became of a replay: sent is not handled, as a message may die again of the same cause."""

from dataclasses import dataclass
from typing import Any

from operations.dead_letters.records import LETTERS
from operations.dead_letters.status import DEAD, HANDLED, PENDING, STATUSES
from shared.database import Database, Document, aggregate


@dataclass(frozen=True, slots=True)
class Outcome:
    """How many letters of a replay were handled, failed again, and are not known about yet.

    `unknown` counts what is sent or claimed, and not what a replay under way has not reached.
    """

    handled: int = 0
    failed: int = 0
    unknown: int = 0

    def in_words(self) -> str:
        """Say all three numbers in a line."""
        return f"{self.handled:,} handled, {self.failed:,} failed again, {self.unknown:,} not known yet"

    def as_json(self) -> dict[str, int]:
        """Return the numbers as JSON documents name them."""
        return {"handled": self.handled, "failedAgain": self.failed, "unknown": self.unknown}


async def outcome_of(database: Database, replay_id: str) -> Outcome:
    """Count from the letters what became of a replay; `database` is that of operations. Lets the driver's errors out.

    A letter says what became of each of its replays: handled when a consumer has said so, dead when the message came
    back as a dead letter or could not be sent.
    """
    pipeline: list[Document] = [
        # All statuses are named for the index, which begins with them.
        {"$match": {"status": {"$in": list(STATUSES)}, "replays.replay": replay_id}},
        {"$project": {"replays.replay": True, "replays.outcome": True}},
        {"$unwind": "$replays"},
        {"$match": {"replays.replay": replay_id}},
        {"$group": {"_id": "$replays.outcome", "number": {"$sum": 1}}},
    ]
    found: dict[str, Any] = {group["_id"]: group["number"] async for group in aggregate(database[LETTERS], pipeline)}
    return Outcome(found.get(HANDLED, 0), found.get(DEAD, 0), found.get(PENDING, 0))
