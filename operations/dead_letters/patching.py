"""A JSON patch (RFC 6902) for the bodies of many letters: reads it, and says what it makes of each letter. Pure."""

import json
from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

import orjson
from jsonpatch import JsonPatch, JsonPatchException
from jsonpointer import JsonPointer, JsonPointerException
from pydantic.alias_generators import to_camel

from operations.dead_letters.difference import is_same
from operations.dead_letters.editing import (
    IDENTITIES,
    MOST_EDITS,
    ChangedIdentityError,
    InvalidBodyError,
    check_body,
)
from operations.dead_letters.letter import current_body
from shared.bus.reading import MAX_BODY_BYTES
from shared.database import Document
from shared.errors import RefusalError

MOST_BYTES = 64 * 1024
MOST_OPERATIONS = 100
MOST_SHOWN = 200
"""Characters of a reason, which may have names of fields from a letter in it."""

LOCKABLE = tuple(to_camel(field) for field in IDENTITIES)
"""The identities, as messages name them."""

_MEMBERS = {"add": "value", "replace": "value", "test": "value", "move": "from", "copy": "from", "remove": "path"}
"""The operations, and what each needs besides its path."""

_ABSENT = object()

_SPELLINGS = {name: to_camel(field) for field in IDENTITIES for name in (field, to_camel(field))}


class InvalidPatchError(RefusalError):
    """The text is not a JSON patch, or it touches an identity that is locked; the message is for the user."""


class LeftOut(NamedTuple):
    """Why a letter is left as it is: a reason that many letters may have, and what is particular to this one."""

    reason: str
    details: str


class Edit(NamedTuple):
    """The body that replaces a letter's, and the identities that it changes: by name, before and after."""

    body: bytes
    identities: dict[str, list[Any]]


class Patch(NamedTuple):
    """A patch that was read, as JSON, and the identities that it may change, by name."""

    text: str
    unlocked: tuple[str, ...] = ()


def read_patch(text: str | bytes, unlocked: Collection[str] = ()) -> Patch:
    """Read a JSON patch. Raises InvalidPatchError if it is none, does nothing, or touches a locked identity."""
    if len(text) > MOST_BYTES:
        raise InvalidPatchError(f"the patch is too long: {MOST_BYTES // 1024} KiB are allowed")
    try:
        operations = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise InvalidPatchError(f"the patch is not JSON: {error}") from None
    if not isinstance(operations, list) or not 1 <= len(operations) <= MOST_OPERATIONS:
        raise InvalidPatchError(f"the patch is not a list of 1 to {MOST_OPERATIONS} operations (RFC 6902)")
    for number, operation in enumerate(operations, 1):
        _check(operation, f"operation {number}")
    if all(operation["op"] == "test" for operation in operations):
        raise InvalidPatchError("the patch only tests, and changes nothing")
    if unknown := sorted(set(unlocked) - set(LOCKABLE)):
        raise InvalidPatchError(f"{unknown[0]} is no identity; these are: {', '.join(LOCKABLE)}")
    if locked := [name for name in _touched(operations) if name not in unlocked]:
        raise InvalidPatchError(
            f"the patch touches {' and '.join(locked)}, which says what a message is about: unlock it to change that"
        )
    return Patch(orjson.dumps(operations).decode(), tuple(name for name in LOCKABLE if name in unlocked))


def patch_from_example(before: bytes, after: str) -> str:
    """Return the patch, as JSON, that makes the same change to other bodies where they have the same values.

    It tests for all that it changes: what is added must be missing elsewhere, too, or it would be overwritten. Raises
    InvalidPatchError if the example is not JSON, or changes nothing.
    """
    try:
        old, new = json.loads(before), json.loads(after)
    except (ValueError, RecursionError) as error:
        raise InvalidPatchError(f"the example is not JSON: {error}") from None
    operations = list(_changes((), old, new))
    if not operations:
        raise InvalidPatchError("the example is not changed, and there is no patch")
    try:
        return "[" + ",\n ".join(orjson.dumps(operation).decode() for operation in operations) + "]"
    except TypeError as error:  # a number of more than 64 bits, or half of a character
        raise InvalidPatchError(f"the example has a value that a patch cannot have: {error}") from None


def edited(letter: Document, patch: Patch) -> Edit | LeftOut:
    """Return what the patch makes of the body that a replay of the letter would send.

    `letter` must be the whole letter; its body may be None if it is too big to be edited by a patch.
    """
    if len(letter["edits"]) >= MOST_EDITS:
        return LeftOut(f"it has been edited {MOST_EDITS} times, the maximum", "")
    if not letter["edits"] and letter["body"] is None:
        return LeftOut("the body is too large for a patch", f"{letter['size']} bytes")
    patched = _patched(current_body(letter), patch)
    if isinstance(patched, LeftOut):
        return patched
    try:
        identities = check_body(letter, patched, patch.unlocked)
    except ChangedIdentityError as error:
        return LeftOut(f"it would change {_fields(error)}, which is locked", str(error))
    except InvalidBodyError as error:
        return LeftOut(f"the body would not be valid: see {_fields(error)}", _without_values(error))
    return Edit(patched, identities)


