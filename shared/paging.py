"""Lists: `{"items": [...], "nextCursor": "..."|null}`, paged by `?limit=&cursor=`.

A cursor is the sort key of the last item of a page: its id (`after_id`), its time and id (`after_time`), or any other.
"""

import base64
import binascii
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, TypeVar

import orjson
from fastapi import Query, Response

from shared.cursors import MAX_LIMIT, Key, write_cursor
from shared.http import ProblemError, invalid, json_response

DEFAULT_LIMIT = 50

Limit = Annotated[int, Query(ge=1, le=MAX_LIMIT, description=f"Entries on a page, at most {MAX_LIMIT}")]
CursorParameter = Annotated[str | None, Query(max_length=1000, description="`nextCursor` of the page before")]

Item = TypeVar("Item")
_MAX_NUMBER = 2**53
"""No time and no count in a cursor is larger; larger ones would not fit into BSON."""


def page_response(
    page: Sequence[Item], show: Callable[[Item], object], *, key: Callable[[Item], Key], limit: int
) -> Response:
    """Answer with a page; a full one has a cursor, because another may follow."""
    following = write_cursor(key(page[-1])) if len(page) == limit else None
    return json_response({"items": [show(item) for item in page], "nextCursor": following})


def after_id(cursor: str | None) -> str | None:
    """Return the id that a page of a list ordered by id starts after, None for the first page."""
    return None if cursor is None else str(read_cursor(cursor, (str,))[0])


def after_time(cursor: str | None) -> tuple[datetime, str] | None:
    """Return the time and id that a page of a list ordered by them starts after, None for the first page."""
    if cursor is None:
        return None
    milliseconds, last_id = read_cursor(cursor, (int, str))
    try:
        return datetime.fromtimestamp(milliseconds / 1000, UTC), last_id
    except (ValueError, OverflowError, OSError):
        raise wrong_cursor() from None


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
        raise wrong_cursor()
    return key


def wrong_cursor() -> ProblemError:
    """Return the problem for a cursor of another list, or of none."""
    return invalid(("cursor", "is not a nextCursor of this list"))
