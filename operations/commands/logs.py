"""The command `ordersaga logs`."""

import contextlib
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from operations.commands.target import DataDirectory, name_target
from operations.commands.terminal import open_console, print_error
from operations.commands.times import time_or_age_option
from operations.stack.layout import Layout, choose_data_directory
from operations.stack.logs import LogLine, StackLogs, log_files
from shared.printable import printable

_LEVELS = {"debug": "dim", "warning": "yellow", "error": "red", "critical": "bold red"}
_COLOURS = ("cyan", "green", "magenta", "blue", "bright_cyan", "bright_green", "bright_magenta", "bright_blue")


def _programs_with_logs(incomplete: str) -> list[str]:
    """Return the names with which the shell completes a word."""
    layout = Layout(choose_data_directory(None, last_used=True))
    return [name for name in log_files(layout) if name.startswith(incomplete)]


def logs(
    services: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SERVICE",
            help="Services or servers, such as order.",
            show_default="all",
            autocompletion=_programs_with_logs,
        ),
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with each line as it is written.")] = False,
    since: Annotated[
        str | None,
        typer.Option(
            "--since",
            metavar="TIME",
            help="Since a date or time, or within a span such as 10m; also of the run before.",
            show_default="the last start",
        ),
    ] = None,
    data_dir: DataDirectory = None,
) -> None:
    """Show the logs of a stack that `ordersaga up` started, in the order of time; also after it has ended.

    Lines of several programs begin with the name of theirs; those of one are as they were written. With --follow,
    Ctrl-C ends it, and an end or a new start of the stack does not.

    Exit status 0, 1 if nothing was ever started there, 2 for wrong usage.
    """
    layout = Layout(choose_data_directory(data_dir, last_used=True))
    name_target("logs", layout.logs)
    at = time_or_age_option(since, "--since", datetime.now(UTC))
    known = log_files(layout)
    _check(known, services or (), layout, may_come=follow)
    printer = _Printer(known, prefixed=len(services or ()) != 1)
    with contextlib.closing(StackLogs(layout, services or (), at)) as found, contextlib.suppress(KeyboardInterrupt):
        printer.show(found.follow() if follow else found.read(unfinished=True))


def _check(known: Mapping[str, Path], services: Iterable[str], layout: Layout, *, may_come: bool) -> None:
    """Raise BadParameter for a service that has no log, and Exit where nothing was started and nothing is awaited."""
    if not known and not may_come:
        print_error(f"nothing was ever started in {layout.root}: there are no logs")
        raise typer.Exit(1)
    if known and (unknown := sorted(set(services) - known.keys())):
        raise typer.BadParameter(f"{', '.join(unknown)} has no log here; choose from {', '.join(known)}")


class _Printer:
    """Prints lines: with colours on a terminal, as they are for a program."""

    def __init__(self, files: Mapping[str, Path], *, prefixed: bool) -> None:
        self._console = open_console()
        self._width = max(map(len, files), default=12)
        self._prefixed = prefixed
        self._colours: dict[str, str] = {}

    def show(self, lines: Iterable[LogLine]) -> None:
        """Print these lines as they come."""
        for line in lines:
            prefix = f"{line.program:<{self._width}} | " if self._prefixed else ""
            text = printable(line.text)
            if not self._console.is_terminal:
                typer.echo(prefix + text)
                continue
            shown = Text.assemble((prefix, self._colour(line.program)), (text, _LEVELS.get(line.level, "")))
            self._console.print(shown, soft_wrap=True, highlight=False)

    def _colour(self, program: str) -> str:
        return self._colours.setdefault(program, _COLOURS[len(self._colours) % len(_COLOURS)])
