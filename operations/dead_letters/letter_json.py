"""Letters and other records of dead letters as JSON documents. Pure."""

import base64
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from bson import Int64

from shared.clock import to_rfc3339
from shared.database import Document

_INTERNAL = frozenset(
    {
        "body",
        "bodyText",
        "current",
        "edits",
        "words",
        "wordsMasked",
        "changes",
        "lastReplay",
        "claimedBy",
        "nameless",
        "unacknowledged",
    }
)
"""Fields that are left out, or shown in another form."""


def letter_as_json(letter: Document) -> dict[str, Any]:
    """Return a letter as a JSON document: times as text, bodies as text or in base64."""
    shown = {name: value for name, value in letter.items() if name not in _INTERNAL}
    shown = {"id" if name == "_id" else name: as_json(value) for name, value in shown.items()}
    if "body" in letter:
        shown |= _body_as_json(letter["body"])
    if "edits" in letter:
        shown["edits"] = [
            {name: as_json(value) for name, value in edit.items() if name != "body"}
            | (_body_as_json(edit["body"]) if "body" in edit else {})
            for edit in letter["edits"]
        ]
    return shown


def as_json(value: Any) -> Any:
    """Convert a stored value to what JSON can express: times to text, bytes to base64."""
    match value:
        case datetime():
            return to_rfc3339(value)
        case bytes():
            return {"base64": base64.b64encode(value).decode()}
        case Mapping():
            return {str(name): as_json(item) for name, item in value.items()}
        case list() | tuple():
            return [as_json(item) for item in value]
        case Int64():
            return int(value)
    return value


def from_json(value: Any) -> Any:
    """Return what `as_json` has converted: the times that are in fields with the name of a time."""
    match value:
        case Mapping():
            return {name: _field_from_json(name, item) for name, item in value.items()}
        case list():
            return [from_json(item) for item in value]
    return value


def _field_from_json(name: str, value: Any) -> Any:
    if isinstance(value, str) and (name == "at" or name.endswith("At")):
        return datetime.fromisoformat(value)
    return value if name == "headers" else from_json(value)


def letter_from_json(document: Mapping[str, Any]) -> Document:
    """Return the letter that `letter_as_json` has converted, with the body that a replay would send as `current`."""
    letter: Document = {"_id" if name == "id" else name: _field_from_json(name, v) for name, v in document.items()}
    letter = _with_body(letter)
    if "edits" in letter:
        letter["edits"] = [_with_body(edit) for edit in letter["edits"]]
    if "body" in letter:
        bodies = [edit["body"] for edit in letter.get("edits", ()) if "body" in edit]
        letter["current"] = bodies[-1] if bodies else letter["body"]
    return letter


def _with_body(document: Document) -> Document:
    encoded = document.pop("bodyBase64", None)
    if encoded is not None:
        document["body"] = base64.b64decode(encoded)
    elif isinstance(document.get("body"), str):
        document["body"] = document["body"].encode()
    return document


def _body_as_json(body: bytes) -> dict[str, str]:
    try:
        return {"body": bytes(body).decode()}
    except UnicodeDecodeError:
        return {"bodyBase64": base64.b64encode(body).decode()}
