"""Parsing of SmartVPS's answers. Pure.

An answer may be plain text, JSON, or JSON encoded as JSON again, with keys in any spelling. It is accepted only if it
is unambiguous: a guess could give a customer the wrong server, while an error only costs another attempt.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import orjson

from provisioning_service.addresses import is_ipv4
from provisioning_service.provider import Access, Package
from shared.errors import ExternalSystemError

MOST_ENCODINGS = 5
"""The number of times that an answer may be encoded as JSON."""
LONGEST_LABEL = 128
LONGEST_PASSWORD = 1024

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_IPV4 = re.compile(r"(?<![\d.])\d{1,3}(?:\.\d{1,3}){3}(?!\.?\d)", re.ASCII)

# Keys as `_plain` normalises them.
_ASSIGNED = ("assigned", "assignedip", "assignedipv4", "assignedaddress", "newip")
_ADDRESS = ("ip", "ipv4", "address", "ipaddress", "mainip", "serverip", "vpsip", "primaryip")
_OTHER_ADDRESS = (
    *("requested", "requestedip", "orderedip", "askedip", "gateway", "netmask", "mask", "subnet", "network"),
    *("broadcast", "dns", "dns1", "dns2", "nameserver", "nameservers"),
)
_USERNAME = ("username", "usernane", "user", "login")
_PASSWORD = ("password", "pass", "passwd")
_OS = ("os", "operatingsystem")
_EXPIRY = ("expirydate", "expiry", "expires", "expiresat", "expirationdate")
_ENVELOPE = ("data", "result", "response", "server", "vps")

_FAILURE_KEYS = ("error", "errors")
_SUCCESS_KEYS = ("success", "ok")
_NEGATIVE = ("", "0", "false", "no", "none", "null")
_FAILURE_WORDS = re.compile(
    r"\b(error|fail|failed|failure|unavailable|not available|sold out|already (in use|sold|taken))\b", re.IGNORECASE
)


class UnusableAnswerError(ExternalSystemError):
    """The answer is unusable or ambiguous; the text contains no part of it."""


def decoded(body: bytes) -> object:
    """Decode an answer, however many times it is encoded; text that is not JSON is returned unchanged."""
    return _unwrapped(body.decode("utf-8", "replace").removeprefix("\ufeff"))


def assigned_ip(answer: object) -> str:
    """Return the IPv4 that was assigned according to an answer to `buyvps`.

    If there are several, the keys decide: "assigned" before "ip" before any other.
    """
    leaves = list(_leaves(answer))
    if any(_reports_failure(key, value) for key, value in leaves):
        raise UnusableAnswerError("an answer that reports an error")
    by_rank: dict[int, set[str]] = {}
    for key, value in leaves:
        ips = {ip for ip in _IPV4.findall(value) if is_ipv4(ip)} if isinstance(value, str) else set()
        if ips and key not in _OTHER_ADDRESS:
            by_rank.setdefault(_rank(key), set()).update(ips)
    if not by_rank:
        raise UnusableAnswerError("an answer without an IPv4")
    best = by_rank[min(by_rank)]
    if len(best) > 1:
        raise UnusableAnswerError("an answer with several IPv4s, and nothing that says which was assigned")
    return best.pop()


def access(answer: object, asked: str) -> Access:
    """Return the access to the server with this address, from an answer to `status`.

    The username must fit a message: 1 to 128 characters, none of them a control character.
    """
    fields = {_plain(key): value for key, value in _record(answer).items()}
    if any(str(about).strip() != asked for about in _given(fields, _ADDRESS)):
        raise UnusableAnswerError("an answer about another address")
    username = next(_texts(fields, _USERNAME), "").strip()
    password = next(_texts(fields, _PASSWORD), "")
    if not username or not password:
        raise UnusableAnswerError(f"an answer without a {'password' if username else 'username'}")
    if len(username) > LONGEST_LABEL or _CONTROL.search(username) or len(password) > LONGEST_PASSWORD:
        raise UnusableAnswerError("an answer with a username or a password that cannot be one")
    os, expires_at = (_label(next(_texts(fields, names), "")) for names in (_OS, _EXPIRY))
    return Access(asked, username, password, os, expires_at)


def listed_packages(answer: object) -> tuple[list[Package], list[str]]:
    """Return the packages of an answer to `ipstock`, and descriptions of the unreadable parts that were skipped."""
    if isinstance(answer, dict):
        answer = next((_opened(value) for key, value in answer.items() if _plain(key) == "packages"), None)
    if not isinstance(answer, list):
        raise UnusableAnswerError("an answer without packages")
    packages, left_out = [], []
    for position, item in enumerate(answer):
        read = _package(item)
        if read is None:
            left_out.append(f"the package at position {position}")
            continue
        package, malformed = read
        packages.append(package)
        if malformed:
            left_out.append(f"{malformed} of the addresses of package {package.package_id or package.name}")
    if answer and not packages:
        raise UnusableAnswerError("an answer without any package that can be read")
    return packages, left_out


def _package(item: object) -> tuple[Package, int] | None:
    """Read one package and count its invalid addresses; None if the name is missing or a part has the wrong type."""
    fields = {_plain(key): value for key, value in item.items()} if isinstance(item, dict) else {}
    name, package_id, status = (_label(_text(fields.get(key))) for key in ("name", "id", "status"))
    listed = fields.get("ips") or []
    if name is None or not isinstance(listed, list) or (package_id is None and fields.get("id") is not None):
        return None
    ips = [ip for ip in map(_address, listed) if ip is not None]
    unique = tuple(dict.fromkeys(ips))
    count = _count(fields.get("ipv4"), len(unique))
    return Package(package_id or "", name, status or "", count, unique), len(listed) - len(ips)


def _address(value: object) -> str | None:
    text = value.strip() if isinstance(value, str) else ""
    return text if is_ipv4(text) else None


def _count(value: object, otherwise: int) -> int:
    """Read a number or its text; use `otherwise` for anything else."""
    text = _text(value).strip()
    return int(text) if re.fullmatch(r"\d{1,9}", text, re.ASCII) else otherwise


def _unwrapped(text: str) -> object:
    value: object = text
    for _ in range(MOST_ENCODINGS):
        if not isinstance(value, str):
            break
        try:
            value = orjson.loads(value)
        except ValueError:
            break
    return value


def _opened(value: object) -> object:
    """Decode a text that is JSON itself; return any other value unchanged."""
    return _unwrapped(value) if isinstance(value, str) else value


def _plain(key: str) -> str:
    """Normalise a key for comparison: "IP address", "ip_address" and "ipAddress" are equal."""
    return re.sub(r"[^a-z0-9]", "", key.lower())


def _leaves(answer: object) -> Iterator[tuple[str, object]]:
    """Iterate over the scalar values of an answer with their keys; values of a list have the key of the list."""
    pending: list[tuple[str, object]] = [("", answer)]
    while pending:
        key, value = pending.pop()
        value = _opened(value)
        if isinstance(value, dict):
            pending.extend((_plain(name), inner) for name, inner in value.items())
        elif isinstance(value, list):
            pending.extend((key, inner) for inner in value)
        else:
            yield key, value


def _rank(key: str) -> int:
    if key in _ASSIGNED:
        return 0
    return 1 if key in _ADDRESS else 2


def _reports_failure(key: str, value: object) -> bool:
    positive = value is not None and str(value).strip().lower() not in _NEGATIVE
    if key in _FAILURE_KEYS:
        return positive
    if key in _SUCCESS_KEYS:
        return not positive
    return isinstance(value, str) and bool(_FAILURE_WORDS.search(value))


def _record(answer: object) -> dict[str, Any]:
    """Unwrap the object with the fields from one-element lists and envelopes."""
    for _ in range(MOST_ENCODINGS):
        answer = _opened(answer)
        if isinstance(answer, list) and len(answer) == 1:
            answer = answer[0]
        elif isinstance(answer, dict) and not any(_plain(key) in _USERNAME for key in answer):
            answer = next((value for key, value in answer.items() if _plain(key) in _ENVELOPE), answer)
    return answer if isinstance(answer, dict) else {}


def _given(fields: Mapping[str, object], names: Sequence[str]) -> Iterator[object]:
    """Iterate over the non-empty values under these names, in the order of the names."""
    return (fields[name] for name in names if fields.get(name) not in (None, ""))


def _texts(fields: Mapping[str, object], names: Sequence[str]) -> Iterator[str]:
    return (text for text in map(_text, _given(fields, names)) if text.strip())


def _text(value: object) -> str:
    """Return a text, or an integer as text; anything else becomes empty."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return value if isinstance(value, str) else ""


def _label(text: str) -> str | None:
    """Clean a text for a message: no control characters, at most 128 characters, None if nothing is left."""
    return _CONTROL.sub("", text).strip()[:LONGEST_LABEL].strip() or None
