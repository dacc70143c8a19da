"""Sends one message: to a webhook, to Slack or by e-mail. Addresses with secrets come from settings, never from rules.

What came of an attempt is told in words, without any address or password.
"""

import asyncio
import smtplib
import ssl
from collections.abc import Sequence
from dataclasses import dataclass, field
from email.message import EmailMessage
from email.utils import format_datetime
from http import HTTPStatus
from typing import Literal, NamedTuple

import orjson

from notification_service.sender import Outcome, Sender
from notification_service.signing import sign
from operations.notifications.message import Message
from operations.notifications.rules import EMAIL, SLACK, WEBHOOK
from shared.clock import Clock, utc_now
from shared.tls import plain_reason

TIMEOUT_SECONDS = 15.0
Security = Literal["starttls", "tls", "off"]

_CONTENT = {"content-type": "application/json", "user-agent": "ordersaga-notifications/1"}


class Sent(NamedTuple):
    """What came of an attempt, in words; `again` is False if another one cannot succeed either."""

    ok: bool
    words: str
    again: bool = True


@dataclass(frozen=True, slots=True)
class MailServer:
    """The server that takes our e-mail; without a user name, nobody signs in."""

    host: str
    port: int
    security: Security
    sender: str
    username: str = ""
    password: str = field(default="", repr=False)
    tls: ssl.SSLContext | None = None


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

    async def send(self, message: Message, channel: str, to: Sequence[str]) -> Sent:
        """Send a message; a failure is the result."""
        destinations = self._destinations
        if channel not in destinations.usable:
            return Sent(False, f"not sent: {_MISSING[channel]} must be set for the console", again=False)
        if channel == EMAIL and destinations.mail is not None:
            return await asyncio.to_thread(_mail, destinations.mail, message, to)
        if channel == SLACK and destinations.slack_url is not None:
            body = orjson.dumps(message.as_slack())
            return _answered(await self._sender.send(destinations.slack_url, _CONTENT, body))
        body = orjson.dumps(message.as_json())
        signed = sign([destinations.webhook_secret or ""], message.id, self._clock(), body)
        return _answered(await self._sender.send(destinations.webhook_url or "", _CONTENT | signed, body))

    async def close(self) -> None:
        """Close the connections."""
        await self._sender.close()


def _answered(outcome: Outcome) -> Sent:
    if outcome.error is not None:
        return Sent(False, outcome.error)
    status = HTTPStatus(outcome.status) if outcome.status in list(HTTPStatus) else None
    words = f"It answered {outcome.status}" + (f" ({status.phrase})" if status else "")
    return Sent(outcome.status is not None and 200 <= outcome.status < 300, words)


def _mail(server: MailServer, message: Message, to: Sequence[str]) -> Sent:
    """Send an e-mail; runs in a thread, because smtplib blocks."""
    mail = EmailMessage()
    mail["Subject"] = " ".join(message.title.split())[:200]
    mail["From"] = server.sender
    mail["To"] = ", ".join(to)
    mail["Date"] = format_datetime(message.at)
    # The same for each attempt, so that a mail server or a reader can tell a repetition.
    mail["Message-ID"] = f"<{message.id}@ordersaga>"
    mail["Auto-Submitted"] = "auto-generated"
    mail.set_content(message.text + "\n")
    context = server.tls or ssl.create_default_context()
    try:
        connect = (
            smtplib.SMTP_SSL(server.host, server.port, timeout=TIMEOUT_SECONDS, context=context)
            if server.security == "tls"
            else smtplib.SMTP(server.host, server.port, timeout=TIMEOUT_SECONDS)
        )
        with connect as connection:
            if server.security == "starttls":
                connection.starttls(context=context)
            if server.username:
                connection.login(server.username, server.password)
            refused = connection.send_message(mail)
    except (smtplib.SMTPException, OSError) as error:
        return Sent(False, _mail_words(error))
    if refused:
        return Sent(True, f"The mail server took it, but not for {len(refused)} of {len(to)} addresses")
    return Sent(True, "The mail server took it")


def _mail_words(error: Exception) -> str:
    """Return why a mail server did not take a message. What it answered may quote addresses, so only its code is."""
    match error:
        case smtplib.SMTPAuthenticationError():
            return f"The mail server refuses the user or the password ({error.smtp_code})"
        case smtplib.SMTPRecipientsRefused():
            return "The mail server refuses every address"
        case smtplib.SMTPNotSupportedError():
            return "The mail server does not offer what ORDERSAGA_SMTP_SECURITY or the user name needs"
        case smtplib.SMTPResponseException():
            return f"The mail server refuses the message ({error.smtp_code})"
        case ssl.SSLError():
            return f"The TLS handshake with the mail server failed: {plain_reason(str(error))}"
        case TimeoutError():
            return f"The mail server did not answer within {TIMEOUT_SECONDS:g} s"
        case ConnectionRefusedError():
            return "The mail server refuses connections"
        case smtplib.SMTPException():
            return "The mail server closed the connection"
        case _:
            return "The mail server cannot be reached"
