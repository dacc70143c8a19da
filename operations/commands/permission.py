"""What the key of a command grants, as the services of the stack say."""

from typing import Any

import httpx

from operations.commands.remote.api import unknown_key
from operations.errors import CommandError, UnreachableError
from operations.settings import RemoteStack, Stack
from shared.access.permissions import Permission
from shared.services import CONSOLE
from shared.tls import client_context

TIMEOUT_SECONDS = 5.0


class NotPermittedError(CommandError):
    """The key of the command does not grant what it needs."""


async def require_permission(stack: Stack | RemoteStack, needed: Permission, purpose: str) -> None:
    """Check that the stack's services grant a permission to the command's key; the first one that answers decides.

    `purpose` says what needs it, for the error. Raises NotPermittedError, or UnreachableError if no service answers.
    """
    console_first = sorted(stack.urls, key=lambda name: name != CONSOLE.name)
    async with httpx.AsyncClient(timeout=TIMEOUT_SECONDS, trust_env=False, verify=client_context()) as client:
        for name in console_first:
            try:
                answer = await client.get(f"{stack.urls[name].rstrip('/')}/me", headers=stack.headers)
                answered = answer.json()
            except (httpx.HTTPError, httpx.InvalidURL, ValueError):
                continue
            if (decided := _decide(stack, answer, answered, needed)) is None:
                continue
            granted, why = decided
            if not granted:
                raise NotPermittedError(f"{purpose} needs the permission {needed}: {why}")
            return
    raise UnreachableError(f"{purpose} needs the permission {needed}, and no service answers that could confirm it")


def _decide(
    stack: Stack | RemoteStack, answer: httpx.Response, answered: Any, needed: Permission
) -> tuple[bool, str] | None:
    """Return whether a service grants the permission, and why not; None if what answers does not know it.

    Raises UnreachableError if it cannot say so now.
    """
    if not isinstance(answered, dict) or answer.is_server_error:
        return None
    detail = str(answered.get("detail") or f"status {answer.status_code}")
    if answer.status_code == httpx.codes.TOO_MANY_REQUESTS:
        wait = answer.headers.get("Retry-After", "a few")
        raise UnreachableError(f"{detail.rstrip('.')}: try again in {wait} seconds")
    if answer.status_code == httpx.codes.UNAUTHORIZED:
        return False, unknown_key(stack, detail) if isinstance(stack, RemoteStack) else detail
    if answer.status_code == httpx.codes.FORBIDDEN:
        return False, detail
    permissions = answered.get("permissions")
    if answer.is_error or not isinstance(permissions, dict | list):
        return None
    return needed in permissions, f"{answered.get('name')} does not have it"
