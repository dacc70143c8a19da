"""Publishing for an operator: to inboxes by their names, and to a broker that refuses messages for a while."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from operations.errors import UnreachableError
from shared.bus import Envelope
from shared.bus.backoff import Backoff
from shared.bus.publisher import Publisher, envelope
from shared.contracts import Message
from shared.errors import BusUnavailableError
from shared.topology import INBOXES, NOTIFICATION_INBOX

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


def to_inboxes(commands: Iterable[Message], headers: Mapping[str, Any] = MappingProxyType({})) -> list[Envelope]:
    """Address commands by name to the inboxes of those who answer them, so not to the one that only listens.

    The user of the console may send to inboxes, as it does for replays, but not publish the commands of a service.
    """
    return [
        replace(envelope(command, headers), exchange="", routing_key=inbox)
        for command in commands
        for inbox, messages in INBOXES.items()
        if type(command) in messages and inbox != NOTIFICATION_INBOX
    ]


async def publish_once(publisher: Publisher, envelopes: Sequence[Envelope]) -> None:
    """Publish. Raises UnreachableError unless the broker confirms all of them."""
    try:
        await publisher.publish(envelopes)
    except BusUnavailableError as error:
        raise UnreachableError(f"RabbitMQ does not answer: {error}") from error
