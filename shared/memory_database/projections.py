"""Projections: the fields of a document that a query returns."""

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from shared.memory_database.values import Document, copied

Projection = Callable[[Document], Document]
Tree = dict[str, Any]
"""The named fields; those of an embedded document are a tree of their own, a number is the length of an array."""
_ABSENT = object()


def projection(given: Mapping[str, Any] | None) -> Projection:
    """Return a function that copies a document's wanted fields. Raises NotImplementedError for other operators."""
    if not given:
        return copied
    if all(type(value) is bool or type(value) is int for value in given.values()):
        return _of_flags(tuple((name, bool(value)) for name, value in given.items()))
    return _projection(given)


@lru_cache(1000)
def _of_flags(given: tuple[tuple[str, bool], ...]) -> Projection:
    return _projection(dict(given))


def _projection(given: Mapping[str, Any]) -> Projection:
    kinds = {_is_included(value) for name, value in given.items() if name != "_id" or value}
    if kinds <= {None, False}:
        tree = _tree({name: value for name, value in given.items() if value is not True})
        return lambda document: _without(document, tree)
    if kinds != {True}:
        raise NotImplementedError("a projection that both includes and excludes fields")
    tree = _tree({"_id": True} | dict(given))
    if given.get("_id", True) is False:
        del tree["_id"]
    return lambda document: _only(document, tree)


def _is_included(value: Any) -> bool | None:
    """Return whether a field is included or excluded; None for the length of an array, which decides neither."""
    if isinstance(value, bool | int):
        return bool(value)
    if isinstance(value, Mapping) and value.keys() == {"$slice"} and isinstance(value["$slice"], int):
        return None
    raise NotImplementedError(f"the projection {value!r}")


def _tree(given: Mapping[str, Any]) -> Tree:
    tree: Tree = {}
    for name, value in given.items():
        *parents, last = name.split(".")
        branch = tree
        for parent in parents:
            branch = branch.setdefault(parent, {})
        branch[last] = value["$slice"] if isinstance(value, Mapping) else None
    return tree


def _only(value: Any, tree: Tree) -> Any:
    found: Document = {}
    for name, each in value.items():
        if name not in tree:
            continue
        branch = tree[name]
        if not isinstance(branch, dict):
            found[name] = copied(each)
        elif type(each) is dict:
            found[name] = _only(each, branch)
        elif type(each) is list:
            found[name] = [_only(element, branch) for element in each if type(element) is dict]
    return found


def _without(value: Any, tree: Tree) -> Any:
    found: Document = {}
    for name, each in value.items():
        branch = tree.get(name, _ABSENT)
        if branch is _ABSENT:
            found[name] = copied(each)
        elif isinstance(branch, dict):
            found[name] = _without_in(each, branch)
        elif branch is not None:
            found[name] = copied(_cut(each, branch))
    return found


def _without_in(value: Any, tree: Tree) -> Any:
    if type(value) is list:
        return [_without_in(each, tree) for each in value]
    return _without(value, tree) if type(value) is dict else value


def _cut(value: Any, length: int) -> Any:
    if type(value) is not list:
        return value
    return value[length:] if length < 0 else value[:length]