def _changes(path: tuple[str, ...], old: Any, new: Any) -> Iterator[dict[str, Any]]:
    """Yield the operations that make one value the other, each after a test for what it changes.

    A list that gets shorter or longer is replaced as a whole: by their positions alone, its items cannot be told apart.
    """
    pointer = JsonPointer.from_parts(path).path
    if isinstance(old, dict) and isinstance(new, dict):
        for name in [*old, *(name for name in new if name not in old)]:
            yield from _changes((*path, name), old.get(name, _ABSENT), new.get(name, _ABSENT))
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, (before, after) in enumerate(zip(old, new, strict=True)):
            yield from _changes((*path, str(index)), before, after)
    elif old is _ABSENT:
        yield {"op": "test", "path": pointer, "absent": True}
        yield {"op": "add", "path": pointer, "value": new}
    elif not is_same(old, new):
        yield {"op": "test", "path": pointer, "value": old}
        yield {"op": "remove", "path": pointer} if new is _ABSENT else {"op": "replace", "path": pointer, "value": new}


def _check(operation: object, where: str) -> None:
    """Raise InvalidPatchError unless this is an operation."""
    if not isinstance(operation, dict) or operation.get("op") not in _MEMBERS:
        raise InvalidPatchError(f"{where} must be an object with an op: {', '.join(_MEMBERS)}")
    needed = ["path"] if "absent" in operation else ["path", _MEMBERS[operation["op"]]]
    tests_absence = operation["op"] == "test" and operation.get("absent") is True and "value" not in operation
    if "absent" in operation and not tests_absence:
        raise InvalidPatchError(f'{where}: only a test without a value may have "absent", and it must be true')
    if missing := [name for name in needed if name not in operation]:
        raise InvalidPatchError(f"{where} ({operation['op']}) needs {missing[0]!r}")
    for name in ("path", "from"):
        if name in operation:
            try:
                JsonPointer(operation[name])
            except (JsonPointerException, TypeError):
                raise InvalidPatchError(f"{where}: {name!r} is not a JSON pointer, such as /items/0/price") from None


def _touched(operations: list[dict[str, Any]]) -> list[str]:
    """Return the identities that the operations write to. Raises InvalidPatchError if it is the whole body."""
    written = [o["path"] for o in operations if o["op"] != "test"]
    written += [o["from"] for o in operations if o["op"] == "move"]
    found: dict[str, None] = {}
    for pointer in written:
        parts = JsonPointer(pointer).parts
        if not parts:
            raise InvalidPatchError("the patch replaces the whole body, and so what it is about: name the fields")
        if parts[0] in _SPELLINGS:
            found.setdefault(_SPELLINGS[parts[0]])
    return list(found)


def _patched(body: bytes, patch: Patch) -> bytes | LeftOut:
    try:
        before, document = json.loads(body), json.loads(body)
    except (ValueError, RecursionError):
        return LeftOut("the body is not JSON", "")
    # Read anew for each letter: what an operation adds becomes part of the document, which the next ones change.
    for operation in json.loads(patch.text):
        if operation["op"] == "test":
            if not _passes(operation, document):
                return LeftOut(f"the test of {operation['path']} failed", "")
            continue
        try:
            document = JsonPatch([operation]).apply(document, in_place=True)
        except (JsonPatchException, JsonPointerException, TypeError):
            place = " or ".join(operation[name] for name in ("from", "path") if name in operation)
            return LeftOut(f"{operation['op']}: there is no place {place}", "")
        # Each copy may double the size.
        if operation["op"] == "copy" and len(_written(document)) > MAX_BODY_BYTES:
            return LeftOut("the body would be too large", "")
    return LeftOut("the patch changes nothing in it", "") if is_same(before, document) else _written(document)


def _passes(test: dict[str, Any], document: Any) -> bool:
    """Return whether a test passes: the value is the same, with its type, since to Python, 1 is 1.0 and true.

    A test for absence, which RFC 6902 does not have, passes if there is no such place.
    """
    found = JsonPointer(test["path"]).resolve(document, _ABSENT)
    return found is _ABSENT if "absent" in test else found is not _ABSENT and is_same(found, test["value"])


def _written(document: Any) -> bytes:
    text = json.dumps(document, ensure_ascii=False, separators=(",", ":"))
    return text.encode("utf-8", "surrogatepass")  # a lone surrogate is then found to be invalid


def _fields(error: InvalidBodyError) -> str:
    return ", ".join(sorted({field for field, _ in error.errors}))[:MOST_SHOWN]


def _without_values(error: InvalidBodyError) -> str:
    """Return what is wrong with which field; the values may be personal."""
    return "; ".join(f"{field}: {message.partition(' (got ')[0]}" for field, message in error.errors)[:MOST_SHOWN]
