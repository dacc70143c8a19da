"""The id of a request: taken from the client if it is sane, else made here; every answer and every problem names it."""

import re
import secrets
from contextvars import ContextVar

from starlette.types import ASGIApp, Message, Receive, Scope, Send

REQUEST_ID_HEADER = "X-Request-Id"

_SANE = re.compile(r"[A-Za-z0-9._:-]{1,64}")
_RAW_NAME = REQUEST_ID_HEADER.lower().encode()
_current: ContextVar[str | None] = ContextVar("request_id", default=None)


def current_request_id() -> str:
    """Return the id of the request that this task serves; a new one outside of a request."""
    return _current.get() or _new_id()


class Identified:
    """Gives each request an id. An inbound X-Request-Id is taken if it is 1 to 64 letters, digits and `._:-`."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = identify(scope)

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = message.get("headers", ())
                if all(name != _RAW_NAME for name, _ in headers):
                    message["headers"] = [*headers, (_RAW_NAME, request_id.encode())]
            await send(message)

        await self._app(scope, receive, send_with_id)


def identify(scope: Scope) -> str:
    """Give the request of this task its id, and return it.

    It is never reset: the answer to a defect is made further outside, in the same task, which ends with the request.
    """
    request_id = _given_id(scope) or _new_id()
    _current.set(request_id)
    return request_id


def _given_id(scope: Scope) -> str | None:
    for name, value in scope["headers"]:
        if name == _RAW_NAME and _SANE.fullmatch(given := value.decode("latin-1")):
            return str(given)
    return None


def _new_id() -> str:
    return secrets.token_hex(8)
