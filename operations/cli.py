"""The command line `ordersaga`.

Exit status: 0 done, 1 the thing asked about is not so, 2 wrong usage, 3 a server could not be reached.

COMMANDS is the list of commands. Only the module of the command that was asked for is imported, so that
`ordersaga --help` does not wait for drivers that it does not need.
"""

import importlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import typer

from operations.commands.terminal import print_error
from operations.errors import DataDirectoryError, UnreachableError
from shared.observability import logs_to_stderr

WRONG_USAGE = 2
COULD_NOT_REACH = 3


@dataclass(frozen=True)
class Entry:
    """A command: its module, the function in it (or the `typer.Typer` of a group), and what it does in a line."""

    module: str
    attribute: str
    summary: str


COMMANDS = {
    "up": Entry("operations.commands.stack", "up", "Start MongoDB, RabbitMQ and the services on this machine."),
    "down": Entry("operations.commands.stack", "down", "End a stack, whatever became of its supervisor."),
    "status": Entry("operations.commands.stack", "status", "Show what runs where, and whether it is ready."),
    "audit": Entry("operations.commands.audit", "audit", "Check every invariant over all databases."),
    "order": Entry("operations.commands.order", "order", "Show an order's story; return what an unknown order holds."),
    "accounts": Entry("operations.commands.accounts", "accounts", "Show accounts and statements, repair balances."),
    "cleanup": Entry("operations.commands.cleanup", "cleanup", "Delete orders that were cancelled long ago."),
    "dead-letters": Entry(
        "operations.commands.dead_letters", "dead_letters", "Understand, replay, edit or discard what failed."
    ),
    "load": Entry("operations.commands.load", "load", "Place many orders, wait until they are settled, and report."),
    "demo": Entry("operations.commands.demo", "demo", "Watch the saga at work: a story on a stack of its own."),
    "doctor": Entry("operations.commands.doctor", "doctor", "Check the prerequisites and a running stack."),
}


def build_application(words: Sequence[str]) -> typer.Typer:
    """Return the application, with the command that the words of a command line name, and stand-ins for the rest."""
    application = typer.Typer(
        name="ordersaga", help="Run, check and operate ordersaga.", no_args_is_help=True, pretty_exceptions_enable=False
    )
    application.callback()(_no_options)
    asked = next((word for word in words if not word.startswith("-")), None)
    # The shell asks for the completions of any command with words that are not on the command line.
    load_all = "_ORDERSAGA_COMPLETE" in os.environ
    for name, entry in COMMANDS.items():
        if load_all or name == asked:
            _add(application, name, entry)
        else:
            application.command(name, help=entry.summary)(_no_options)
    return application


def _no_options() -> None:
    """Take no options."""


def _add(application: typer.Typer, name: str, entry: Entry) -> None:
    target = getattr(importlib.import_module(entry.module), entry.attribute)
    if isinstance(target, typer.Typer):
        application.add_typer(target, name=name, help=entry.summary)
    else:
        application.command(name)(target)


def main() -> None:
    """Run the command line of this process."""
    try:
        # What a library of ours logs belongs on stderr, without the locals that structlog shows unless it is told.
        with logs_to_stderr():
            build_application(sys.argv[1:])()
    except UnreachableError as error:
        print_error(str(error))
        sys.exit(COULD_NOT_REACH)
    except DataDirectoryError as error:
        print_error(str(error))
        sys.exit(WRONG_USAGE)


if __name__ == "__main__":
    main()
