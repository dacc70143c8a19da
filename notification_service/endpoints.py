"""The collection `endpoints`: one document per endpoint.

    {_id, url, events, userId, ownerId, place, description, forStaff, enabled, disabledReason, disabledAt, failingSince,
     secrets: [{sealed, createdAt, expiresAt}], createdAt, updatedAt, deletedAt}

Empty fields are not stored. Each change is one update that names what it changes; only a rotation replaces the secrets,
guarded by those that it starts from. `place` numbers the endpoints of an owner from 0: it is unique, so however many
requests come at once, no owner gets more endpoints than there are places. An endpoint with `deletedAt` does not exist
any more, for any caller; its document stays until its deliveries are deleted (see deletion.py).
"""

from collections.abc import Collection as Sized
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from pymongo import ASCENDING, IndexModel, ReturnDocument
from pymongo.errors import DuplicateKeyError
from pymongo.read_concern import ReadConcern

from notification_service.endpoint import FAILING, Endpoint, Secret
from shared.access.principal import Visible
from shared.database import Collection, Database, Document
from shared.schema import CollectionSchema

COLLECTION = "endpoints"
MAX_PER_OWNER = 1000
"""The most endpoints of one owner that may be configured."""

SCHEMA = CollectionSchema(
    indexes=(
        IndexModel([("ownerId", ASCENDING), ("_id", ASCENDING)], name="by_owner"),
        IndexModel(
            [("ownerId", ASCENDING), ("place", ASCENDING)],
            name="place",
            unique=True,
            partialFilterExpression={"place": {"$exists": True}},
        ),
        IndexModel(
            [("deletedAt", ASCENDING)], name="deleted", partialFilterExpression={"deletedAt": {"$exists": True}}
        ),
    ),
    validator={
        "$jsonSchema": {
            "required": ["url", "events", "enabled", "secrets", "createdAt", "updatedAt"],
            "properties": {
                "url": {"bsonType": "string"},
                "events": {"bsonType": "array", "minItems": 1},
                "enabled": {"bsonType": "bool"},
                "secrets": {
                    "bsonType": "array",
                    "minItems": 1,
                    "items": {"required": ["sealed", "createdAt"], "properties": {"sealed": {"bsonType": "binData"}}},
                },
            },
        }
    },
)

_EXISTING: Document = {"deletedAt": {"$exists": False}}
_STATE_OF_FAILURE = {"disabledReason": "", "disabledAt": "", "failingSince": ""}


