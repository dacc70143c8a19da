"""Removes what dead letters of a user say about the person. Pure.

Messages of the services name a user by an id only. But an operator may have edited one, and a foreign sender may send
anything. So the personal fields of a JSON body with the user's id go, at any depth, and what they had is removed from
the text of errors. Payment tokens stay: a replay needs them.
"""

from typing import Any

import orjson

from operations.dead_letters.letter import body_text, words_of
from operations.dead_letters.masking import MASK, is_personal, texts_of
from shared.database import Document


def without_person(letter: Document, user_id: str) -> Document | None:
    """Return the fields of a letter that change when the person is erased, None if it says nothing about them."""
    bodies = [letter["body"], *(edit["body"] for edit in letter["edits"])]
    erased = [_erased(bytes(body), user_id) if body is not None else None for body in bodies]
    known = {text for body, found in zip(bodies, erased, strict=True) if found for text in _personal_texts(bytes(body))}
    if not any(found is not None for found in erased):
        return None
    kept = [found if found is not None else body for body, found in zip(bodies, erased, strict=True)]
    error = {name: _without(text, known) for name, text in letter["error"].items()}
    body = bytes(kept[0]) if kept[0] is not None else None
    return {
        "body": body,
        "bodyText": body_text(body) if body is not None else letter.get("bodyText"),
        "edits": [edit | {"body": body} for edit, body in zip(letter["edits"], kept[1:], strict=True)],
        "error": error,
        "words": words_of(letter["orderId"] or "", letter["messageId"], error["type"], error["message"], body),
    }


def _erased(body: bytes, user_id: str) -> bytes | None:
    """Return the body of a message about a user without its personal fields, None if it has none."""
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(value, dict) or value.get("userId") != user_id:
        return None
    without = _strip(value)
    return None if without == value else orjson.dumps(without)


def _strip(value: Any) -> Any:
    match value:
        case dict():
            return {name: _strip(item) for name, item in value.items() if not is_personal(name)}
        case list():
            return [_strip(item) for item in value]
    return value


def _personal_texts(body: bytes) -> set[str]:
    return texts_of(orjson.loads(body), is_personal)


def _without(text: Any, known: set[str]) -> Any:
    if isinstance(text, str):
        for value in sorted(known, key=len, reverse=True):
            text = text.replace(value, MASK)
    return text
