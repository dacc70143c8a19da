"""What operators do with dead letters, by the functions that the command line and the console use.

A message whose body was spoiled on its way is edited: by a patch if the body can still be read, or else as a whole. No
records of letters are kept: what is taken from the queue is sent again at once.
"""

from collections.abc import Mapping
from datetime import datetime
from itertools import count

import orjson
from pydantic import ValidationError

from operations.dead_letters.editing import check_body
from operations.dead_letters.letter import (
    current_body,
    identity,
    read_failure,
    record_of,
    replay_envelope,
    replay_message_id,
    why_not_replayable,
)
from operations.dead_letters.patching import LOCKABLE, LeftOut, edited, patch_from_example, read_patch
from shared.bus import Delivery, Envelope
from shared.contracts import BY_ROUTING_KEY
from shared.database import Document


class NotReplayableError(Exception):
    """An operator cannot send a dead letter again."""


class Operators:
    """The operators of one world."""

    def __init__(self) -> None:
        self._numbers = count(1)

    def replay(self, letter: Envelope, originals: Mapping[str, bytes], now: datetime) -> Envelope:
        """Return the message that replays a dead letter; one whose body was spoiled gets its original body again.

        Raises NotReplayableError.
        """
        delivery = _delivery(letter)
        failure = read_failure(delivery, now)
        record = record_of(identity(delivery, failure), delivery, failure, now)
        if (original := originals.get(letter.message_id)) is not None:
            record["edits"].append({"body": _mended(record, original)})
        if why := why_not_replayable(record):
            raise NotReplayableError(f"{letter.type} of {letter.correlation_id}: {why}")
        message_id = replay_message_id(f"replay-{next(self._numbers)}", record["_id"])
        return replay_envelope(record, message_id, current_body(record))


def _mended(record: Document, original: bytes) -> bytes:
    """Return the body after an edit that check_body allows."""
    try:
        orjson.loads(record["body"])
    except orjson.JSONDecodeError:
        check_body(record, original)
        return original
    patch = read_patch(patch_from_example(current_body(record), original.decode()))
    edit = edited(record, patch)
    if isinstance(edit, LeftOut):
        raise NotReplayableError(f"{record['routingKey']} of {record['orderId']}: {edit.reason} {edit.details}")
    return edit.body


def spoiled(envelope: Envelope) -> bytes:
    """Return the body of a message with a value that no handler can read; without such a value, a part of the body."""
    body, contract = orjson.loads(envelope.body), BY_ROUTING_KEY[envelope.type]
    for name in body:
        if name in LOCKABLE:
            continue
        changed = orjson.dumps({**body, name: {"spoiled": True}})
        try:
            contract.model_validate_json(changed)
        except ValidationError:
            return changed
    return envelope.body[: len(envelope.body) // 2]


def _delivery(letter: Envelope) -> Delivery:
    return Delivery(
        body=letter.body,
        queue="",
        exchange=letter.exchange,
        routing_key=letter.routing_key,
        type=letter.type or None,
        correlation_id=letter.correlation_id or None,
        message_id=letter.message_id or None,
        redelivered=False,
        headers=letter.headers,
        receipt=None,
    )
