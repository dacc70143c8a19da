"""URLs of servers, which may hold a password: what a setting may be, and how a URL is shown."""

import re

from pydantic import AfterValidator

_CHARACTER = r"(?:[\w.~!$&'()*+,;=-]|%[0-9A-Fa-f]{2})"
_CREDENTIALS = rf"(?:{_CHARACTER}*(?::{_CHARACTER}*)?@)?"
_HOST = r"(?:(?:[\w.-]|%[0-9A-Fa-f]{2})+|\[[0-9A-Fa-f:.]+\])(?::\d{1,5})?"
_PATH = rf"(?:/(?:{_CHARACTER}|[:@/])*)?"
_QUERY = rf"(?:\?(?:{_CHARACTER}|[:@/?])*)?"

# Greedy to the last @: a password that was not encoded may contain any character, an @ and line breaks too.
_SHOWN_CREDENTIALS = re.compile(r"://([^\s:/@]*:)?.*@", re.DOTALL)
_SHOWN_PARAMETER = re.compile(
    r"([?&;](?:[^=&\s]*(?:password|secret|token)[^=&\s]*|authMechanismProperties)=)[^&\s'\"]+", re.IGNORECASE
)
# What holds no password: a host, perhaps with a port, or a URL without any other colon and without an @.
_HARMLESS = re.compile(r"(?:[\w+.-]+://)?[\w.\[\]-]*(?::\d{1,5})?(?:[/?][^:@]*)?")


def hide_credentials(text: str) -> str:
    """Return the text with `***` in the place of passwords in a URL, also in a malformed one.

    Between the first `://` and the last `@` only the user's name stays, and that only where a colon follows it. More
    than the password is hidden where an unrelated @ follows, so give long texts line by line.
    """
    without = _SHOWN_CREDENTIALS.sub(lambda found: f"://{found[1] or ''}***@", text)
    return _SHOWN_PARAMETER.sub(r"\1***", without)


def hide_credentials_in_value(value: str) -> str:
    """Return what should be a URL, and may be anything, without what may be a password."""
    scheme = re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", value)
    if _HARMLESS.fullmatch(value) or (scheme and "@" in value):
        return hide_credentials(value)
    return f"{scheme[0] if scheme else ''}***"


def mongodb_url() -> AfterValidator:
    """Return a validator for the URL of a MongoDB: one host or several, or the name of a list of them."""
    pattern = rf"mongodb(?:\+srv)?://{_CREDENTIALS}{_HOST}(?:,{_HOST})*{_PATH}{_QUERY}"
    return _matching(pattern, "mongodb://user:password@host:port/?replicaSet=rs0")


def amqp_url() -> AfterValidator:
    """Return a validator for the URL of a RabbitMQ."""
    return _matching(rf"amqps?://{_CREDENTIALS}{_HOST}{_PATH}{_QUERY}", "amqp://user:password@host:port/vhost")


def http_url(*, credentials: bool = False, path: bool = False) -> AfterValidator:
    """Return a validator for the base URL of an HTTP API, with or without credentials and a path."""
    pattern = rf"https?://{_CREDENTIALS if credentials else ''}{_HOST}{_PATH if path else ''}"
    example = f"https://{'user:password@' if credentials else ''}host:port{'/path' if path else ''}"
    return _matching(pattern, example)


def _matching(pattern: str, example: str) -> AfterValidator:
    compiled = re.compile(pattern, re.ASCII)

    def check(value: str) -> str:
        if compiled.fullmatch(value) and all(0 < port < 65536 for port in _ports(value)):
            return value
        encoding = ", special characters in user and password percent-encoded: # as %23, / as %2F, @ as %40, : as %3A"
        raise ValueError(f"allowed is {example}{encoding if 'password' in example else ''}")

    return AfterValidator(check)


def _ports(url: str) -> list[int]:
    hosts = re.split(r"[/?]", url.partition("://")[2], maxsplit=1)[0].rpartition("@")[2]
    return [int(port) for port in re.findall(r":(\d+)(?:,|$)", hosts)]
