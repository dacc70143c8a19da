"""Whether a body that an operator has written can be sent in the place of the one that failed. Pure."""

import orjson
from pydantic import ValidationError

from operations.dead_letters.letter import type_of
from shared.bus.reading import MAX_BODY_BYTES
from shared.contracts import BY_ROUTING_KEY
from shared.database import Document
from shared.topology import INBOXES

MOST_EDITS = 10
"""Edits of one letter, which keeps each of them."""


class InvalidBodyError(Exception):
    """The body cannot be sent; `errors` name each field with what is wrong, "body" for the body as a whole."""

    def __init__(self, errors: list[tuple[str, str]]) -> None:
        super().__init__("; ".join(f"{field}: {message}" for field, message in errors))
        self.errors = errors


def check_body(letter: Document, body: bytes) -> None:
    """Raise InvalidBodyError unless the body is JSON and a valid message of the letter's type."""
    type_ = type_of(letter)
    contract = BY_ROUTING_KEY.get(type_)
    if contract is None:
        known = ", ".join(sorted(BY_ROUTING_KEY))
        raise InvalidBodyError([("type", f"there is no message type {type_!r}, whatever its body; there are {known}")])
    if contract not in INBOXES.get(letter["queue"], ()):
        raise InvalidBodyError([("type", f"{type_} is not handled in {letter['queue']}, whatever its body")])
    if len(body) > MAX_BODY_BYTES:
        raise InvalidBodyError([("body", f"has {len(body)} bytes, allowed are {MAX_BODY_BYTES}")])
    try:
        orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidBodyError([("body", f"is not JSON: {error}")]) from None
    try:
        contract.model_validate_json(body)
    except ValidationError as error:
        raise InvalidBodyError([_explained(problem) for problem in error.errors(include_url=False)]) from None


def _explained(problem: object) -> tuple[str, str]:
    location = problem["loc"]  # type: ignore[index]
    message = problem["msg"].removeprefix("Value error, ")  # type: ignore[index]
    if problem["type"] == "missing":  # type: ignore[index]  # its input is all that is there
        return ".".join(map(str, location)), "is required"
    given = repr(problem["input"])  # type: ignore[index]
    shown = given if len(given) <= 80 else f"{given[:79]}…"
    return ".".join(map(str, location)) or "body", f"{message} (got {shown})"
