"""Sends the messages that are due. Any number of processes may do so at once."""

import asyncio
import traceback
from collections import Counter

import structlog
from pymongo.errors import PyMongoError

from operations.notifications.channels import Channels
from operations.notifications.mail import Sent
from operations.notifications.records import NotificationRecords, message_of
from shared.background import run_periodically
from shared.database import Document
from shared.outage_words import in_words

LOOK_SECONDS = 2.0
AT_ONCE = 10
"""The messages that a process sends by one channel at the same time, so that one that hangs holds up no other."""

_log = structlog.get_logger(__name__)


class Dispatcher:
    """Opens and sends messages."""

    def __init__(self, records: NotificationRecords, channels: Channels, public_url: str | None) -> None:
        self._records = records
        self._channels = channels
        self._public_url = public_url
        self._sending: dict[asyncio.Task[None], str] = {}

    async def run(self) -> None:
        """Work until cancelled."""
        try:
            await run_periodically(self.work, every=LOOK_SECONDS, name="notifications")
        finally:
            for task in self._sending:
                task.cancel()
            await asyncio.gather(*self._sending, return_exceptions=True)

    async def work(self) -> None:
        """Open what is due, and begin to send what waits, by the channels that are not full."""
        await self._records.open_due()
        while (message := await self._records.claim(self._full())) is not None:
            task = asyncio.create_task(self._send(message), name="notification")
            self._sending[task] = message["channel"]
            task.add_done_callback(self._sending.pop)

    async def finish(self) -> None:
        """Wait for what is being sent."""
        await asyncio.gather(*self._sending)

    def _full(self) -> list[str]:
        return [channel for channel, count in Counter(self._sending.values()).items() if count >= AT_ONCE]

    async def _send(self, message: Document) -> None:
        try:
            sent = await self._channels.send(message_of(message, self._public_url), message["channel"], message["to"])
        except Exception as error:  # noqa: BLE001 - it must be recorded, or the message is tried for ever
            # Without the error's text, which may quote a password or an address.
            name, trace = type(error).__name__, "".join(traceback.format_tb(error.__traceback__, limit=-20))
            _log.error("a notification failed", message=message["_id"], error=name, exception=trace)
            sent = Sent(False, f"It could not be sent ({name}). The log of the console has the details.")
        try:
            await self._records.record(message, sent)
        except PyMongoError as error:  # it is sent again after its lease
            _log.warning("the result of a notification is not recorded", message=message["_id"], reason=in_words(error))
