"""The documents of one transaction: read once, changed in memory, and written together. Pure but for the given reads.

Several operations may share a unit, one after the other: each sees what those before it have changed. One that is
refused is rolled back to the savepoint that was taken before it, and leaves nothing to those after it.
"""

from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

Document = dict[str, Any]


class Reference(NamedTuple):
    """The place of a document; it need not exist."""

    collection: str
    id: str


Read = Callable[[str, Collection[str]], Awaitable[Iterable[Document]]]
"""Returns those documents of a collection that exist, by their ids."""


class Savepoint(int):
    """A moment of a unit to which it can be rolled back."""


@dataclass(frozen=True, slots=True)
class Update:
    """A document that exists, as it was read and as it should become."""

    before: Document
    after: Document


@dataclass(frozen=True, slots=True)
class Changes:
    """What to write to one collection."""

    updated: list[Update] = field(default_factory=list)
    inserted: list[Document] = field(default_factory=list)


class UnitOfWork:
    """Documents as one transaction sees them. A document that is passed in or out must not be changed in place."""

    def __init__(self, read: Read) -> None:
        self._read = read
        self._stored: dict[Reference, Document | None] = {}
        self._current: dict[Reference, Document | None] = {}
        self._former: list[tuple[Reference, Document | None, bool]] = []
        """What each change has replaced: the document, and whether it was known."""

    async def load(self, references: Iterable[Reference]) -> None:
        """Read the documents that are not known yet, with one read for each collection."""
        missing: dict[str, list[str]] = {}
        for reference in dict.fromkeys(references):
            if reference not in self._current:
                missing.setdefault(reference.collection, []).append(reference.id)
        for collection, ids in missing.items():
            found = {document["_id"]: document for document in await self._read(collection, ids)}
            for each in ids:
                reference = Reference(collection, each)
                self._stored[reference] = self._current[reference] = found.get(each)

    async def get(self, collection: str, document_id: str) -> Document | None:
        """Return a document with the changes so far, None if it does not exist."""
        reference = Reference(collection, document_id)
        if reference not in self._current:
            await self.load([reference])
        return self._current[reference]

    def insert(self, collection: str, document: Document) -> None:
        """Add a new document. Raises ValueError if it is known to exist.

        If it exists and was not read, the write of the changes fails.
        """
        reference = Reference(collection, document["_id"])
        if self._current.get(reference) is not None:
            raise ValueError(f"{collection} has a document {document['_id']!r} already")
        self._change(reference, document)

    def update(self, collection: str, document: Document) -> None:
        """Change a document that was read. Raises LookupError if it is not known."""
        reference = Reference(collection, document["_id"])
        if self._current.get(reference) is None:
            raise LookupError(f"{collection} has no document {document['_id']!r} that was read")
        self._change(reference, document)

    def savepoint(self) -> Savepoint:
        """Return the present moment."""
        return Savepoint(len(self._former))

    def roll_back(self, to: Savepoint) -> None:
        """Undo all changes since a savepoint."""
        while len(self._former) > to:
            reference, document, known = self._former.pop()
            if known:
                self._current[reference] = document
            else:
                del self._current[reference]

    def changes(self) -> Mapping[str, Changes]:
        """Return what to write, by collection; updates come first, because others contend for those documents."""
        changed: dict[str, Changes] = {}
        for reference, document in self._current.items():
            before = self._stored.get(reference)
            if document is None or document == before:
                continue
            of_collection = changed.setdefault(reference.collection, Changes())
            if before is None:
                of_collection.inserted.append(document)
            else:
                of_collection.updated.append(Update(before, document))
        return dict(sorted(changed.items(), key=_contended_first))

    def _change(self, reference: Reference, document: Document) -> None:
        self._former.append((reference, self._current.get(reference), reference in self._current))
        self._current[reference] = document


def _contended_first(changed: tuple[str, Changes]) -> tuple[bool, str]:
    collection, changes = changed
    return not changes.updated, collection
