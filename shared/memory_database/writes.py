"""Writes of one collection, as the server carries them out: each on all of its documents or on none."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shared.memory_database.errors import DOCUMENT_INVALID, ServerError
from shared.memory_database.filters import Query
from shared.memory_database.queries import Order, find, in_order
from shared.memory_database.server import Server
from shared.memory_database.storage import ID_INDEX, StoredCollection, Transaction, View, duplicate
from shared.memory_database.updates import Given, check, replaced, updated, upserted
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
        variables = self.server.variables()
        found = self._find(query, multi, order)
        if not found:
            check(update)
            return self._upsert(upserted(update, query, variables)) if upsert else Updated()
        return self._write([(each, updated(each, update, query, variables)) for each in found])

    def replace(self, query: Query, replacement: Mapping[str, Any], *, upsert: bool = False) -> Updated:
        """Replace the first document that matches; insert it if none does and `upsert` is set."""
        found = self._find(query, multi=False)
        if found:
            return self._write([(each, replaced(each, replacement)) for each in found])
        if not upsert:
            return Updated()
        variables = self.server.variables()
        named = {name: value for name, value in upserted({"$set": {}}, query, variables).items() if name == "_id"}
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

    def _write(self, changes: Sequence[tuple[Document, Document]]) -> Updated:
        keys = [key_of(before["_id"]) for before, _ in changes]
        for key, (_, after) in zip(keys, changes, strict=True):
            self.server.check_free(self.collection, key, self.transaction)
            self._validate(after)
        modified = 0
        for key, (before, after) in zip(keys, changes, strict=True):
            if before == after and same(before, after):
                continue
            self._check_unique(key, after)
            self.server.put(self.collection, key, after, self.transaction)
            modified += 1
        before, after = changes[0]
        return Updated(len(changes), modified, before=before, after=after)

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
