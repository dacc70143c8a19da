"""Collections as the server stores them, with their indexes, and transactions that are not committed yet."""

import asyncio
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum, auto
from typing import Any, Protocol

from shared.memory_database import paths
from shared.memory_database.errors import BAD_VALUE, DUPLICATE_KEY, ServerError
from shared.memory_database.expressions import Variables
from shared.memory_database.filters import Predicate, matcher
from shared.memory_database.validation import Check
from shared.memory_database.values import MISSING, Document, encoded, key_of

ID_INDEX = "_id_"


class View(Protocol):
    """The documents of a collection as one reader sees them, by the keys of their ids."""

    def get(self, key: Any, /) -> Document | None:
        """Return the document, None if the reader sees none."""

    def values(self) -> Iterable[Document]:
        """Return all documents that the reader sees."""


class Overlay:
    """A view in which some documents are others than those stored, or are not there."""

    def __init__(self, documents: Mapping[Any, Document], changed: Mapping[Any, Document | None]) -> None:
        self._documents = documents
        self._changed = changed

    def get(self, key: Any) -> Document | None:
        """Return the document, None if the reader sees none."""
        return self._changed[key] if key in self._changed else self._documents.get(key)

    def values(self) -> Iterator[Document]:
        """Yield all documents that the reader sees."""
        for key in [*self._documents, *(key for key in self._changed if key not in self._documents)]:
            if (document := self.get(key)) is not None:
                yield document


class Index:
    """An index as it is declared. Only a unique one has entries; the others say how long documents are kept."""

    def __init__(self, given: Mapping[str, Any]) -> None:
        self.given: Document = encoded(given)
        supported = {"key", "name", "unique", "sparse", "partialFilterExpression", "expireAfterSeconds"}
        if unknown := self.given.keys() - supported:
            raise NotImplementedError(f"an index with {', '.join(sorted(unknown))}")
        if unknown := {f"{value}" for value in self.given["key"].values() if value not in (1, -1)}:
            raise NotImplementedError(f"an index of the type {', '.join(sorted(unknown))}")
        self.name: str = self.given["name"]
        self.is_unique = bool(self.given.get("unique"))
        self.expires_after: float | None = self.given.get("expireAfterSeconds")
        self._paths = [name.split(".") for name in self.given["key"]]
        self._entries: dict[Any, Any] = {}
        condition = self.given.get("partialFilterExpression")
        self._covers: Predicate = matcher(condition, Variables(_no_time)) if condition else self._covers_if_sparse

    def information(self) -> Document:
        """Return what `index_information` says about it."""
        rest = {name: value for name, value in self.given.items() if name not in ("name", "key")}
        return {"v": 2, "key": list(self.given["key"].items()), **rest}

    def check(self, namespace: str, key: Any, document: Document) -> None:
        """Raise the error for a duplicate if another document has the same values in a unique index."""
        if not self.is_unique or not self._covers(document):
            return
        values = self._values(document)
        if self._entries.get(_entry(values), key) != key:
            raise duplicate(namespace, self.name, self.given["key"], values)

    def move(self, key: Any, before: Document | None, after: Document | None) -> None:
        """Follow a change of a document."""
        if not self.is_unique:
            return
        if before is not None and self._covers(before):
            self._entries.pop(_entry(self._values(before)), None)
        if after is not None and self._covers(after):
            self._entries[_entry(self._values(after))] = key

    def has_expired(self, document: Document, now: datetime) -> bool:
        """Return whether a document is past the end of its time by this index."""
        if self.expires_after is None:
            return False
        value = paths.read(document, self._paths[0])
        return type(value) is datetime and (now - value).total_seconds() >= self.expires_after

    def _covers_if_sparse(self, document: Document) -> bool:
        return not self.given.get("sparse") or any(paths.read(document, path) is not MISSING for path in self._paths)

    def _values(self, document: Document) -> list[Any]:
        values = [paths.read(document, path) for path in self._paths]
        if any(type(value) is list for value in values):
            raise NotImplementedError("a unique index of arrays")
        return [None if value is MISSING else value for value in values]


def _no_time() -> datetime:
    raise NotImplementedError("the time in the condition of an index")


def _entry(values: Sequence[Any]) -> Any:
    return tuple(map(key_of, values))


def duplicate(namespace: str, index: str, pattern: Mapping[str, Any], values: Sequence[Any]) -> ServerError:
    """Return the error for a second document with the same values in a unique index."""
    key_value = dict(zip(pattern, values, strict=True))
    shown = ", ".join(f"{name}: {_shown(value)}" for name, value in key_value.items())
    message = f"E11000 duplicate key error collection: {namespace} index: {index} dup key: {{ {shown} }}"
    return ServerError(DUPLICATE_KEY, message, keyPattern=dict(pattern), keyValue=key_value)


def _shown(value: Any) -> str:
    return "null" if value is None else f'"{value}"' if isinstance(value, str) else str(value)


class TransactionState(Enum):
    """Whether a transaction can be continued or committed."""

    OPEN = auto()
    COMMITTED = auto()
    ABORTED = auto()


@dataclass(eq=False)
class Transaction:
    """A transaction as the server knows it: what it reads, and what it has written."""

    snapshot: int
    """The position in the log of the first change that it does not see."""
    expires_at: datetime
    state: TransactionState = TransactionState.OPEN
    writes: dict["StoredCollection", dict[Any, Document | None]] = field(default_factory=dict)
    committed_to: int = 0
    """The position in the log after its own changes."""
    ended: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(eq=False)
class StoredCollection:
    """A collection; it exists from its creation, or its first document, on."""

    namespace: str
    exists: bool = False
    documents: dict[Any, Document] = field(default_factory=dict)
    indexes: dict[str, Index] = field(default_factory=dict)
    options: Document = field(default_factory=dict)
    is_valid: Check | None = None
    writers: dict[Any, Transaction] = field(default_factory=dict)
    """The open transactions that have written documents."""
    changed_at: dict[Any, int] = field(default_factory=dict)
    """The position in the log of each document's last change."""

    @property
    def name(self) -> str:
        """Its name within its database."""
        return self.namespace.partition(".")[2]

    def create(self) -> None:
        """Let the collection exist."""
        if not self.exists:
            self.exists = True
            self.indexes = {ID_INDEX: Index({"key": {"_id": 1}, "name": ID_INDEX})}

    def add_index(self, given: Mapping[str, Any]) -> None:
        """Build an index unless it exists. Raises the error for a duplicate if documents contradict it."""
        index = Index(given)
        if index.name in self.indexes:
            return
        for key, document in self.documents.items():
            index.check(self.namespace, key, document)
            index.move(key, None, document)
        self.indexes[index.name] = index

    def has_unique_index(self) -> bool:
        """Return whether it has a unique index beside that of the ids."""
        return any(index.is_unique for index in self.indexes.values())

    def require_index(self, name: str | None) -> None:
        """Raise the error for a hint that names no index."""
        if name is not None and name not in self.indexes:
            raise ServerError(BAD_VALUE, "hint provided does not correspond to an existing index")

    def put(self, key: Any, after: Document | None) -> Document | None:
        """Change, insert or delete a document at once; return what it was before."""
        before = self.documents.get(key)
        if after is None:
            self.documents.pop(key, None)
        else:
            self.create()
            self.documents[key] = after
        for index in self.indexes.values():
            index.move(key, before, after)
        return before
