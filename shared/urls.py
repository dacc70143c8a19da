"""URLs of servers, which may contain a password: validation for settings, and masking for output."""

import re
from collections.abc import Callable
from urllib.parse import urlsplit

_CHARACTER = r"(?:[\w.~!$&'()*+,;=-]|%[0-9A-Fa-f]{2})"
_CREDENTIALS = rf"(?:{_CHARACTER}*(?::{_CHARACTER}*)?@)?"
_HOST = r"(?:(?:[\w.-]|%[0-9A-Fa-f]{2})+|\[[0-9A-Fa-f:.]+\])(?::\d{1,5})?"
_PATH = rf"(?:/(?:{_CHARACTER}|[:@/])*)?"
_QUERY = rf"(?:\?(?:{_CHARACTER}|[:@/?])*)?"

_AMQP_URL = re.compile(rf"amqps?://{_CREDENTIALS}{_HOST}{_PATH}{_QUERY}", re.ASCII)

# Greedy to the last @: a password that was not encoded may contain any character, an @ and line breaks too.
_SHOWN_CREDENTIALS = re.compile(r"://([^\s:/@]*:)?.*@", re.DOTALL)
_SHOWN_PARAMETER = re.compile(
    r"([?&;](?:[^=&\s]*(?:password|secret|token)[^=&\s]*|authMechanismProperties)=)[^&\s'\"]+", re.IGNORECASE
)
# Cannot contain a password: a host with or without a port, or a URL without any other colon and without an @.
_HARMLESS = re.compile(r"(?:[\w+.-]+://)?[\w.\[\]-]*(?::\d{1,5})?(?:[/?][^:@]*)?")


def hide_credentials(text: str) -> str:
    """Return the text with `***` instead of the passwords of URLs, malformed ones included.

    The nodes of a RabbitMQ cluster are all shown.

    Between the first `://` and the last `@`, only a user name that is followed by a colon is kept. An unrelated @ later
    in the text hides more than the password, so pass long texts line by line.
    """
    nodes = split_amqp_url(text)
    if len(nodes) > 1 and all(_AMQP_URL.fullmatch(node) and ("@" in node) == ("@" in text) for node in nodes):
        return ",".join(map(hide_credentials, nodes))
    without = _SHOWN_CREDENTIALS.sub(lambda found: f"://{found[1] or ''}***@", text)
    return _SHOWN_PARAMETER.sub(r"\1***", without)


def hide_credentials_in_value(value: str) -> str:
    """Return a value that should be a URL, but may be anything, without a possible password."""
    scheme = re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", value)
    if _HARMLESS.fullmatch(value) or (scheme and "@" in value):
        return hide_credentials(value)
    return f"{scheme[0] if scheme else ''}***"


def _matching(pattern: str, example: str) -> Callable[[str], str]:
    """Return a check that returns valid values and raises ValueError, which says what is allowed, for all others."""
    compiled = re.compile(pattern, re.ASCII)

    def check(value: str) -> str:
        if compiled.fullmatch(value) and all(0 < port < 65536 for port in _ports(value)):
            return value
        encoding = ", special characters in user and password percent-encoded: # as %23, / as %2F, @ as %40, : as %3A"
        raise ValueError(f"allowed is {example}{encoding if 'password' in example else ''}")

    return check


def _ports(url: str) -> list[int]:
    return [int(port) for port in re.findall(r":(\d+)(?:,|$)", _hosts(url))]


def _hosts(url: str) -> str:
    return re.split(r"[/?]", url.partition("://")[2], maxsplit=1)[0].rpartition("@")[2]


check_mongodb_url = _matching(
    rf"mongodb(?:\+srv)?://{_CREDENTIALS}{_HOST}(?:,{_HOST})*{_PATH}{_QUERY}",
    "mongodb://user:password@host:port/?replicaSet=rs0",
)
"""Accept URLs of MongoDB only: with one host, several hosts, or the DNS name of a seed list."""


def names_several_members(mongodb_url: str) -> bool:
    """Return whether a URL names several members of a replica set: by their hosts, or by a DNS name for all."""
    return "," in _hosts(mongodb_url) or mongodb_url.startswith("mongodb+srv:")


_check_amqp_node = _matching(_AMQP_URL.pattern, "amqp://user:password@host:port/vhost")


def split_amqp_url(value: str) -> list[str]:
    """Return the URLs of the nodes that a value names, separated by commas. A password may contain commas, too."""
    return re.split(r",(?=amqps?://)", value)


def check_amqp_url(value: str) -> str:
    """Accept the URL of RabbitMQ, or those of several nodes of one cluster, which have the same users and content.

    Raises ValueError, which says what is allowed.
    """
    nodes = split_amqp_url(value)
    first, *others = (urlsplit(_check_amqp_node(node)) for node in nodes)
    for node in others:
        if (node.username, node.password, node.path or "/") != (first.username, first.password, first.path or "/"):
            raise ValueError("the nodes of one cluster have the same user, password and virtual host in each URL")
    return value


check_service_url = _matching(rf"https?://{_CREDENTIALS}{_HOST}{_PATH}", "https://user:password@host:port/path")
"""Accept URLs of a service only; they may have a user and password for a proxy."""

check_api_url = _matching(rf"https?://{_HOST}{_PATH}", "https://host:port/path")
"""Accept URLs of an API without credentials, which are separate settings."""

check_origin = _matching(rf"https?://{_HOST}", "https://host:port")
"""Accept only a scheme, a host and a port."""


LOOPBACK_HOSTS = frozenset({"127.0.0.1", "::1", "localhost"})
"""The hosts by which only this machine can be reached."""


def is_unalterable(url: str) -> bool:
    """Return whether nobody on the way can change what this URL answers: https, or this machine."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return False
    return parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in LOOPBACK_HOSTS)
