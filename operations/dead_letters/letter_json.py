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


def _body_as_json(body: bytes) -> dict[str, str]:
    try:
        return {"body": bytes(body).decode()}
    except UnicodeDecodeError:
        return {"bodyBase64": base64.b64encode(body).decode()}
