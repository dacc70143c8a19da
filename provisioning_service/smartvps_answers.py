"""What SmartVPS's answers say; pure.

An answer may be plain text, JSON, or JSON encoded as JSON again, with keys in any spelling. What it says is taken only
where it says one thing: a guess could give a customer the wrong server, while an error costs another attempt.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import orjson

from provisioning_service.addresses import is_ipv4
from provisioning_service.provider import Access, Package

MOST_ENCODINGS = 5
"""How often an answer may be encoded as JSON."""
LONGEST_LABEL = 128
LONGEST_PASSWORD = 1024

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_IPV4 = re.compile(r"(?<![\d.])\d{1,3}(?:\.\d{1,3}){3}(?!\.?\d)", re.ASCII)

# Keys as `_plain` writes them.
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


class UnusableAnswerError(Exception):
    """The answer does not say what was asked, or not beyond doubt; the text holds no part of it."""


def decoded(body: bytes) -> object:
    """Return what an answer holds, however often it is encoded; text that is not JSON is itself."""
    return _unwrapped(body.decode("utf-8", "replace").removeprefix("\ufeff"))


def assigned_ip(answer: object) -> str:
    """Return the one IPv4 that an answer to `buyvps` says was assigned.

    Keys decide where there are several: one that says "assigned" before one that says "ip" before any other.
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
    """Return how to get into the server with the address that was asked about, from an answer to `status`.

    A username must be fit for a message: 1 to 128 characters, none of them a control character.
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
    """Return the packages of an answer to `ipstock`, and in words what could not be read of them and is left out."""
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
    """Read one package, and how many of its addresses are none; None if it has no name, or parts of another kind."""
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
    """Read a number, or the text of one; anything else is how many addresses there are."""
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
    """What a value holds, if it is a text that is JSON itself."""
    return _unwrapped(value) if isinstance(value, str) else value


def _plain(key: str) -> str:
    """Write a key as it is compared: "IP address", "ip_address" and "ipAddress" are one."""
    return re.sub(r"[^a-z0-9]", "", key.lower())


def _leaves(answer: object) -> Iterator[tuple[str, object]]:
    """Every single value of an answer with the key that it is under, also in a list."""
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
    """The object that holds the fields, out of the lists of one and the envelopes around it."""
    for _ in range(MOST_ENCODINGS):
        answer = _opened(answer)
        if isinstance(answer, list) and len(answer) == 1:
            answer = answer[0]
        elif isinstance(answer, dict) and not any(_plain(key) in _USERNAME for key in answer):
            answer = next((value for key, value in answer.items() if _plain(key) in _ENVELOPE), answer)
    return answer if isinstance(answer, dict) else {}


def _given(fields: Mapping[str, object], names: Sequence[str]) -> Iterator[object]:
    """What is there under these names, in their order, and not empty."""
    return (fields[name] for name in names if fields.get(name) not in (None, ""))


def _texts(fields: Mapping[str, object], names: Sequence[str]) -> Iterator[str]:
    return (text for text in map(_text, _given(fields, names)) if text.strip())


def _text(value: object) -> str:
    """A text, or a whole number as text; anything else is empty."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return value if isinstance(value, str) else ""


def _label(text: str) -> str | None:
    """Make a text fit for a message: without control characters, at most 128 characters, None if nothing is left."""
    return _CONTROL.sub("", text).strip()[:LONGEST_LABEL].strip() or None
