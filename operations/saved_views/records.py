"""Keeps the saved views of all lists; the team shares them."""

from typing import NamedTuple
from uuid import uuid4

from pymongo.errors import DuplicateKeyError

from operations.saved_views.query import ListPage, address_of, kept_query
from operations.saved_views.schema import VIEWS
from shared.clock import Clock, utc_now
from shared.database import Database, Document

MOST_VIEWS = 30
"""The views of one list."""

LONGEST_NAME = 60


class SavedView(NamedTuple):
    """A view of a list, who saved it, and the part of its query that the list still has."""

    id: str
    name: str
    by: str
    query: str
    address: str


class SavedViews:
    """The operations on the records; methods let the driver's errors out."""

    def __init__(self, database: Database, clock: Clock = utc_now) -> None:
        self._views = database[VIEWS]
        self._clock = clock

    async def of(self, page: ListPage) -> list[SavedView]:
        """Return the views of a list by name."""
        found = await self._views.find({"page": page.path}).sort("name", 1).limit(MOST_VIEWS).to_list(None)
        return [_view(page, document) for document in found]

    async def add(self, page: ListPage, name: str, query: str, by: str) -> bool:
        """Store a view; False if the list has one of this name, or too many."""
        if await self._views.count_documents({"page": page.path}) >= MOST_VIEWS:
            return False
        fields = {"page": page.path, "name": name, "query": query, "by": by, "at": self._clock()}
        try:
            await self._views.insert_one({"_id": uuid4().hex[:16], **fields})
        except DuplicateKeyError:
            return False
        return True

    async def find(self, page: ListPage, view_id: str) -> SavedView | None:
        """Return a view of a list."""
        found = await self._views.find_one({"_id": view_id, "page": page.path})
        return _view(page, found) if found else None

    async def remove(self, view: SavedView) -> None:
        """Delete a view."""
        await self._views.delete_one({"_id": view.id})


def _view(page: ListPage, document: Document) -> SavedView:
    query = kept_query(page, document["query"])
    return SavedView(document["_id"], document["name"], document["by"], query, address_of(page, query))
