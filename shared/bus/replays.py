"""The notice that a consumer sends to operations after handling a replayed dead letter. Pure functions."""

from pydantic import ValidationError

from shared.bus import Delivery
from shared.bus.failures import REPLAY_OF
from shared.contracts import DeadLetterHandled


def handled_notice(delivery: Delivery) -> DeadLetterHandled | None:
    """Return the notice that the message was handled; None if it is no replay or has an invalid id."""
    if REPLAY_OF not in delivery.headers:
        return None
    try:
        return DeadLetterHandled(letter_id=delivery.headers[REPLAY_OF], message_id=delivery.message_id or "")
    except ValidationError:
        return None
