"""Checks a body that an operator has written to replace the one that failed. Pure."""

from collections.abc import Container, Iterator, Mapping
from typing import Annotated, Any

import orjson
from pydantic import TypeAdapter, ValidationError
from pydantic.alias_generators import to_camel
from pydantic.fields import FieldInfo

from operations.dead_letters.letter import current_body, type_of
from shared.bus.reading import MAX_BODY_BYTES
from shared.contracts import BY_ROUTING_KEY, Message
from shared.database import Document
from shared.errors import RefusalError
from shared.topology import INBOXES
from shared.validation import explained

MOST_EDITS = 10
"""The most edits per letter: its record keeps all of them."""

IDENTITIES = ("order_id", "letter_id", "message_id", "refund_id", "transaction_id", "run", "sequence")
"""Fields that identify the subject of a message: an edit that changes one would act on something else."""

SUBJECTS = frozenset({"order_id", "letter_id"})
"""The identities that are also the correlation id."""

_UNKNOWN = object()


class InvalidBodyError(RefusalError):
    """The body cannot be sent; `errors` pair each field ("body" for the whole) with what is wrong."""

    def __init__(self, errors: list[tuple[str, str]]) -> None:
        super().__init__("; ".join(f"{field}: {message}" for field, message in errors))
        self.errors = errors


class ChangedIdentityError(InvalidBodyError):
    """The body would change what the message is about, and that is locked."""


def check_body(letter: Document, body: bytes, unlocked: Container[str] = ()) -> dict[str, list[Any]]:
    """Return the identities that a body changes: by their names in messages, the value before and after.

    `letter` must be the whole letter. Raises InvalidBodyError unless the body is valid JSON for the letter's type and
    changes no identity but those that are `unlocked`.
    """
    type_ = type_of(letter)
    contract = BY_ROUTING_KEY.get(type_)
    if contract is None:
        known = ", ".join(sorted(BY_ROUTING_KEY))
        raise InvalidBodyError(
            [("type", f"there is no message type {type_!r}; no body can fix that. Known types: {known}")]
        )
    if contract not in INBOXES.get(letter["queue"], ()):
        raise InvalidBodyError([("type", f"{letter['queue']} does not handle {type_}; no body can fix that")])
    if len(body) > MAX_BODY_BYTES:
        raise InvalidBodyError([("body", f"has {len(body)} bytes, the maximum is {MAX_BODY_BYTES}")])
    try:
        orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidBodyError([("body", f"is not JSON: {error}")]) from None
    try:
        message = contract.model_validate_json(body)
    except ValidationError as error:
        raise InvalidBodyError([_explained(dict(problem)) for problem in error.errors(include_url=False)]) from None
    changed = {name: [old, new] for name, old, new in _changed_identities(letter, message)}
    refused = [
        (name, f"is {new!r} and must stay {old!r}: an edit cannot change the subject of a message")
        for name, (old, new) in changed.items()
        if name not in unlocked
    ]
    if refused:
        raise ChangedIdentityError(refused)
    return changed


def locked_identities(letter: Document) -> dict[str, Any]:
    """Return the identities in the body that a replay of the letter would send, by their names in it.

    One that has no valid value is not among them: an edit has to give it one.
    """
    contract, body = BY_ROUTING_KEY.get(type_of(letter)), _object(current_body(letter))
    if contract is None or body is None:
        return {}
    fields = {to_camel(field): contract.model_fields[field] for field in IDENTITIES if field in contract.model_fields}
    return {name: body[name] for name, field in fields.items() if name in body and _is_valid(field, body[name])}


def without_identities(letter: Document) -> bytes:
    """Return the body that a replay of the letter would send, without what `locked_identities` returns."""
    body = current_body(letter)
    locked = locked_identities(letter)
    return (
        orjson.dumps({name: value for name, value in orjson.loads(body).items() if name not in locked})
        if locked
        else body
    )


def with_identities(text: str, locked: Mapping[str, Any], changes: Mapping[str, str]) -> bytes:
    """Return a body that was written without its locked identities, with them, and with those that are to change.

    A text that is not a JSON object stays as it is.
    """
    written = _object(text.encode("utf-8", "surrogatepass"))
    if written is None or (not changes and all(name in written for name in locked)):
        return text.encode("utf-8", "surrogatepass")
    typed = {name: _like(locked.get(name), value) for name, value in changes.items()}
    return orjson.dumps({**locked, **written, **typed}, option=orjson.OPT_INDENT_2)


def _like(old: Any, typed: str) -> Any:
    """Return a value as it was typed: a number in place of a number, else a text."""
    return int(typed) if isinstance(old, int) and typed.isdecimal() else typed


def _is_valid(field: FieldInfo, value: Any) -> bool:
    declared: Any = Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
    try:
        TypeAdapter(declared).validate_python(value)
    except ValidationError:
        return False
    return True


def _changed_identities(letter: Document, message: Message) -> Iterator[tuple[str, Any, Any]]:
    """Yield each identity that the message would change, with the value that it has and the new one."""
    # An edit that was allowed to change an identity decides for those after it.
    allowed = [number for number, edit in enumerate(letter["edits"], 1) if edit.get("identities")]
    bodies = [letter["body"], *(edit["body"] for edit in letter["edits"])][max(allowed, default=0) :]
    sent = [_object(body) for body in bodies if body is not None]
    for field in IDENTITIES:
        if field not in type(message).model_fields:
            continue
        new = getattr(message, field)
        old = next((value for body in sent if (value := _identity(message, field, body)) is not _UNKNOWN), _UNKNOWN)
        if old is _UNKNOWN and field in SUBJECTS:
            old = _identity(message, field, {to_camel(field): letter["correlationId"]})
        if old is not _UNKNOWN and new != old:
            yield to_camel(field), old, new


def _identity(message: Message, field: str, body: Mapping[str, Any] | None) -> object:
    """Return an identity as a receiver of the body would read it, _UNKNOWN if the body has no valid one."""
    if body is None:
        return _UNKNOWN
    name = to_camel(field)
    declared = type(message).model_fields[field]
    given = body.get(name, body.get(field, _UNKNOWN if declared.is_required() else declared.default))
    if given is _UNKNOWN:
        return _UNKNOWN
    # The rest of the body may be invalid, so only this field is read, in place of the edit's.
    read = orjson.dumps(orjson.loads(message.to_json()) | {name: given})
    try:
        return getattr(type(message).model_validate_json(read), field)
    except ValidationError:
        return _UNKNOWN


def _object(body: bytes) -> Mapping[str, Any] | None:
    try:
        found = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    return found if isinstance(found, dict) else None


def _explained(problem: Mapping[str, Any]) -> tuple[str, str]:
    field, message = explained(problem)
    if problem["type"] == "missing":  # its input is the whole object
        return field, message
    given = repr(problem["input"])
    shown = given if len(given) <= 80 else f"{given[:79]}…"
    return field, f"{message} (got {shown})"
