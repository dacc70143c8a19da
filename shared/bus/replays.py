"""What a consumer tells operations about a dead letter that was sent again and that it has handled. Pure."""

from pydantic import ValidationError

from shared.bus import Delivery
from shared.bus.failures import REPLAY_OF
from shared.contracts import DeadLetterHandled


def handled_notice(delivery: Delivery) -> DeadLetterHandled | None:
    """The notice that the message was handled; None if it replays nothing, or does not name what in a sensible way."""
    if REPLAY_OF not in delivery.headers:
        return None
    try:
        return DeadLetterHandled(letter_id=delivery.headers[REPLAY_OF], message_id=delivery.message_id or "")
    except ValidationError:
        return None
