"""TLS: what this process trusts and presents when it connects, and what its HTTP server presents.

The files are those of the ORDERSAGA_TLS_... settings (docs/tls.md). They are read again when they change, so
certificates are replaced without a stop: new connections use the new ones.
"""

import os
import re
import ssl
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qsl, urlsplit

from shared.errors import StartError
from shared.watched_files import WatchedFiles

CERT_FILE = "ORDERSAGA_TLS_CERT_FILE"
KEY_FILE = "ORDERSAGA_TLS_KEY_FILE"
CA_FILE = "ORDERSAGA_TLS_CA_FILE"
OIDC_CA_FILE = "ORDERSAGA_OIDC_CA_FILE"
CLIENT_CA_FILE = "ORDERSAGA_TLS_CLIENT_CA_FILE"
CLIENT_CERT_FILE = "ORDERSAGA_TLS_CLIENT_CERT_FILE"
CLIENT_KEY_FILE = "ORDERSAGA_TLS_CLIENT_KEY_FILE"

_OWN_AMQP_OPTIONS = frozenset({"cafile", "capath", "cadata", "certfile", "keyfile", "no_verify_ssl"})

_REASONS = (
    (
        re.compile(r"certificate verify failed: (self[- ]signed.*?|unable to get (?:local )?issuer.*?)(?: \(_ssl|$)"),
        rf"its certificate is not from a trusted CA (\1): {CA_FILE} names the CAs to trust",
    ),
    (re.compile(r"certificate verify failed: (.*?)\.?(?: \(_ssl|$)"), r"its certificate is not accepted: \1"),
    (
        re.compile(
            r"WRONG_VERSION_NUMBER|wrong version number|record layer failure|PACKET_LENGTH_TOO_LONG|http request"
        ),
        "it does not speak TLS on this port",
    ),
    (
        re.compile(r"CERTIFICATE_REQUIRED|certificate required|ALERT_HANDSHAKE_FAILURE"),
        f"it requires a client certificate: {CLIENT_CERT_FILE} and {CLIENT_KEY_FILE} name one",
    ),
    (re.compile(r"ALERT_UNKNOWN_CA|ALERT_BAD_CERTIFICATE|ALERT_CERTIFICATE"), "it refuses the client certificate"),
)


class LiveContext(ssl.SSLContext):
    """A context for clients whose new connections use the present files."""

    _current: Callable[[], ssl.SSLContext]

    @classmethod
    def of(cls, current: Callable[[], ssl.SSLContext]) -> Self:
        """Return a context that passes each new connection on to the present one."""
        made = cls(ssl.PROTOCOL_TLS_CLIENT)
        made._current = current
        return made

    def wrap_bio(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = False,
        server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,  # noqa: ARG002 - of a context that may have been replaced
    ) -> ssl.SSLObject:
        """Begin a connection; called by asyncio and the HTTP clients."""
        return self._current().wrap_bio(incoming, outgoing, server_side=server_side, server_hostname=server_hostname)

    def wrap_socket(self, sock: Any, *arguments: Any, **options: Any) -> Any:
        """Begin a connection; called by synchronous clients."""
        options.pop("session", None)
        return self._current().wrap_socket(sock, *arguments, **options)


def client_context(environment: Mapping[str, str] = os.environ) -> ssl.SSLContext:
    """Return the context for connections to MongoDB, RabbitMQ and services: verified, TLS 1.2 or later.

    Trusts the CAs in ORDERSAGA_TLS_CA_FILE alone, or those of the system, and presents the client certificate if there
    is one. Raises StartError if a file cannot be used.
    """
    return _client_context(*(environment.get(name) or None for name in (CA_FILE, CLIENT_CERT_FILE, CLIENT_KEY_FILE)))


@cache
def _client_context(ca: str | None, certificate: str | None, key: str | None) -> ssl.SSLContext:
    paths = [Path(path) for path in (ca, certificate, key) if path]
    if not paths:
        return system_context()
    files = WatchedFiles(paths, lambda: _read_client_files(ca, certificate, key), "client certificates")
    return LiveContext.of(files.current)


