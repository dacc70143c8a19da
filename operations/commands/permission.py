"""What the key of a command grants, as the services of the stack say."""

import httpx

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
            if answer.is_server_error:
                continue
            if needed not in answered.get("permissions", {}):
                why = answered["detail"] if answer.is_error else f"{answered['name']} does not have it"
                raise NotPermittedError(f"{purpose} needs the permission {needed}: {why}")
            return
    raise UnreachableError(f"{purpose} needs the permission {needed}, and no service answers that could confirm it")
