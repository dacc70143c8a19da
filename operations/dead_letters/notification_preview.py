"""What a replay would do with webhooks, by the notification service's own decisions. Pure.

Which webhooks there are is not known to operations, because their secrets are recorded with them, nor what they have
got. So the event is known, and not whether it changes anything.
"""

from datetime import datetime

from notification_service.events import MESSAGES, event_from
from operations.dead_letters.effects import Effect, Preview, no_preview
from operations.dead_letters.masking import mask_text
from shared.contracts import Message


def preview_notification(message: Message, now: datetime) -> Preview:
    """Return what the notification service would do with a message."""
    if not isinstance(message, MESSAGES):
        return no_preview(message)
    try:
        event = event_from(message, now)
    except ValueError as error:
        return Preview(Effect.FAILS, mask_text(f"{type(error).__name__}: {error}"))
    whose = "the staff's webhooks" if event.for_staff else "its owner's webhooks"
    return Preview(Effect.UNKNOWN, f"{event.type} goes to those of {whose} that asked for it and have not got it yet")
