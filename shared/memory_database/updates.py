"""Updates: by operators, by a pipeline, or by a whole new document."""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from bson import Int64

from shared.memory_database.errors import (
    BAD_VALUE,
    CONFLICTING_UPDATES,
    IMMUTABLE_FIELD,
    TYPE_MISMATCH,
    ServerError,
)
from shared.memory_database.expressions import Expression, Variables, expression, is_number
from shared.memory_database.filters import Query, equalities, is_operators, matched_place, matcher
from shared.memory_database.paths import Editor, Path
from shared.memory_database.values import MISSING, Document, encoded, integer, order_of, same

Change = Callable[[Editor, Path, Any, Variables], None]
Stage = list[tuple[str, Expression]]
Given = Mapping[str, Any] | Sequence[Mapping[str, Any]]


def replaced(replacement: Mapping[str, Any], document: Document) -> Document:
    """Return the new document in the place of another one."""
    new = encoded(replacement)
    if "_id" in new and not same(new["_id"], document["_id"]):
        raise ServerError(IMMUTABLE_FIELD, "the (immutable) field '_id' was found to have been altered")
    return {"_id": document["_id"], **new}


class Update:
    """An update by operators or by a pipeline, of the documents that a query finds.

    Raises ServerError for one that would fail whatever it finds, NotImplementedError for what is not modelled.
    """

    def __init__(self, given: Given, query: Query, variables: Variables) -> None:
        self._query = query
        self._variables = variables
        self._changes = _changes(given) if isinstance(given, Mapping) else []
        self._stages = [] if isinstance(given, Mapping) else [_stage(each) for each in given]

    def of(self, document: Document) -> Document:
        """Return a document as it becomes."""
        new = self._changed(document, inserting=False)
        if new.get("_id", MISSING) is not document["_id"] and not same(new.get("_id", MISSING), document["_id"]):
            raise ServerError(IMMUTABLE_FIELD, "Performing an update on the path '_id' would modify the field")
        return new

    def inserted(self) -> Document:
        """Return the document that an upsert inserts, perhaps without an `_id`."""
        editor = Editor({})
        for name, value in equalities(self._query):
            path = name.split(".")
            if any(editor.get(path[:depth]) is not MISSING for depth in range(1, len(path) + 1)):
                raise NotImplementedError(f"an upsert by several conditions on {path[0]}")
            editor.set(path, value)
        return self._changed(editor.document, inserting=True)

    def _changed(self, document: Document, *, inserting: bool) -> Document:
        for stage in self._stages:
            document = _through_stage(document, stage, self._variables)
        editor = Editor(document)
        for path, change, argument in self._changes:
            if inserting or change is not _set_on_insert:
                change(editor, _resolved(path, document, self._query, self._variables), argument, self._variables)
        return editor.document


def _stage(given: Mapping[str, Any]) -> Stage:
    if given.keys() != {"$set"}:
        raise NotImplementedError(f"the stage {', '.join(given)} in an update")
    if dotted := [field for field in given["$set"] if "." in field]:
        raise NotImplementedError(f"a stage that sets {', '.join(dotted)}")
    return [(field, expression(value)) for field, value in given["$set"].items()]


def _through_stage(document: Document, stage: Stage, variables: Variables) -> Document:
    new = dict(document)
    for field, evaluate in stage:
        value = evaluate(document, variables)
        if value is MISSING:
            new.pop(field, None)
        else:
            new[field] = value
    return new


def _changes(update: Mapping[str, Any]) -> list[tuple[Path, Change, Any]]:
    """Return the changes in the order in which MongoDB makes them: by their paths."""
    found: list[tuple[Path, Change, Any]] = []
    for operator, fields in update.items():
        if operator not in _CHANGES:
            raise NotImplementedError(f"the update operator {operator}")
        if operator == "$inc":
            _check_amounts(fields)
        found += [(field.split("."), _CHANGES[operator], argument) for field, argument in fields.items()]
    found.sort(key=lambda each: each[0])
    for (one, *_), (other, *_) in pairwise(found):
        if other[: len(one)] == one:
            field = ".".join(one)
            raise ServerError(CONFLICTING_UPDATES, f"Updating the path '{field}' would create a conflict at '{field}'")
    return found


