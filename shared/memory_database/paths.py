"""Dotted paths into documents: what a query finds there, what an expression reads, and how a field is changed."""

from collections.abc import Iterator
from typing import Any

from shared.memory_database.errors import PATH_NOT_VIABLE, ServerError
from shared.memory_database.values import MISSING, Document

Path = list[str]


def candidates(value: Any, path: Path, start: int = 0) -> Iterator[Any]:
    """Yield the values that a query compares: a path goes through all documents of an array, and by its places."""
    if start == len(path):
        yield value
    elif type(value) is dict:
        yield from candidates(value.get(path[start], MISSING), path, start + 1)
    elif type(value) is list:
        for each in value:
            if type(each) is dict:
                yield from candidates(each, path, start)
        if path[start].isdigit() and int(path[start]) < len(value):
            yield from candidates(value[int(path[start])], path, start + 1)
    else:
        yield MISSING


def read(value: Any, path: Path, start: int = 0) -> Any:
    """Return what an expression reads at a path: of an array, the values of its documents."""
    for place in range(start, len(path)):
        if type(value) is dict:
            value = value.get(path[place], MISSING)
        elif type(value) is list:
            found = [read(each, path, place) for each in value if type(each) is dict]
            return [each for each in found if each is not MISSING]
        else:
            return MISSING
    return value


class Editor:
    """A changed copy of a document that shares everything unchanged with the original."""

    def __init__(self, document: Document) -> None:
        self.document = dict(document)
        self._own: dict[int, Any] = {id(self.document): self.document}  # kept, so that no other gets its id

    def get(self, path: Path) -> Any:
        """Return the value at a path, where a number names a place in an array."""
        value: Any = self.document
        for name in path:
            if type(value) is dict:
                value = value.get(name, MISSING)
            elif type(value) is list and name.isdigit() and int(name) < len(value):
                value = value[int(name)]
            else:
                return MISSING
        return value

    def set(self, path: Path, value: Any) -> None:
        """Set the value at a path; documents on the way are created."""
        parent: Any = self.document
        for depth, name in enumerate(path[:-1]):
            child = _child(parent, name)
            if child is MISSING:
                child = {}
            elif type(child) is not dict and type(child) is not list:
                element = f"{{{path[depth]}: {child!r}}}"
                raise ServerError(PATH_NOT_VIABLE, f"Cannot create field '{path[depth + 1]}' in element {element}")
            parent = self._put(parent, name, child)
        _assign(parent, path[-1], value)

    def unset(self, path: Path) -> None:
        """Remove the value at a path, if there is one; an element of an array becomes null."""
        if self.get(path) is MISSING:
            return
        parent: Any = self.document
        for name in path[:-1]:
            parent = self._put(parent, name, _child(parent, name))
        if type(parent) is dict:
            del parent[path[-1]]
        else:
            parent[int(path[-1])] = None

    def _put(self, parent: Any, name: str, child: Any) -> Any:
        """Put a container that this editor may change into its parent, and return it."""
        if id(child) not in self._own:
            child = child.copy()
            self._own[id(child)] = child
            _assign(parent, name, child)
        return child


def _child(parent: Any, name: str) -> Any:
    if type(parent) is dict:
        return parent.get(name, MISSING)
    place = _place(parent, name)
    return parent[place] if place < len(parent) else MISSING


def _assign(parent: Any, name: str, value: Any) -> None:
    if type(parent) is dict:
        parent[name] = value
        return
    place = _place(parent, name)
    parent.extend([None] * (place + 1 - len(parent)))
    parent[place] = value


def _place(array: list[Any], name: str) -> int:
    if not name.isdigit():
        raise ServerError(PATH_NOT_VIABLE, f"Cannot create field '{name}' in element {array!r}")
    return int(name)
