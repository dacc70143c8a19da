"""What the routes for staff share, those of pages and those of the API: who may call them, and for whom they act."""

import contextlib
from collections.abc import Iterator
from http import HTTPStatus

from fastapi import Request

from operations.console.upstream import acting_for
from shared.access.middleware import caller_of
from shared.access.permissions import STAFF
from shared.access.principal import Principal
from shared.http import ProblemError


@contextlib.contextmanager
def serving_staff(request: Request) -> Iterator[None]:
    """Send every request in this context for the caller. Raises the 403 problem for callers who are no staff.

    Nobody is known on open paths, such as the page for signing in.
    """
    caller = caller_of(request.scope)
    _require_staff(caller)
    with acting_for(caller if caller and caller.method != "off" else None):
        yield


def _require_staff(caller: Principal | None) -> None:
    if caller is not None and not caller.roles & STAFF:
        roles = ", ".join(sorted(caller.roles)) or "no role"
        allowed = ", ".join(sorted(STAFF))
        detail = f"This is for staff ({allowed}); {caller.name} has {roles}"
        raise ProblemError(HTTPStatus.FORBIDDEN, detail)
