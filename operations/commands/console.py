"""The command `ordersaga console`."""

from typing import Annotated

import httpx
import typer

from operations.commands.operator import current_operator
from operations.commands.target import chosen_stack
from operations.commands.terminal import print_error
from operations.errors import CommandError, UnreachableError
from operations.settings import Stack
from shared.access.permissions import STAFF, Role
from shared.outage_words import with_detail
from shared.services import CONSOLE
from shared.tls import client_context

TIMEOUT_SECONDS = 10.0


def console(
    role: Annotated[str, typer.Option(help=f"One of {', '.join(sorted(STAFF))}.")] = Role.ADMIN,
    name: Annotated[str | None, typer.Option(help="Who signs in, for the log of actions.", show_default="you")] = None,
) -> None:
    """Print a link that signs you in to the console. It works once, within 60 seconds.

    Exit status 0 if a link is printed, 1 if the console refuses, 2 for wrong usage, 3 if it cannot be reached.
    """
    if role not in STAFF:
        raise typer.BadParameter(f"{role!r} is not one of {', '.join(sorted(STAFF))}", param_hint="--role")
    stack = chosen_stack()
    try:
        link = create_link(stack, name or current_operator(), Role(role))
    except LinkRefusedError as error:
        print_error(str(error))
        raise typer.Exit(1) from None
    typer.echo(link)
    typer.echo("valid for 60 s, works once", err=True)


class LinkRefusedError(CommandError):
    """The console does not create a link that signs a person in."""


def create_link(stack: Stack, name: str, role: Role = Role.ADMIN) -> str:
    """Have the console create a link, and return its address.

    Raises UnreachableError if the console does not answer, LinkRefusedError if it refuses.
    """
    base = stack.urls[CONSOLE.name].rstrip("/")
    # The console takes writes only from its own pages, or from programs that say that they are for it.
    headers = stack.headers | {"Origin": base}
    try:
        answer = httpx.post(
            f"{base}/sign-in/links",
            json={"name": name, "role": str(role)},
            headers=headers,
            timeout=TIMEOUT_SECONDS,
            trust_env=False,
            verify=client_context(),
        )
        answered = answer.json()
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        raise UnreachableError(f"the console at {base} does not answer: {with_detail(error)}") from None
    if not answer.is_success:
        raise LinkRefusedError(f"The console at {base} refuses: {answered.get('detail', answer.status_code)}")
    return f"{base}{answered['path']}"
