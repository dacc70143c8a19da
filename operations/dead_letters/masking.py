"""Hides what not everybody who looks at dead letters may see: payment tokens, secrets and personal fields. Pure.

A field is hidden by its name, at any depth, with everything below it; in other text, what looks like a token, a card
number or an e-mail address is hidden. A body that is not JSON is replaced by its length and hash. What stays visible:
identifiers, by which people find orders (`userId` is a pseudonym of the shop, and `retainerId` pays nothing for other
owners), also those that consist of as many digits as a card number has, such as an EAN.
"""

import copy
import hashlib
import re
from collections.abc import Callable, Mapping
from typing import Any

import orjson

Letter = dict[str, Any]
MASK = "•••"

PERSONAL = frozenset(
    {
        *("customer", "address", "billingaddress", "shippingaddress", "recipient", "email", "phone", "telephone"),
        *("firstname", "lastname", "fullname", "street", "line1", "line2", "addressline1", "addressline2"),
        *("postalcode", "postcode", "zip", "city", "note", "instructions"),
    }
)
"""Names of fields about a person, in lower case and without separators."""

SENSITIVE = PERSONAL | frozenset(
    {
        *("token", "secret", "clientsecret", "password", "passphrase", "credential", "credentials", "authorization"),
        *("apikey", "privatekey", "cookie", "card", "cardnumber", "pan", "cvc", "cvv", "iban", "accountnumber"),
    }
)
"""Names of hidden fields, in lower case and without separators."""

IDENTIFIERS = frozenset(
    {
        *("orderid", "userid", "ownerid", "productid", "packageid", "holdid", "refundid", "retainerid"),
        *("transactionid", "messageid", "correlationid", "letterid", "ordernumber"),
    }
)
"""Names of fields whose digits are no card number, in lower case and without separators."""

_SEPARATORS = re.compile(r"[\s_.-]+")
_LOOKS_SENSITIVE = re.compile(
    r"\b(?:osk|tok|pm|card|sk|rk|whsec)_[A-Za-z0-9_]{4,}"
    r"|\beyJ[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*"
    r"|(?<![\w-])(?:\d[ -]?){12,18}\d(?![\w-])"
    r"|[A-Za-z0-9._%+-]{1,64}@[A-Za-z0-9.-]{1,190}\.[A-Za-z]{2,24}\b"
)
_DIGITS = re.compile(r"[0-9]{13,19}")
_SHORTEST_REPLACED = 4


def is_sensitive(name: str) -> bool:
    """Return whether a field of this name is hidden."""
    return _plain(name) in SENSITIVE


def is_personal(name: str) -> bool:
    """Return whether a field of this name is about a person."""
    return _plain(name) in PERSONAL


def _plain(name: str) -> str:
    return _SEPARATORS.sub("", name).lower()


def mask_value(value: Any) -> Any:
    """Return a JSON value without what is hidden."""
    match value:
        case Mapping():
            return {mask_text(str(name)): _mask_field(str(name), item) for name, item in value.items()}
        case list() | tuple():
            return [mask_value(item) for item in value]
        case str():
            return mask_text(value)
    return value


def _mask_field(name: str, value: Any) -> Any:
    if is_sensitive(name):
        return None if value is None else MASK
    # Digits alone: what has spaces or words is no identifier, but free text in the wrong field.
    if isinstance(value, str) and _DIGITS.fullmatch(value) and _plain(name) in IDENTIFIERS:
        return value
    return mask_value(value)


def mask_text(text: str) -> str:
    """Return a text without what looks like a token, a card number or an e-mail address."""
    return _LOOKS_SENSITIVE.sub(MASK, text)


def mask_body(body: bytes) -> bytes:
    """Return the body of a message without what is hidden; of one that is not a JSON object or list, no content."""
    masked = _masked_json(body)
    return f"{len(body)} bytes, SHA-256 {hashlib.sha256(body).hexdigest()}".encode() if masked is None else masked


def _masked_json(body: bytes) -> bytes | None:
    try:
        value = orjson.loads(body)
        if not isinstance(value, dict | list):
            return None
        masked = mask_value(value)
        return body if masked == value else orjson.dumps(masked)
    except (orjson.JSONDecodeError, orjson.JSONEncodeError, RecursionError):
        return None


def searchable(body: bytes, message: str) -> tuple[str, str]:
    """Return a body and the message of its error as they may be searched: without what is hidden, and as text.

    A hidden value that could be searched for could be guessed, one character after another. Of a body that is not a
    JSON object or list, nothing can be searched.
    """
    masked = _masked_json(body)
    return "" if masked is None else masked.decode(), _without(message, _hidden_values(body))


def mask_letter(letter: Letter) -> Letter:
    """Return a copy of a letter, or of a row of a list, without what is hidden; values of the body also elsewhere."""
    known: set[str] = set()
    for body in _bodies(letter):
        known |= _hidden_values(body)
    masked = {name: _mask_part(name, value, known) for name, value in letter.items()}
    if letter.get("body") is not None:
        masked["contentType"] = "text/plain" if _masked_json(bytes(letter["body"])) is None else "application/json"
    elif "body" in letter:
        masked["bodyText"] = f"{letter.get('size')} bytes: too large to be shown without what is hidden"
    return masked


def _mask_part(name: str, value: Any, known: set[str]) -> Any:
    if isinstance(value, bytes):
        return mask_body(bytes(value))
    if name in ("edits", "replays") and isinstance(value, list):
        return [{field: _mask_part(field, item, known) for field, item in one.items()} for one in value]
    if name == "error" and isinstance(value, Mapping):
        return {field: _mask_part(field, item, known) for field, item in value.items()}
    if name in ("message", "traceback", "bodyText") and isinstance(value, str):
        return _without(value, known)
    if name == "headers" and isinstance(value, Mapping):
        return {field: MASK if is_sensitive(field) else _mask_header(item, known) for field, item in value.items()}
    return copy.deepcopy(value)


def _mask_header(value: Any, known: set[str]) -> Any:
    if isinstance(value, str):
        return _without(value, known)
    if isinstance(value, bytes):
        return mask_body(bytes(value))
    return mask_value(value) if isinstance(value, Mapping | list | tuple) else value


def _without(text: str, known: set[str]) -> str:
    for value in sorted(known, key=len, reverse=True):
        text = text.replace(value, MASK)
    return mask_text(text)


def _bodies(letter: Letter) -> list[bytes]:
    bodies = [letter.get("body"), letter.get("current"), *(edit.get("body") for edit in letter.get("edits") or ())]
    return [bytes(body) for body in bodies if body]


def _hidden_values(body: bytes) -> set[str]:
    """Return the hidden texts of a body, which errors and headers may quote."""
    try:
        return texts_of(orjson.loads(body), is_sensitive)
    except (orjson.JSONDecodeError, RecursionError):
        return set()


def texts_of(value: Any, chosen: Callable[[str], bool]) -> set[str]:
    """Return the texts of some length below the fields whose names are chosen, at any depth."""
    found: set[str] = set()
    _collect(value, found, chosen, hidden=False)
    return found


def _collect(value: Any, found: set[str], chosen: Callable[[str], bool], *, hidden: bool) -> None:
    match value:
        case dict():
            for name, item in value.items():
                _collect(item, found, chosen, hidden=hidden or chosen(name))
        case list():
            for item in value:
                _collect(item, found, chosen, hidden=hidden)
        case str() if hidden and len(value) >= _SHORTEST_REPLACED:
            found.add(value)
