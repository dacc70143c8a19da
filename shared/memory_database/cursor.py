"""Cursors: what a query or a pipeline returns, read at once when the first document is asked for."""

from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from pymongo.errors import InvalidOperation

from shared.memory_database.errors import unknown
from shared.memory_database.values import Document


@dataclass
class Options:
    """How the documents of a query are returned."""

    order: Sequence[tuple[str, int]] = ()
    limit: int = 0
    hint: str | None = None


class MemoryCursor:
    """The results of a query or a pipeline, as PyMongo's AsyncCursor."""

    def __init__(self, load: Callable[[Options], Awaitable[list[Document]]], options: Options | None = None) -> None:
        self._load = load
        self._options = options or Options()
        self._found: Iterator[Document] | None = None

    def sort(self, key: str | Sequence[tuple[str, int]], direction: int | None = None) -> "MemoryCursor":
        self._options.order = order(key, direction)
        return self._unread()

    def limit(self, limit: int) -> "MemoryCursor":
        self._options.limit = _not_negative(limit)
        return self._unread()

    def hint(self, hint: str) -> "MemoryCursor":
        self._options.hint = index_name(hint)
        return self._unread()

    def batch_size(self, _size: int) -> "MemoryCursor":
        """Change nothing: all documents come from one moment."""
        return self._unread()

    async def to_list(self, length: int | None = None) -> list[Document]:
        if length == 0:
            return []
        if self._found is None:
            self._found = iter(await self._load(self._options))
        return list(islice(self._found, length))

    async def next(self) -> Document:
        return await anext(self)

    async def close(self) -> None:
        self._found = iter(())

    def __aiter__(self) -> "MemoryCursor":
        return self

    async def __anext__(self) -> Document:
        if self._found is None:
            self._found = iter(await self._load(self._options))
        try:
            return next(self._found)
        except StopIteration:
            raise StopAsyncIteration from None

    async def __aenter__(self) -> "MemoryCursor":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def __getattr__(self, name: str) -> Any:
        raise unknown("cursor", name)

    def _unread(self) -> "MemoryCursor":
        if self._found is not None:
            raise InvalidOperation("cannot set options after executing query")
        return self


def order(key: str | Sequence[tuple[str, int]], direction: int | None = None) -> Sequence[tuple[str, int]]:
    """Return an order as pairs of a field and a direction."""
    return [(key, direction or 1)] if isinstance(key, str) else list(key)


def index_name(hint: Any) -> str | None:
    """Return the name of the index that a hint gives."""
    if hint is None or isinstance(hint, str):
        return hint
    raise NotImplementedError("a hint that is not the name of an index")


def _not_negative(limit: int) -> int:
    if limit < 0:
        raise NotImplementedError("a negative limit")
    return limit
