"""Writes of one collection, as the server carries them out."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from shared.memory_database.errors import DOCUMENT_INVALID, ServerError
from shared.memory_database.filters import Query, equalities
from shared.memory_database.queries import Order, find, in_order
from shared.memory_database.server import Server
from shared.memory_database.storage import ID_INDEX, StoredCollection, Transaction, View, duplicate
from shared.memory_database.updates import Given, Update, replaced
from shared.memory_database.values import MISSING, Document, encoded, key_of, same


@dataclass(frozen=True, slots=True)
class Updated:
    """What an update has done: the documents that it found and changed, before and after, or the one it inserted."""

    matched: int = 0
    modified: int = 0
    upserted: bool = False
    upserted_id: Any = None
    before: Document | None = None
    after: Document | None = None


@dataclass(frozen=True, slots=True)
class Writes:
    """The writes of a collection, within a transaction or at once; each may raise ServerError or BlockedError."""

    server: Server
    collection: StoredCollection
    transaction: Transaction | None

    def insert(self, document: Document) -> None:
        """Insert a document that has an id."""
        self._insert(encoded({"_id": document["_id"], **document}))

    def update(
        self, query: Query, update: Given, *, multi: bool = False, upsert: bool = False, order: Order = ()
    ) -> Updated:
        """Change the first document that matches, or all of them; insert one if none does and `upsert` is set."""
        change = Update(update, query, self.server.variables())
        found = self._find(query, multi, order)
        if not found:
            return self._upsert(change.inserted()) if upsert else Updated()
        return self._write(found, change.of)

    def replace(self, query: Query, replacement: Mapping[str, Any], *, upsert: bool = False) -> Updated:
        """Replace the first document that matches; insert it if none does and `upsert` is set."""
        found = self._find(query, multi=False)
        if found:
            done = self._write(found, partial(replaced, replacement))
            # MongoDB compares with what was sent: without an id, that is always something else.
            return done if "_id" in replacement else replace(done, modified=1)
        if not upsert:
            return Updated()
        named = {name: value for name, value in equalities(query) if name == "_id"}
        return self._upsert({**named, **encoded(replacement)})

    def delete(self, query: Query, *, multi: bool) -> int:
        """Delete the first document that matches, or all of them; return their number."""
        found = self._find(query, multi)
        keys = [key_of(each["_id"]) for each in found]
        for key in keys:
            self.server.check_free(self.collection, key, self.transaction)
        for key in keys:
            self.server.put(self.collection, key, None, self.transaction)
        return len(keys)

    def _view(self) -> View:
        return self.server.view(self.collection, self.transaction, confirmed=False)

    def _find(self, query: Query, multi: bool, order: Order = ()) -> list[Document]:
        found = find(self._view(), query, self.server.variables())
        if order:
            found = in_order(found, order)
        return found if multi else found[:1]

    def _write(self, found: Sequence[Document], change: Callable[[Document], Document]) -> Updated:
        """Change documents, up to the first that cannot be changed; none as long as one of them is not free."""
        for document in found:
            self.server.check_free(self.collection, key_of(document["_id"]), self.transaction)
        modified = 0
        for before in found:
            after = change(before)
            if before == after and same(before, after):
                continue
            key = key_of(before["_id"])
            self._validate(after)
            self._check_unique(key, after)
            self.server.put(self.collection, key, after, self.transaction)
            modified += 1
        return Updated(len(found), modified, before=before, after=after)

    def _upsert(self, document: Document) -> Updated:
        named = document.get("_id", MISSING)
        document = {"_id": self.server.new_object_id() if named is MISSING else named, **document}
        self._insert(document)
        return Updated(upserted=True, upserted_id=document["_id"], after=document)

    def _insert(self, document: Document) -> None:
        key = key_of(document["_id"])
        self._validate(document)
        if self._view().get(key) is not None:
            raise duplicate(self.collection.namespace, ID_INDEX, {"_id": 1}, [document["_id"]])
        self.server.check_free(self.collection, key, self.transaction)
        self._check_unique(key, document)
        self.server.put(self.collection, key, document, self.transaction)

    def _check_unique(self, key: Any, document: Document) -> None:
        for index in self.collection.indexes.values():
            index.check(self.collection.namespace, key, document)

    def _validate(self, document: Document) -> None:
        is_valid = self.collection.is_valid
        if is_valid is not None and not is_valid(document):
            info = {"failingDocumentId": document["_id"]}
            raise ServerError(DOCUMENT_INVALID, "Document failed validation", errInfo=info)
