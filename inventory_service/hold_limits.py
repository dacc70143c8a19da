"""The limit of open holds per user. One document lists the holds of a user, so one guarded update of it decides.

The list is a promise, the reservations are the truth. A request is listed before its hold exists, and a hold that has
ended stays listed until there is no room; then its reservation says that it no longer counts. A request that has not
come true after a while was interrupted: it loses its place, and a RELEASED reservation keeps it from coming true later.
A missing list is made from the holds themselves. So it does not matter where a process is killed.
"""

import asyncio
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from typing import NamedTuple

from pymongo import ASCENDING, IndexModel, UpdateOne
from pymongo.errors import BulkWriteError
from pymongo.read_concern import ReadConcern

from inventory_service.reservations import Reservations
from inventory_service.stock import Reservation, Status
from shared import database
from shared.clock import Clock
from shared.database import Collection, Database, Document
from shared.schema import CollectionSchema

COLLECTION = "hold_lists"
INTERRUPTED_AFTER = timedelta(seconds=10)
"""The time after which a request without a hold was interrupted."""
KEPT = timedelta(hours=2)
"""The time for which an unchanged list is kept; the next request makes it again."""

SCHEMA = CollectionSchema(
    indexes=(IndexModel([("updatedAt", ASCENDING)], name="unused", expireAfterSeconds=int(KEPT.total_seconds())),),
    validator={
        "$jsonSchema": {
            "required": ["version", "holds", "updatedAt"],
            "properties": {"version": {"bsonType": ["int", "long"]}, "holds": {"bsonType": "array"}},
        }
    },
)


class HoldPlace(NamedTuple):
    """A request for one more hold of a user. Requests under the same key have the same hold, and ids of their own."""

    request_id: str
    reservation_id: str
    owner_id: str | None
    user_id: str

    @property
    def list_id(self) -> str:
        """The id of the user's list; a digest, because it is one more place that would have to forget the user."""
        return hashlib.sha256(f"{self.owner_id or ''}\0{self.user_id}".encode()).hexdigest()


class HoldLimits:
    """Admits requests for holds up to a limit per user; exact with any number of concurrent workers."""

    def __init__(self, database: Database, reservations: Reservations, clock: Clock, most_per_user: int) -> None:
        self._collection: Collection = database.get_collection(COLLECTION, read_concern=ReadConcern("majority"))
        self._reservations = reservations
        self._clock = clock
        self.most_per_user = most_per_user

    async def admit(self, places: Sequence[HoldPlace]) -> set[str]:
        """Return the ids of the requests that may hold, in the order of the requests as far as there is room."""
        admitted: set[str] = set()
        by_list: dict[str, list[HoldPlace]] = {}
        for place in places:
            by_list.setdefault(place.list_id, []).append(place)
        # Every lost race means that another worker has made progress, so this ends.
        while by_list:
            cursor = self._collection.find({"_id": {"$in": list(by_list)}})
            stored = {document["_id"]: document for document in await cursor.to_list(None)}
            lists = await asyncio.gather(*(self._listed(stored.get(each), asked) for each, asked in by_list.items()))
            updates = []
            chosen: dict[str, set[str]] = {}
            for (list_id, asked), listed in zip(by_list.items(), lists, strict=True):
                added = self._choose(listed, asked)
                chosen[list_id] = {each["requestId"] for each in added}
                updates.append(self._guarded_update(list_id, stored.get(list_id), [*listed, *added]))
            lost = await self._write(updates)
            for list_id in chosen.keys() - lost:
                admitted |= chosen[list_id]
                del by_list[list_id]
        return admitted

    async def withdraw(self, places: Iterable[HoldPlace]) -> None:
        """Remove requests that hold nothing."""
        updates = [
            UpdateOne(
                {"_id": place.list_id},
                {"$pull": {"holds": {"requestId": place.request_id}}, "$inc": {"version": 1}},
            )
            for place in places
        ]
        if updates:
            await self._collection.bulk_write(updates, ordered=False)

    async def _listed(self, document: Document | None, asked: Sequence[HoldPlace]) -> list[Document]:
        """Return the entries of a user that count, as far as it matters: all, as long as there is room."""
        if document is None:
            owner_id, user_id = asked[0].owner_id, asked[0].user_id
            found = await self._reservations.holds.open_of(owner_id, user_id)
            return [{"reservationId": each, "requestId": each, "at": self._clock()} for each in found]
        listed: list[Document] = document["holds"]
        if len({each["reservationId"] for each in listed}) + len(asked) <= self.most_per_user:
            return listed
        ids = {each["reservationId"] for each in listed}
        is_open = await self._reservations.holds.are_open(ids)
        before = self._clock() - INTERRUPTED_AFTER
        waiting = {each["reservationId"] for each in listed if each["at"] > before}
        interrupted = ids - is_open.keys() - waiting
        is_open |= await self._close(interrupted)
        return [each for each in listed if is_open.get(each["reservationId"], True)]

    async def _close(self, reservation_ids: set[str]) -> Mapping[str, bool]:
        """Release holds that do not exist, and return them as not open, without those that exist by now."""
        now = self._clock()
        existing = await self._reservations.insert(
            [Reservation(each, Status.RELEASED, now, now) for each in sorted(reservation_ids)]
        )
        return dict.fromkeys(reservation_ids - existing, False)

    def _choose(self, listed: Sequence[Document], asked: Sequence[HoldPlace]) -> list[Document]:
        """Return the entries of those requests for which there is room."""
        ids = {each["reservationId"] for each in listed}
        added = []
        for place in asked:
            if place.reservation_id in ids or len(ids) < self.most_per_user:
                ids.add(place.reservation_id)
                entry = {"reservationId": place.reservation_id, "requestId": place.request_id, "at": self._clock()}
                added.append(entry)
        return added

    def _guarded_update(self, list_id: str, document: Document | None, holds: Sequence[Document]) -> UpdateOne:
        # Upserting turns a guard that does not match into a duplicate key error, as in stock_items.py.
        version = document["version"] if document is not None else 0
        changes = {"version": version + 1, "holds": holds, "updatedAt": self._clock()}
        return UpdateOne({"_id": list_id, "version": version}, {"$set": changes}, upsert=True)

    async def _write(self, updates: Sequence[UpdateOne]) -> set[str]:
        """Write lists; return those that another worker has changed since they were read."""
        try:
            await self._collection.bulk_write(updates, ordered=False)
        except BulkWriteError as error:
            return database.lost_updates(error)
        return set()
