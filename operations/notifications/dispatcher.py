"""Sends the messages that are due. Any number of processes may do so at once."""

import asyncio

from operations.notifications.channels import Channels
from operations.notifications.records import NotificationRecords, message_of
from shared.background import run_periodically
from shared.database import Document

LOOK_SECONDS = 2.0
AT_ONCE = 10
"""The messages that a process sends at the same time, so that one that hangs holds up no other."""


class Dispatcher:
    """Opens and sends messages."""

    def __init__(self, records: NotificationRecords, channels: Channels, public_url: str | None) -> None:
        self._records = records
        self._channels = channels
        self._public_url = public_url

    async def run(self) -> None:
        """Work until cancelled."""
        await run_periodically(self.work, every=LOOK_SECONDS, name="notifications")

    async def work(self) -> bool:
        """Open what is due, and send what waits; return whether there may be more to send."""
        await self._records.open_due()
        claimed: list[Document] = []
        while len(claimed) < AT_ONCE and (message := await self._records.claim()) is not None:
            claimed.append(message)
        await asyncio.gather(*map(self._send, claimed))
        return len(claimed) == AT_ONCE

    async def _send(self, message: Document) -> None:
        sent = await self._channels.send(message_of(message, self._public_url), message["channel"], message["to"])
        await self._records.record(message, sent)