def _read_client_files(ca: str | None, certificate: str | None, key: str | None) -> ssl.SSLContext:
    context = _trusting(CA_FILE, Path(ca)) if ca else _trusting_system()
    if certificate or key:
        if not (certificate and key):
            raise StartError(f"{CLIENT_CERT_FILE} and {CLIENT_KEY_FILE} must be set together")
        _load_pair(context, (CLIENT_CERT_FILE, Path(certificate)), (CLIENT_KEY_FILE, Path(key)))
    return context


@cache
def system_context() -> ssl.SSLContext:
    """Return a context that trusts the CAs of the system, which are read for the first connection.

    Reading them takes a twentieth of a second, and most processes never make a connection that needs them.
    """
    return LiveContext.of(cache(_trusting_system))


def _trusting_system() -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def issuer_context(ca: Path | None) -> ssl.SSLContext:
    """Return the context for connections to an OpenID Connect issuer: verified by the CAs in this file alone.

    Without a file, by those of the system. Raises StartError if the file cannot be used.
    """
    if ca is None:
        return system_context()
    return LiveContext.of(WatchedFiles([ca], lambda: _trusting(OIDC_CA_FILE, ca), "CAs of the issuer").current)


def amqp_context(url: str) -> ssl.SSLContext | None:
    """Return the context for RabbitMQ; None for a connection without TLS, or whose URL names certificates itself."""
    if not url.lower().startswith("amqps:"):
        return None
    named = {name for name, _ in parse_qsl(urlsplit(url).query, keep_blank_values=True)}
    return None if named & _OWN_AMQP_OPTIONS else client_context()


def server_context(certificate: Path, key: Path, client_ca: Path | None) -> Callable[[], ssl.SSLContext]:
    """Return a function that returns the context for the next connection to the HTTP server.

    With `client_ca`, clients need a certificate from one of its CAs. Raises StartError if a file cannot be used now.
    """
    paths = [path for path in (certificate, key, client_ca) if path]
    read = WatchedFiles(paths, lambda: _read_server_files(certificate, key, client_ca), "server certificate")
    return read.current


def _read_server_files(certificate: Path, key: Path, client_ca: Path | None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION  # which costs a server much more than a client
    _load_pair(context, (CERT_FILE, certificate), (KEY_FILE, key))
    if client_ca is not None:
        _load_authorities(context, CLIENT_CA_FILE, client_ca)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _trusting(variable: str, ca: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    _load_authorities(context, variable, ca)
    return context


def _load_pair(context: ssl.SSLContext, certificate: tuple[str, Path], key: tuple[str, Path]) -> None:
    for variable, path in (certificate, key):
        _check_readable(variable, path)
    try:
        context.load_cert_chain(certificate[1], key[1], password=_no_password)
    except (ssl.SSLError, ValueError) as error:
        names = f"{certificate[0]}={certificate[1]} and {key[0]}={key[1]}"
        raise StartError(f"{names} cannot be used: {_pair_problem(error)}") from None


def _no_password() -> str:
    """Keep OpenSSL from asking for a password at the terminal."""
    return ""


def _pair_problem(error: Exception) -> str:
    reason = (error.reason or "") if isinstance(error, ssl.SSLError) else ""
    if reason == "KEY_VALUES_MISMATCH":
        return "the key is not the one of the certificate"
    if "EE_KEY_TOO_SMALL" in reason or "CA_MD_TOO_WEAK" in reason:
        return "the key or the signature is too weak"
    return "a certificate chain and its key without a password are needed, both as PEM"


def _load_authorities(context: ssl.SSLContext, variable: str, path: Path) -> None:
    _check_readable(variable, path)
    try:
        context.load_verify_locations(cafile=path)
    except ssl.SSLError:
        raise StartError(f"{variable}={path} has no certificates as PEM") from None


def _check_readable(variable: str, path: Path) -> None:
    try:
        with path.open("rb"):
            return
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else type(error).__name__
        raise StartError(f"{variable}={path} cannot be read: {reason}") from None


def plain_reason(text: str) -> str:
    """Return an error's text with the reason of OpenSSL, if there is one, in plain words."""
    for pattern, words in _REASONS:
        if found := pattern.search(text):
            return found.expand(words) if "\\1" in words else words
    return text