def _check_amounts(fields: Mapping[str, Any]) -> None:
    for amount in fields.values():
        if not is_number(amount):
            raise ServerError(TYPE_MISMATCH, f"Cannot increment with non-numeric argument: {amount!r}")


def _resolved(path: Path, document: Document, query: Query, variables: Variables) -> Path:
    """Return a path with the place of an array's element for `$`."""
    if not any(name.startswith("$") for name in path):
        return path
    depth = path.index("$") if "$" in path else -1
    values = Editor(document).get(path[:depth])
    if depth < 1 or path.count("$") > 1 or type(values) is not list:
        raise NotImplementedError(f"an update of {'.'.join(path)}")
    place = matched_place(query, ".".join(path[:depth]), values, variables)
    return [*path[:depth], str(place), *path[depth + 1 :]]


def _set(editor: Editor, path: Path, argument: Any, _: Variables) -> None:
    editor.set(path, encoded(argument))


def _set_on_insert(editor: Editor, path: Path, argument: Any, variables: Variables) -> None:
    _set(editor, path, argument, variables)


def _unset(editor: Editor, path: Path, _argument: Any, _variables: Variables) -> None:
    editor.unset(path)


def _inc(editor: Editor, path: Path, argument: Any, _: Variables) -> None:
    amount, current = encoded(argument), editor.get(path)
    if current is MISSING:
        editor.set(path, amount)
        return
    if not is_number(current):
        raise ServerError(TYPE_MISMATCH, f"Cannot apply $inc to a value of non-numeric type: {current!r}")
    editor.set(path, _total(current, amount))


def _total(current: Any, amount: Any) -> Any:
    total = current + amount
    if isinstance(total, float):
        return total
    try:
        whole = integer(int(total))
    except OverflowError:
        raise ServerError(BAD_VALUE, f"Failed to apply $inc operations to current value ({current})") from None
    return Int64(whole) if Int64 in (type(current), type(amount)) else whole


def _max(editor: Editor, path: Path, argument: Any, _: Variables) -> None:
    value, current = encoded(argument), editor.get(path)
    if current is MISSING or order_of(value) > order_of(current):
        editor.set(path, value)


def _current_date(editor: Editor, path: Path, argument: Any, variables: Variables) -> None:
    if argument is not True:
        raise NotImplementedError("$currentDate of another type than the default")
    editor.set(path, variables.now)


def _push(editor: Editor, path: Path, argument: Any, _: Variables) -> None:
    current = editor.get(path)
    if current is MISSING:
        current = []
    if type(current) is not list:
        raise ServerError(BAD_VALUE, f"The field '{'.'.join(path)}' must be an array but is {current!r}")
    added, limit = _pushed(argument)
    values = [*current, *added]
    if limit is not None:
        values = values[limit:] if limit < 0 else values[:limit]
    editor.set(path, values)


def _pushed(argument: Any) -> tuple[list[Any], int | None]:
    """Return the values that are added to an array, and the length to which it is cut, from its end if negative."""
    if not isinstance(argument, Mapping) or "$each" not in argument:
        return [encoded(argument)], None
    if unknown := argument.keys() - {"$each", "$slice"}:
        raise NotImplementedError(f"$push with {', '.join(sorted(unknown))}")
    return encoded(argument["$each"]), argument.get("$slice")


def _pull(editor: Editor, path: Path, argument: Any, variables: Variables) -> None:
    current = editor.get(path)
    if current is MISSING:
        return
    if type(current) is not list:
        raise ServerError(BAD_VALUE, "Cannot apply $pull to a non-array value")
    if not isinstance(argument, Mapping) or is_operators(argument):
        raise NotImplementedError("$pull by anything but the fields of documents")
    matches = matcher(argument, variables)
    editor.set(path, [each for each in current if type(each) is not dict or not matches(each)])


_CHANGES: dict[str, Change] = {
    "$set": _set,
    "$setOnInsert": _set_on_insert,
    "$unset": _unset,
    "$inc": _inc,
    "$max": _max,
    "$currentDate": _current_date,
    "$push": _push,
    "$pull": _pull,
}
