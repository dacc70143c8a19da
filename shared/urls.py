"""URLs of servers, which may hold a password: what a setting may be, and how a URL is shown."""

import re
from collections.abc import Callable

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


def _matching(pattern: str, example: str) -> Callable[[str], str]:
    """Return a check that gives a value back, or raises ValueError with what is allowed and nothing of the value."""
    compiled = re.compile(pattern, re.ASCII)

    def check(value: str) -> str:
        if compiled.fullmatch(value) and all(0 < port < 65536 for port in _ports(value)):
            return value
        encoding = ", special characters in user and password percent-encoded: # as %23, / as %2F, @ as %40, : as %3A"
        raise ValueError(f"allowed is {example}{encoding if 'password' in example else ''}")

    return check


def _ports(url: str) -> list[int]:
    hosts = re.split(r"[/?]", url.partition("://")[2], maxsplit=1)[0].rpartition("@")[2]
    return [int(port) for port in re.findall(r":(\d+)(?:,|$)", hosts)]


check_mongodb_url = _matching(
    rf"mongodb(?:\+srv)?://{_CREDENTIALS}{_HOST}(?:,{_HOST})*{_PATH}{_QUERY}",
    "mongodb://user:password@host:port/?replicaSet=rs0",
)
"""Refuse what is no URL of a MongoDB: one host, several, or the name of a list of them."""

check_amqp_url = _matching(rf"amqps?://{_CREDENTIALS}{_HOST}{_PATH}{_QUERY}", "amqp://user:password@host:port/vhost")
"""Refuse what is no URL of a RabbitMQ."""

check_service_url = _matching(rf"https?://{_CREDENTIALS}{_HOST}{_PATH}", "https://user:password@host:port/path")
"""Refuse what is no URL of a service, which may be behind a proxy with a login."""

check_api_url = _matching(rf"https?://{_HOST}{_PATH}", "https://host:port/path")
"""Refuse what is no URL of an API whose credentials are settings of their own."""

check_origin = _matching(rf"https?://{_HOST}", "https://host:port")
"""Refuse what is more than scheme, host and port."""
