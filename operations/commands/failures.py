"""How a command reports an error that ends it: as text or as its JSON document, with the exit status."""

import contextlib
from collections.abc import Iterator

import typer

from operations.commands.terminal import print_error, print_json
from operations.errors import CommandError, DataDirectoryError, UnreachableError


@contextlib.contextmanager
def errors_shown(*, as_json_document: bool) -> Iterator[None]:
    """Show an error, as the JSON document if one was asked for, and end with its exit status."""
    try:
        yield
    except CommandError as error:
        if as_json_document:
            print_json({"error": str(error)})
        else:
            print_error(str(error))
        raise typer.Exit(status_of(error)) from None


def status_of(error: CommandError) -> int:
    """Return the exit status of a command that ends with this error."""
    if isinstance(error, DataDirectoryError):
        return 2
    return 3 if isinstance(error, UnreachableError) else 1
