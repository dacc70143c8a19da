"""What all forms share: the reason, who acts, and the page that is shown afterwards."""

from typing import Annotated

from fastapi import Form, Request
from fastapi.responses import RedirectResponse
from pydantic import StringConstraints

from operations.sign_in.person import Person
from shared.access.middleware import caller_of

Why = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=500)]
"""The reason for an action, required for the log."""

FormKey = Annotated[str, Form(min_length=1, max_length=64, pattern="^[0-9a-f]+$")]
"""Made for each form that is shown, so that a form which is sent twice acts once."""

Note = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=2000)]
"""An operator's note on a group."""


def signed_in(request: Request) -> Person:
    """Return who sends a request: a person, or the owner of a key."""
    caller = caller_of(request.scope)
    if caller is None:
        raise RuntimeError(f"{request.url.path} is an open path, and has no caller")
    return Person(caller.id, caller.name, caller.roles)


def actor(request: Request) -> str:
    """Return who acts, for records."""
    return signed_in(request).label


def redirect(address: str) -> RedirectResponse:
    """Redirect to a page after an action."""
    return RedirectResponse(address, 303)
