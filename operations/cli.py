"""The command line `ordersaga`.

Exit status: 0 success, 1 the check failed or nothing was found, 2 wrong usage, 3 a server could not be reached.

COMMANDS lists all commands. Only the module of the requested command is imported, so `ordersaga --help` does not load
drivers that it does not need.
"""

from shared import quick_start  # first, because it makes the other imports quicker

# isort: split
import importlib
import logging
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated

import typer

from operations.commands.failures import status_of
from operations.commands.remote.reach import guard, guarded
from operations.commands.terminal import print_error
from operations.errors import CommandError
from shared.observability import logs_to_stderr


@dataclass(frozen=True)
class Entry:
    """A command: its module, its function (or `typer.Typer` for a group) in it, and a summary."""

    module: str
    attribute: str
    summary: str


COMMANDS = {
    "up": Entry("operations.commands.stack", "up", "Start MongoDB, RabbitMQ and the services on this machine."),
    "down": Entry("operations.commands.stack", "down", "End a stack, even if its supervisor was killed."),
    "status": Entry("operations.commands.stack", "status", "Show the processes of a stack and their addresses."),
    "logs": Entry("operations.commands.logs", "logs", "Show or follow the logs of a stack, also after its end."),
    "keys": Entry("operations.commands.keys", "keys", "Create, list, revoke and rotate API keys."),
    "console": Entry("operations.commands.console", "console", "Print a link that signs you in to the console, once."),
    "audit": Entry("operations.commands.audit", "audit", "Check every invariant over all databases."),
    "incidents": Entry("operations.commands.incidents", "incidents", "List what happened to the stack itself."),
    "notifications": Entry(
        "operations.commands.notifications", "notifications", "Send incidents to the outside: rules and tests."
    ),
    "order": Entry("operations.commands.order", "order", "Show an order's timeline; release an unknown order."),
    "orders": Entry("operations.commands.orders", "orders", "List orders; cancel, retry, refund or nudge many."),
    "search": Entry("operations.commands.search", "search", "Find what has an id, and what names it."),
    "stock": Entry("operations.commands.stock", "stock", "Show stock, add units, take products off sale."),
    "accounts": Entry(
        "operations.commands.accounts", "accounts", "Show accounts and reports, repair balances, assign owners."
    ),
    "cleanup": Entry("operations.commands.cleanup", "cleanup", "Delete orders that were cancelled long ago."),
    "archive": Entry("operations.commands.archive", "archive", "Move orders that settled long ago into files."),
    "backup": Entry("operations.commands.backup", "backup", "Copy all records, as they are at one moment."),
    "restore": Entry("operations.commands.backup", "restore", "Restore a backup into an empty stack."),
    "erase": Entry("operations.commands.erase", "erase", "Erase what is known about a person, and keep the books."),
    "dead-letters": Entry(
        "operations.commands.dead_letters", "dead_letters", "Inspect, replay, edit or discard failed messages."
    ),
    "pause": Entry("operations.commands.pauses", "pause", "Pause the consumption of a service's inbox."),
    "resume": Entry("operations.commands.pauses", "resume", "Consume the inbox of a service again."),
    "pauses": Entry("operations.commands.pauses", "pauses", "Show which inboxes are paused, by whom and why."),
    "recover": Entry("operations.commands.recover", "recover", "Send again what RabbitMQ lost, from the records."),
    "events": Entry("operations.commands.events", "events", "Follow the events of orders, or export them."),
    "credentials": Entry("operations.commands.credentials", "credentials", "Encrypt stored secrets with a new key."),
    "load": Entry("operations.commands.load", "load", "Place many orders and measure throughput and latency."),
    "smoke": Entry("operations.commands.smoke", "smoke", "Do one of everything after a deployment, and undo it."),
    "demo": Entry("operations.commands.demo", "demo", "Run scenarios on a temporary stack and check their outcome."),
    "simulate": Entry(
        "operations.commands.simulate", "simulate", "Run disasters on a virtual clock and check every invariant."
    ),
    "chaos": Entry(
        "operations.commands.chaos", "chaos", "Let faults happen to a stack of its own, and check that nothing is lost."
    ),
    "topology": Entry(
        "operations.commands.topology", "topology", "Declare exchanges and queues on a broker, make its users."
    ),
    "migrate": Entry("operations.commands.migrate", "migrate", "Replace queues that differ, with their messages."),
    "database": Entry("operations.commands.database", "database", "Create the users of a MongoDB with their rights."),
    "upgrade": Entry(
        "operations.commands.upgrade", "upgrade", "Check what is in flight before an upgrade or rollback."
    ),
    "doctor": Entry("operations.commands.doctor", "doctor", "Check the prerequisites and a running stack."),
}


_COMPLETED = ("COMP_WORDS", "_TYPER_COMPLETE_ARGS")
"""The variables in which bash, and the other shells, pass the words that are to be completed."""


def build_application(words: Sequence[str]) -> typer.Typer:
    """Return the application with the command in `words`, the words of a command line; others are placeholders."""
    application = typer.Typer(
        name="ordersaga", help="Run, check and operate ordersaga.", no_args_is_help=True, pretty_exceptions_enable=False
    )
    application.callback()(_log_to_stderr)
    requested = next((word for word in words or _words_to_complete() if not word.startswith("-")), None)
    for name, entry in COMMANDS.items():
        if name == requested:
            _add(application, name, entry)
        else:
            application.command(name, help=entry.summary)(_placeholder)
    return application


def _words_to_complete() -> list[str]:
    """Return the words of the command line that a shell completes, which it passes in the environment."""
    return next((os.environ[name].split()[1:] for name in _COMPLETED if os.environ.get(name)), [])


def _print_version(wanted: bool) -> None:
    if wanted:
        from shared.release import VERSION  # only here: it reads the metadata of the installed package

        typer.echo(f"ordersaga {VERSION}")
        raise typer.Exit


def _log_to_stderr(
    context: typer.Context,
    _version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Keep log lines out of the output, and print errors only: a command reports its own result."""
    context.with_resource(logs_to_stderr(logging.ERROR))


def _placeholder() -> None:
    """Do nothing."""


def _add(application: typer.Typer, name: str, entry: Entry) -> None:
    target = getattr(importlib.import_module(entry.module), entry.attribute)
    if isinstance(target, typer.Typer):
        guard(name, target)
        application.add_typer(target, name=name, help=entry.summary)
    else:
        application.command(name)(guarded(name, target))


def main() -> None:
    """Run the command line of this process."""
    run(sys.argv[1:], when_imported=quick_start.started)


def run(words: Sequence[str], when_imported: Callable[[], None] = lambda: None) -> None:
    """Run a command line, and raise SystemExit with its exit status. The reason for a failure is on stderr.

    `when_imported` is called once the modules of the command are imported.
    """
    try:
        application = build_application(words)
        when_imported()
        application(words)
    except CommandError as error:
        print_error(str(error))
        sys.exit(status_of(error))


if __name__ == "__main__":
    main()
