"""The id of a request: taken from the client if it is sane, else made here; every answer and every problem names it."""

import re
import secrets
from contextvars import ContextVar

from starlette.types import Scope

REQUEST_ID_HEADER = "X-Request-Id"
RAW_REQUEST_ID_HEADER = REQUEST_ID_HEADER.lower().encode()
"""The header's name in an ASGI message."""

_SANE = re.compile(r"[A-Za-z0-9._:-]{1,64}")
_current: ContextVar[str | None] = ContextVar("request_id", default=None)


def current_request_id() -> str:
    """Return the id of the request that this task serves; a new one outside of a request."""
    return _current.get() or _new_id()


def identify(scope: Scope) -> str:
    """Give the request of this task its id, and return it.

    An inbound X-Request-Id is taken if it is 1 to 64 letters, digits and `._:-`. The id is never reset: the answer to a
    defect is made further outside, in the same task, which ends with the request.
    """
    request_id = _given_id(scope) or _new_id()
    _current.set(request_id)
    return request_id


def _given_id(scope: Scope) -> str | None:
    for name, value in scope["headers"]:
        if name == RAW_REQUEST_ID_HEADER and _SANE.fullmatch(given := value.decode("latin-1")):
            return str(given)
    return None


def _new_id() -> str:
    return secrets.token_hex(8)
