"""The stack that a command acts on."""

from pathlib import Path

import typer

from operations.settings import Stack, locate_stack


def chosen_stack(data_dir: Path | None = None) -> Stack:
    """Locate the stack and print on stderr which one it is. Raises UnreachableError where none is known."""
    stack = locate_stack(data_dir)
    typer.echo(f"stack: {stack.describe()}", err=True)
    return stack
