"""Sends one message: to a webhook, to Slack or by e-mail. Addresses with secrets come from settings, never from rules.

What came of an attempt is told in words, without any address or password.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http import HTTPStatus

import orjson

from notification_service.sender import Outcome, Sender
from notification_service.signing import sign
from operations.notifications.mail import MailServer, Sent, send_mail
from operations.notifications.message import Message
from operations.notifications.rules import EMAIL, SLACK, WEBHOOK
from shared.clock import Clock, utc_now

TIMEOUT_SECONDS = 15.0
MAILERS = 20
"""The most threads that send e-mail. One that looks up a name, which nothing can abort, may outlast its time limit."""

_CONTENT = {"content-type": "application/json", "user-agent": "ordersaga-notifications/1"}


@dataclass(frozen=True, slots=True)
class Destinations:
    """Where messages can go; what is not set cannot be used."""

    webhook_url: str | None = field(default=None, repr=False)
    webhook_secret: str | None = field(default=None, repr=False)
    slack_url: str | None = field(default=None, repr=False)
    mail: MailServer | None = None

    @property
    def usable(self) -> Sequence[str]:
        """The channels that can be used."""
        known = {WEBHOOK: self.webhook_url and self.webhook_secret, SLACK: self.slack_url, EMAIL: self.mail}
        return [channel for channel, destination in known.items() if destination]


_MISSING = {
    WEBHOOK: "ORDERSAGA_NOTIFY_WEBHOOK_URL and ORDERSAGA_NOTIFY_WEBHOOK_SECRET",
    SLACK: "ORDERSAGA_NOTIFY_SLACK_URL",
    EMAIL: "ORDERSAGA_SMTP_HOST and ORDERSAGA_SMTP_FROM",
}


class Channels:
    """Sends messages to the destinations."""

    def __init__(self, destinations: Destinations, sender: Sender, clock: Clock = utc_now) -> None:
        self._destinations = destinations
        self._sender = sender
        self._clock = clock
        self._mailers = ThreadPoolExecutor(MAILERS, thread_name_prefix="mail")

    async def send(self, message: Message, channel: str, to: Sequence[str]) -> Sent:
        """Send a message; a failure is the result."""
        destinations = self._destinations
        if channel not in destinations.usable:
            return Sent(False, f"not sent: {_MISSING[channel]} must be set for the console", again=False)
        if channel == EMAIL and destinations.mail is not None:
            return await send_mail(destinations.mail, message, to, self._mailers)
        if channel == SLACK and destinations.slack_url is not None:
            body = orjson.dumps(message.as_slack())
            return _answered(await self._sender.send(destinations.slack_url, _CONTENT, body))
        body = orjson.dumps(message.as_json())
        signed = sign([destinations.webhook_secret or ""], message.id, self._clock(), body)
        return _answered(await self._sender.send(destinations.webhook_url or "", _CONTENT | signed, body))

    async def close(self) -> None:
        """Close the connections."""
        await self._sender.close()
        self._mailers.shutdown(wait=False, cancel_futures=True)


def _answered(outcome: Outcome) -> Sent:
    if outcome.error is not None:
        return Sent(False, outcome.error)
    status = HTTPStatus(outcome.status) if outcome.status in list(HTTPStatus) else None
    words = f"It answered {outcome.status}" + (f" ({status.phrase})" if status else "")
    return Sent(outcome.status is not None and 200 <= outcome.status < 300, words)
