"""Lists: `{"items": [...], "nextCursor": "..."|null}`, paged by `?limit=&cursor=`; a cursor is where a page ended."""

import base64
import binascii
from collections.abc import Sequence
from typing import Annotated, Any

import orjson
from fastapi import Query

from shared.http import invalid

DEFAULT_LIMIT = 50
MAX_LIMIT = 100

Limit = Annotated[int, Query(ge=1, le=MAX_LIMIT, description=f"Entries on a page, at most {MAX_LIMIT}")]
CursorParameter = Annotated[str | None, Query(max_length=1000, description="`nextCursor` of the page before")]


_MAX_NUMBER = 2**53
"""No time and no count in a cursor is larger; larger ones would not fit into BSON."""


def write_cursor(key: Sequence[str | int]) -> str:
    """Write the sort key of a page's last entry as an opaque text."""
    return base64.urlsafe_b64encode(orjson.dumps(list(key))).decode().rstrip("=")


def read_cursor(cursor: str, kinds: Sequence[type]) -> list[Any]:
    """Read the sort key back; raises the 422 problem if it is not a cursor over these kinds of values."""
    try:
        key = orjson.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    except (binascii.Error, ValueError):
        key = None
    if (
        not isinstance(key, list)
        or len(key) != len(kinds)
        or not all(type(value) is kind for value, kind in zip(key, kinds, strict=True))
        or any(isinstance(value, int) and abs(value) > _MAX_NUMBER for value in key)
    ):
        raise invalid(("cursor", "is not a nextCursor of this list"))
    return key
