"""Publishing by a command, which waits for a broker that refuses messages, but not for ever."""

import asyncio
import time
from collections.abc import Awaitable, Callable

from operations.errors import UnreachableError
from shared.bus.backoff import Backoff
from shared.errors import BusUnavailableError

PUBLISH_SECONDS = 60.0
"""For how long a broker may refuse messages: its new queues may still elect their leaders."""


async def until_accepted(publish: Callable[[], Awaitable[None]]) -> None:
    """Publish, repeatedly while the broker refuses. Raises UnreachableError if it does for too long."""
    backoff, give_up_at = Backoff(), time.monotonic() + PUBLISH_SECONDS
    while True:
        try:
            await publish()
        except BusUnavailableError as error:
            if time.monotonic() > give_up_at:
                raise UnreachableError(f"RabbitMQ takes no messages: {error}. Run it again later") from error
            await asyncio.sleep(backoff.next())
        else:
            return
