"""Keeps samples, each minute once over all processes.

Where the samples end, the orders that were open there, and the samples themselves are one write, guarded by the former
end: of several processes that count the same minute, one makes it. The samples are then copied to their collection; if
the process ends in between, the next one copies them again under the same ids.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

from pymongo import ReplaceOne
from pymongo.errors import DuplicateKeyError

from operations.samples.sample import Sample, sample_of
from operations.samples.schema import SAMPLES, STATE
from shared.database import Database, Document
from shared.failpoints import SAMPLES_STORED, Failpoint, nothing_fails

_ID = "orders"


@dataclass(frozen=True, slots=True)
class SampleState:
    """Where the samples end, the orders that were open there, and the newest samples, which may not be copied yet.

    Until `incomplete_until`, orders have ended that are not among the open ones: nobody followed them there.
    """

    until: datetime
    open: Sequence[str]
    newest: Sequence[Document] = field(default_factory=list)
    incomplete_until: datetime | None = None


class SampleRecords:
    """The operations on the records; methods let the driver's errors out."""

    def __init__(self, database: Database, failpoint: Failpoint = nothing_fails) -> None:
        self._samples = database[SAMPLES]
        self._state = database[STATE]
        self._failpoint = failpoint

    async def state(self) -> SampleState | None:
        """Return where the samples end, None before the first one."""
        found = await self._state.find_one({"_id": _ID})
        if found is None:
            return None
        return SampleState(found["until"], found["open"], found["newest"], found.get("incompleteUntil"))

    async def move_on(self, before: SampleState | None, after: SampleState) -> bool:
        """Store the next samples; False if another process did so before."""
        fields = {"until": after.until, "open": list(after.open), "newest": list(after.newest)}
        fields["incompleteUntil"] = after.incomplete_until
        if before is None:
            try:
                await self._state.insert_one({"_id": _ID, **fields})
            except DuplicateKeyError:
                return False
        elif not (await self._state.update_one({"_id": _ID, "until": before.until}, {"$set": fields})).matched_count:
            return False
        self._failpoint(SAMPLES_STORED)
        await self.copy(after)
        return True

    async def copy(self, state: SampleState) -> None:
        """Copy the newest samples to their collection."""
        writes = [ReplaceOne({"_id": each["_id"]}, each, upsert=True) for each in state.newest]
        if writes:
            await self._samples.bulk_write(writes, ordered=False)

    async def since(self, at: datetime) -> list[Sample]:
        """Return the samples from a time on, in order of time."""
        found = await self._samples.find({"at": {"$gte": at}}).sort("at", 1).to_list(None)
        # There are ten thousand in a week: converting them must not hold up what else the process does.
        return await asyncio.to_thread(lambda: [sample_of(document) for document in found])
