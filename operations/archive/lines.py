"""One archived order as one line: JSON with MongoDB's types (canonical Extended JSON), so nothing is lost. Pure.

{"_id": <order id>, "records": {"orders": [<document>], "reservations": [...], ..., "addresses": [...]}}
"""

import hashlib
from typing import Any

import bson
from bson.errors import BSONError
from bson.json_util import CANONICAL_JSON_OPTIONS, dumps, loads

from operations.removal.removable import Candidate

Document = dict[str, Any]

PERSONAL = "personal"
"""The field of an order that has everything about the person."""

OPTIONS = CANONICAL_JSON_OPTIONS.with_options(tz_aware=True)


def record_of(candidate: Candidate, *, personal_data: bool) -> Document:
    """Return what is archived of an order: all its records, without its personal data if that is not wanted."""
    records = candidate.by_kind()
    if not personal_data:
        records["orders"] = [{key: value for key, value in candidate.order.items() if key != PERSONAL}]
    if candidate.addresses:
        records["addresses"] = list(candidate.addresses)
    return {"_id": candidate.order_id, "records": records}


def line_of(record: Document) -> bytes:
    """Write an archived order as a line."""
    return dumps(record, json_options=OPTIONS, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"


def read_line(line: bytes) -> Document:
    """Read an archived order from its line. Raises ValueError if it is not one."""
    try:
        record = loads(line.decode(), json_options=OPTIONS)
    except (TypeError, KeyError, OverflowError, BSONError) as error:
        raise ValueError(f"it is not JSON with MongoDB's types: {error}") from error
    if not isinstance(record, dict) or not isinstance(record.get("_id"), str) or not record.get("records"):
        raise ValueError("it is not an archived order")
    return record


def digest(record: Document) -> bytes:
    """Return the hash of an archived order as MongoDB stores it: equal only if every value and type is."""
    return hashlib.sha256(bson.encode(record)).digest()
