"""What all forms share: the reason, who acts, and the page that is shown afterwards."""

from typing import Annotated

from fastapi import Request
from fastapi.responses import RedirectResponse
from pydantic import StringConstraints

from shared.access.middleware import caller_of

Why = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=500)]
"""The reason for an action, required for the log."""

Note = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=2000)]
"""An operator's note on a group."""


def actor(request: Request) -> str:
    """Return who acts, for records: the name, and the id behind it if that is another one.

    A name may change and may be that of another person too; the id is neither.
    """
    caller = caller_of(request.scope)
    if caller is None:
        raise RuntimeError(f"{request.url.path} is an open path, and has no caller")
    return caller.id if caller.name == caller.id else f"{caller.name} ({caller.id})"


def redirect(address: str) -> RedirectResponse:
    """Redirect to a page after an action."""
    return RedirectResponse(address, 303)