class Endpoints:
    """Reads and writes of the collection; driver errors pass through."""

    def __init__(self, database: Database) -> None:
        self._collection: Collection = database.get_collection(COLLECTION, read_concern=ReadConcern("majority"))

    async def insert(self, endpoint: Endpoint, most: int = MAX_PER_OWNER) -> bool:
        """Insert a new endpoint; return False if its owner has as many as an owner may have."""
        # Every lost race means that another request has made progress, so this ends.
        while (place := await self._free_place(endpoint.owner_id, most)) is not None:
            try:
                await self._collection.insert_one({**_document(endpoint), "place": place})
            except DuplicateKeyError:
                continue
            return True
        return False

    async def _free_place(self, owner_id: str | None, most: int) -> int | None:
        owned = self._collection.find({"ownerId": owner_id, **_EXISTING}, {"place": True})
        return free_place([document.get("place") async for document in owned], most)

    async def count_all(self) -> Mapping[bool, int]:
        """Count the endpoints that are enabled (True) and those that are not."""
        return {
            enabled: await self._collection.count_documents({"enabled": enabled, **_EXISTING})
            for enabled in (True, False)
        }

    async def failing(self, endpoint_ids: Iterable[str]) -> set[str]:
        """Return those of some endpoints whose last attempt failed."""
        query: Document = {"_id": {"$in": list(endpoint_ids)}, "failingSince": {"$exists": True}}
        return {document["_id"] async for document in self._collection.find(query, {"_id": True})}

    async def of_owners(self, owner_ids: Iterable[str | None], *, for_staff: bool) -> list[Endpoint]:
        """Return the endpoints of some owners, and with `for_staff` those of the staff as well."""
        query: Document = {"ownerId": {"$in": list(owner_ids)}}
        if for_staff:
            query = {"$or": [query, {"forStaff": True}]}
        query |= _EXISTING
        return [_endpoint(document) async for document in self._collection.find(query)]

    async def find(self, endpoint_id: str, visible: Visible) -> Endpoint | None:
        """Return one endpoint, None if there is none that is visible."""
        document = await self._collection.find_one({"_id": endpoint_id, **visible, **_EXISTING})
        return _endpoint(document) if document else None

    async def page(self, visible: Visible, *, after: str | None, limit: int) -> list[Endpoint]:
        """Return a page of the visible endpoints by id, after the given one."""
        query: Document = {**visible, **_EXISTING}
        if after is not None:
            query["_id"] = {"$gt": after}
        cursor = self._collection.find(query).sort("_id", ASCENDING).limit(limit)
        return [_endpoint(document) async for document in cursor]

    async def change(
        self, endpoint_id: str, changes: Mapping[str, Any], visible: Visible, now: datetime
    ) -> Endpoint | None:
        """Set fields of an endpoint; return it, None if there is none that is visible.

        An endpoint that is enabled starts afresh: it is not failing any more.
        """
        update: Document = {"$set": {**changes, "updatedAt": now}}
        if "enabled" in changes:
            update["$unset"] = dict(_STATE_OF_FAILURE)
            if not changes["enabled"]:
                update["$set"]["disabledAt"] = now
                del update["$unset"]["disabledAt"]
        return await self._update({"_id": endpoint_id, **visible}, update)

    async def replace_secrets(
        self, before: Endpoint, secrets: Iterable[Secret], visible: Visible, now: datetime
    ) -> Endpoint | None:
        """Store new secrets; return None if others have been stored, or the endpoint deleted, since it was read."""
        # Each of them: a former one may have been encrypted with another key.
        unchanged = {f"secrets.{place}.sealed": each.sealed for place, each in enumerate(before.secrets)}
        query: Document = {"_id": before.id, **unchanged, **visible}
        return await self._update(query, {"$set": {"secrets": [*map(_secret_document, secrets)], "updatedAt": now}})

    async def delete(self, endpoint_id: str, visible: Visible, now: datetime) -> bool:
        """Delete an endpoint; return False if there is none that is visible.

        A repetition of the request finds it until `forget`, so that it waits as the first one does.
        """
        update = {"$set": {"enabled": False, "deletedAt": now}, "$unset": {"place": ""}}
        return (await self._collection.update_one({"_id": endpoint_id, **visible}, update)).matched_count == 1

    async def is_deleted(self, endpoint_id: str) -> bool:
        """Return whether an endpoint that existed was deleted."""
        return await self._collection.count_documents({"_id": endpoint_id, **_EXISTING}, limit=1) == 0

    async def deleted(self) -> list[str]:
        """Return the ids of deleted endpoints that are not forgotten."""
        return [document["_id"] async for document in self._collection.find({"deletedAt": {"$exists": True}}, {})]

    async def forget(self, endpoint_id: str) -> None:
        """Remove what is left of a deleted endpoint."""
        await self._collection.delete_one({"_id": endpoint_id, "deletedAt": {"$exists": True}})

    async def note_success(self, endpoint_id: str) -> None:
        """Record that an endpoint is not failing any more."""
        await self._collection.update_one({"_id": endpoint_id}, {"$unset": {"failingSince": ""}})

    async def note_failure(self, endpoint_id: str, at: datetime) -> None:
        """Record that an endpoint is failing, unless it already is."""
        query = {"_id": endpoint_id, "failingSince": {"$exists": False}}
        await self._collection.update_one(query, {"$set": {"failingSince": at}})

    async def disable(self, endpoint: Endpoint, reason: str, now: datetime) -> bool:
        """Disable an endpoint for a reason; return False if it already is, or was changed or succeeded meanwhile."""
        query: Document = {"_id": endpoint.id, "enabled": True, "url": endpoint.url}
        if reason == FAILING:
            query["failingSince"] = endpoint.failing_since
        changes = {"enabled": False, "disabledReason": reason, "disabledAt": now, "updatedAt": now}
        return (await self._collection.update_one(query, {"$set": changes})).modified_count == 1

    async def _update(self, query: Document, update: Document) -> Endpoint | None:
        document = await self._collection.find_one_and_update(
            {**query, **_EXISTING}, update, return_document=ReturnDocument.AFTER
        )
        return _endpoint(document) if document else None


def free_place(taken: Sized[int | None], most: int) -> int | None:
    """Return the lowest place that is free, None if there are as many endpoints as an owner may have.

    Those of an earlier release have no place, and places may be beyond a limit that was lowered: both count.
    """
    return None if len(taken) >= most else next(place for place in range(most) if place not in taken)


def _document(endpoint: Endpoint) -> Document:
    document = {
        "_id": endpoint.id,
        "url": endpoint.url,
        "events": list(endpoint.events),
        "userId": endpoint.user_id,
        "ownerId": endpoint.owner_id,
        "description": endpoint.description,
        "forStaff": endpoint.for_staff or None,
        "enabled": endpoint.enabled,
        "secrets": [_secret_document(each) for each in endpoint.secrets],
        "createdAt": endpoint.created_at,
        "updatedAt": endpoint.updated_at,
    }
    return {name: value for name, value in document.items() if value is not None}


def _secret_document(secret: Secret) -> Document:
    document: Document = {"sealed": secret.sealed, "createdAt": secret.created_at}
    return document if secret.expires_at is None else {**document, "expiresAt": secret.expires_at}


def _endpoint(document: Document) -> Endpoint:
    return Endpoint(
        id=document["_id"],
        url=document["url"],
        events=tuple(document["events"]),
        secrets=tuple(Secret(each["sealed"], each["createdAt"], each.get("expiresAt")) for each in document["secrets"]),
        created_at=document["createdAt"],
        updated_at=document["updatedAt"],
        owner_id=document.get("ownerId"),
        user_id=document.get("userId"),
        description=document.get("description"),
        for_staff=document.get("forStaff", False),
        enabled=document["enabled"],
        disabled_reason=document.get("disabledReason"),
        disabled_at=document.get("disabledAt"),
        failing_since=document.get("failingSince"),
    )
