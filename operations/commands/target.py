"""The stack that a command acts on, which every command names on stderr before it acts."""

from pathlib import Path
from typing import Annotated

import typer

from operations.settings import Broker, RemoteStack, Stack, locate_broker, locate_stack, remote_stack
from shared.urls import hide_credentials

DataDirectory = Annotated[
    Path | None,
    typer.Option(
        "--data-dir", help="Data directory of the stack.", show_default="ORDERSAGA_DATA_DIR, else the stack used last"
    ),
]
"""The option of commands that act on an existing stack."""


def chosen_target() -> Stack | RemoteStack:
    """Return the stack whose console ORDERSAGA_URL names, else locate one, and name it. Raises UnreachableError."""
    found: Stack | RemoteStack = remote_stack() or locate_stack()
    name_target("stack", found.describe())
    return found


def chosen_stack(data_dir: Path | None = None) -> Stack:
    """Locate the stack and name it. Raises UnreachableError where none is known."""
    stack = locate_stack(data_dir)
    name_target("stack", stack.describe())
    return stack


def chosen_broker(data_dir: Path | None = None) -> Broker:
    """Locate the broker and name it. Raises UnreachableError where none is known."""
    broker = locate_broker(data_dir)
    name_target("broker", hide_credentials(broker.url))
    return broker


def name_target(kind: str, where: object) -> None:
    """Print on stderr what the command acts on, such as the file of the keys."""
    typer.echo(f"{kind}: {where}", err=True)
