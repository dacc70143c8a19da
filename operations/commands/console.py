"""The command `ordersaga console`."""

from pathlib import Path
from typing import Annotated

import httpx
import typer

from operations.commands.operator import current_operator
from operations.commands.terminal import print_error
from operations.errors import UnreachableError
from operations.reading.reachability import brief
from operations.settings import Stack, locate_stack
from shared.access.permissions import STAFF, Role
from shared.services import CONSOLE
from shared.tls import client_context

TIMEOUT_SECONDS = 10.0


def console(
    role: Annotated[str, typer.Option(help=f"One of {', '.join(sorted(STAFF))}.")] = Role.ADMIN,
    name: Annotated[str | None, typer.Option(help="Who signs in, for the audit log.", show_default="you")] = None,
    data_dir: Annotated[Path | None, typer.Option("--data-dir", help="Data directory of the stack.")] = None,
) -> None:
    """Print a link that signs one person in to the console, once, within a minute.

    Exit status 0, 1 if the console refuses, 3 if it does not answer.
    """
    stack = locate_stack(data_dir)
    url = stack.urls[CONSOLE.name].rstrip("/")
    answer = _create_link(stack, url, role, name or current_operator())
    if answer.status_code != httpx.codes.CREATED:
        print_error(f"the console refuses to create a link: {_reason(answer)}")
        raise typer.Exit(1)
    typer.echo(url + answer.json()["path"])


def _create_link(stack: Stack, url: str, role: str, name: str) -> httpx.Response:
    # The console takes writes from its own pages only, and this header says that the request comes from there.
    headers = stack.headers | {"Origin": url}
    try:
        with httpx.Client(timeout=TIMEOUT_SECONDS, trust_env=False, verify=client_context()) as client:
            return client.post(f"{url}/sign-in/links", json={"person": name, "role": role}, headers=headers)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise UnreachableError(f"the console at {url} does not answer: {brief(error)}") from None


def _reason(answer: httpx.Response) -> str:
    try:
        return str(answer.json()["detail"])
    except (ValueError, KeyError, TypeError):
        return f"it answers {answer.status_code}"
