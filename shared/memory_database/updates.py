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
from shared.memory_database.expressions import Variables, expression, is_number
from shared.memory_database.filters import Query, equalities, is_operators, matched_place, matcher
from shared.memory_database.paths import Editor, Path
from shared.memory_database.values import MISSING, Document, encoded, integer, order_of, same

Change = Callable[[Editor, Path, Any, Variables], None]
Given = Mapping[str, Any] | Sequence[Mapping[str, Any]]


def replaced(document: Document, replacement: Mapping[str, Any]) -> Document:
    """Return the new document in the place of another one."""
    new = encoded(replacement)
    if "_id" in new and not same(new["_id"], document["_id"]):
        raise ServerError(IMMUTABLE_FIELD, "the (immutable) field '_id' was found to have been altered")
    return {"_id": document["_id"], **new}


def updated(document: Document, update: Given, query: Query, variables: Variables) -> Document:
    """Return a document after an update of it; `query` found it."""
    new = _changed(document, update, query, variables, inserting=False)
    if not same(new.get("_id", MISSING), document["_id"]):
        raise ServerError(IMMUTABLE_FIELD, "Performing an update on the path '_id' would modify the immutable field")
    return new


def check(update: Given) -> None:
    """Raise the error for an update that would fail whatever document it finds, or is not modelled."""
    if isinstance(update, Mapping):
        _changes(update, inserting=False)
        return
    for stage in update:
        for given in _fields_set(stage).values():
            expression(given)


def upserted(update: Given, query: Query, variables: Variables) -> Document:
    """Return the document that an upsert inserts, perhaps without an `_id`."""
    editor = Editor({})
    for name, value in equalities(query):
        editor.set(name.split("."), value)
    return _changed(editor.document, update, query, variables, inserting=True)


def _changed(document: Document, update: Given, query: Query, variables: Variables, *, inserting: bool) -> Document:
    if not isinstance(update, Mapping):
        for stage in update:
            document = _through_stage(document, stage, variables)
        return document
    editor = Editor(document)
    for path, change, argument in _changes(update, inserting):
        change(editor, _resolved(path, document, query, variables), argument, variables)
    return editor.document


def _through_stage(document: Document, stage: Mapping[str, Any], variables: Variables) -> Document:
    editor = Editor(document)
    for field, given in _fields_set(stage).items():
        path, value = field.split("."), expression(given)(document, variables)
        if any(type(editor.get(path[:depth])) is list for depth in range(1, len(path))):
            raise NotImplementedError("a stage that sets a field within an array")
        if value is MISSING:
            editor.unset(path)
        else:
            editor.set(path, value)
    return editor.document


def _fields_set(stage: Mapping[str, Any]) -> Mapping[str, Any]:
    if stage.keys() != {"$set"}:
        raise NotImplementedError(f"the stage {', '.join(stage)} in an update")
    fields: Mapping[str, Any] = stage["$set"]
    return fields


def _changes(update: Mapping[str, Any], inserting: bool) -> list[tuple[Path, Change, Any]]:
    """Return the changes in the order in which MongoDB makes them: by their paths."""
    found: list[tuple[Path, Change, Any]] = []
    for operator, fields in update.items():
        if operator not in _CHANGES:
            raise NotImplementedError(f"the update operator {operator}")
        found += [(field.split("."), _CHANGES[operator], argument) for field, argument in fields.items()]
    found.sort(key=lambda each: each[0])
    for (one, *_), (other, *_) in pairwise(found):
        if other[: len(one)] == one:
            field = ".".join(one)
            raise ServerError(CONFLICTING_UPDATES, f"Updating the path '{field}' would create a conflict at '{field}'")
    return found if inserting else [each for each in found if each[1] is not _set_on_insert]


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
    if not is_number(amount):
        raise ServerError(TYPE_MISMATCH, f"Cannot increment with non-numeric argument: {amount!r}")
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
    editor.set(path, variables["NOW"])


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
