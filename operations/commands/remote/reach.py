"""Which commands act on a stack through its console, as ORDERSAGA_URL asks, and why the others do not.

Every command is declared here. One that is not remote refuses to run while ORDERSAGA_URL is set: it would act on
another stack than the one that is named.
"""

import functools
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import typer
from typer.models import CommandInfo

from operations.commands.terminal import print_error
from operations.stack.layout import REMOTE_URL_VARIABLE


class Refusal(NamedTuple):
    """Why a command needs the machines of the stack, and what to do in place of it."""

    why: str
    instead: str


REMOTE = frozenset(
    {
        "status",
        "audit",
        "incidents",
        *(f"notifications {name}" for name in ("list", "add", "enable", "disable", "remove", "test")),
        *(f"order {name}" for name in ("timeline", "trace", "release")),
        *(f"orders {name}" for name in ("list", "show", "cancel", "retry", "refund", "nudge", "resume", "stop")),
        *(f"dead-letters {name}" for name in ("groups", "list", "show", "preview", "replay", "outcome")),
        *(f"dead-letters {name}" for name in ("edit", "discard", "restore", "export")),
        "pause",
        "resume",
        "pauses",
        "search",
        *(f"stock {name}" for name in ("list", "show", "restock", "off-sale", "on-sale")),
    }
)
"""The commands that act through the operations API."""

WITHOUT_STACK = frozenset({"topology users", "simulate"})
"""The commands that act on no stack: they print what they are given, or what they compute."""

_THERE = "run it on a machine of the stack, without ORDERSAGA_URL"
_SERVERS = Refusal("it needs MongoDB or RabbitMQ themselves", _THERE)
_FILES = Refusal("it reads and writes files of the stack's machine", _THERE)
_SERVICES = Refusal("it calls every service, and ORDERSAGA_URL is the console alone", _THERE)
_OWN_STACK = Refusal("it starts a stack of its own on this machine", "unset ORDERSAGA_URL to do so")
_LINK = Refusal("the link is only for somebody who can use the stack's own key", "open ORDERSAGA_URL and sign in there")
_FUNDS = Refusal(
    "the operations API has no accounts", "use the API of the payment service (docs/accounts.md), or " + _THERE
)

REFUSALS = {
    "up": Refusal("it starts programs on this machine", "unset ORDERSAGA_URL to start a stack here"),
    "down": Refusal("it ends programs of this machine", "unset ORDERSAGA_URL to end the stack here"),
    "demo": _OWN_STACK,
    "chaos": _OWN_STACK,
    "logs": _FILES,
    "console": _LINK,
    "load": _SERVICES,
    "smoke": _SERVICES,
    "doctor": _SERVERS,
    "recover": _SERVERS,
    "cleanup": _SERVERS,
    "archive": _SERVERS,
    "backup": _SERVERS,
    "restore": _SERVERS,
    "erase": _SERVERS,
    "migrate": _SERVERS,
    "keys": _FILES,
    "accounts": _FUNDS,
    "events": _SERVERS,
    "credentials": _SERVERS,
    "topology": _SERVERS,
    "database": _SERVERS,
    "upgrade": _SERVERS,
}
"""Why the others do not, by command or by group."""


def refusal_of(path: str) -> Refusal | None:
    """Return why a command does not run with ORDERSAGA_URL, None if it does. Raises KeyError if it is not declared."""
    if path in REMOTE or path in WITHOUT_STACK:
        return None
    return REFUSALS[path] if path in REFUSALS else REFUSALS[path.partition(" ")[0]]


def guard(name: str, target: Any) -> None:
    """Let the commands of a group refuse to run where they do not act on the stack that ORDERSAGA_URL names."""
    for command in target.registered_commands:
        _guard_command(name, command)
    for group in target.registered_groups:
        guard(f"{name} {group.name}", group.typer_instance)


def guarded(path: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function of a command, which refuses to run where it does not act on the stack that is named."""

    @functools.wraps(function)
    def checked(*arguments: Any, **options: Any) -> Any:
        if os.environ.get(REMOTE_URL_VARIABLE) and (refusal := refusal_of(path)) is not None:
            print_error(
                f"`ordersaga {path}` does not act on the stack of {REMOTE_URL_VARIABLE}: {refusal.why}. "
                f"{refusal.instead[0].upper()}{refusal.instead[1:]}."
            )
            raise typer.Exit(2)
        return function(*arguments, **options)

    checked.is_guarded = True  # type: ignore[attr-defined]  # groups are built again and again in one process
    return checked


def _guard_command(group: str, command: CommandInfo) -> None:
    function = command.callback
    if function is not None and not getattr(function, "is_guarded", False):
        name = command.name or function.__name__.replace("_", "-")
        command.callback = guarded(f"{group} {name}", function)
