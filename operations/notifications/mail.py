"""Sends one e-mail, within a time limit for all of it. What came of it is told in words, without any address."""

import asyncio
import contextlib
import smtplib
import socket
import ssl
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from email.message import EmailMessage
from email.utils import format_datetime
from typing import Any, Literal, NamedTuple

from operations.notifications.message import Message
from shared.tls import plain_reason

ANSWER_SECONDS = 15.0
"""The time limit for each answer of the mail server."""

TOTAL_SECONDS = 60.0
"""The time limit for an e-mail: a server may answer each command late, or letter by letter. Shorter than a lease."""

Security = Literal["starttls", "tls", "off"]


class Sent(NamedTuple):
    """What came of an attempt, in words; `again` is False if another one cannot succeed either.

    `left` has the addresses that did not get it, if others did: only they are tried again.
    """

    ok: bool
    words: str
    again: bool = True
    left: Sequence[str] = ()


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


async def send_mail(
    server: MailServer, message: Message, to: Sequence[str], threads: Executor, limit: float = TOTAL_SECONDS
) -> Sent:
    """Send an e-mail in a thread, because smtplib blocks; after `limit` seconds its connection is cut."""
    sending = _Sending(server)
    running = asyncio.get_running_loop().run_in_executor(threads, sending.run, _mail(server, message, to), to)
    running.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
    try:
        done, _ = await asyncio.wait({running}, timeout=limit)
        return running.result() if done else Sent(False, f"The mail server did not take it within {limit:g} s")
    finally:
        if not running.done():
            sending.abort()
            running.cancel()


def _mail(server: MailServer, message: Message, to: Sequence[str]) -> EmailMessage:
    mail = EmailMessage()
    mail["Subject"] = " ".join(message.title.split())[:200]
    mail["From"] = server.sender
    mail["To"] = ", ".join(to)
    mail["Date"] = format_datetime(message.at)
    # The same for each attempt, so that a mail server or a reader can tell a repetition.
    mail["Message-ID"] = f"<{message.id}@ordersaga>"
    mail["Auto-Submitted"] = "auto-generated"
    mail.set_content(message.text + "\n")
    return mail


class _Sending:
    """An e-mail on its way; `abort` may be called by another thread."""

    def __init__(self, server: MailServer) -> None:
        self._server = server
        self._aborted = False
        self.connection: smtplib.SMTP | None = None

    def run(self, mail: EmailMessage, to: Sequence[str]) -> Sent:
        server = self._server
        context = server.tls or ssl.create_default_context()
        try:
            with _Tls(self, context) if server.security == "tls" else _Plain(self) as connection:
                if self._aborted:
                    raise TimeoutError
                if server.security == "starttls":
                    connection.starttls(context=context)
                if server.username:
                    connection.login(server.username, server.password)
                refused = connection.send_message(mail)
        except smtplib.SMTPRecipientsRefused as error:
            return _refused(error.recipients, to)
        except (smtplib.SMTPException, OSError, UnicodeError) as error:
            return Sent(False, _words(error))
        return _refused(refused, to) if refused else Sent(True, "The mail server took it")

    def abort(self) -> None:
        self._aborted = True
        if self.connection is not None and self.connection.sock is not None:
            with contextlib.suppress(OSError):
                # Not that of a TLS socket, which would forget its encryption under the thread that uses it.
                socket.socket.shutdown(self.connection.sock, socket.SHUT_RDWR)

    @property
    def address(self) -> tuple[str, int]:
        return self._server.host, self._server.port


class _Plain(smtplib.SMTP):
    """A connection that can be aborted from its beginning on, while it waits for the server's greeting."""

    def __init__(self, sending: _Sending) -> None:
        sending.connection = self
        super().__init__(*sending.address, timeout=ANSWER_SECONDS)


class _Tls(smtplib.SMTP_SSL):
    """The same, encrypted from its beginning on."""

    def __init__(self, sending: _Sending, context: ssl.SSLContext) -> None:
        sending.connection = self
        super().__init__(*sending.address, timeout=ANSWER_SECONDS, context=context)


def _refused(refused: Mapping[str, tuple[int, Any]], to: Sequence[str]) -> Sent:
    """Return what it means that some addresses were refused: those are tried again if one may be taken later (4xx)."""
    codes = ", ".join(str(code) for code in sorted({code for code, _ in refused.values()}))
    again = any(400 <= code < 500 for code, _ in refused.values())
    if len(refused) == len(to):
        return Sent(False, f"The mail server refuses every address ({codes})", again)
    words = f"The mail server took it, but not for {len(refused)} of {len(to)} addresses ({codes})"
    return Sent(False, words, again, tuple(address for address in to if address in refused))


def _words(error: Exception) -> str:
    """Return why a mail server did not take a message. What it answered may quote addresses, so only its code is."""
    match error:
        case smtplib.SMTPAuthenticationError():
            return f"The mail server refuses the user or the password ({error.smtp_code})"
        case smtplib.SMTPNotSupportedError():
            return "The mail server does not offer what ORDERSAGA_SMTP_SECURITY or the user name needs"
        case smtplib.SMTPResponseException():
            return f"The mail server refuses the message ({error.smtp_code})"
        case UnicodeError():
            return "ORDERSAGA_SMTP_HOST, _USERNAME or _PASSWORD has characters that cannot be sent to a mail server"
        case ssl.SSLError():
            return f"The TLS handshake with the mail server failed: {plain_reason(str(error))}"
        case TimeoutError():
            return f"The mail server did not answer within {ANSWER_SECONDS:g} s"
        case ConnectionRefusedError():
            return "The mail server refuses connections"
        case smtplib.SMTPException():
            return "The mail server closed the connection"
        case _:
            return "The mail server cannot be reached"
