"""The commands `ordersaga notifications list`, `add`, `enable`, `disable`, `remove` and `test`."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Annotated, TypeVar

import typer
import uvloop

from operations.commands.options import AsJson
from operations.commands.reason import checked_reason
from operations.commands.rules_desk import RulesDesk, open_rules
from operations.commands.target import chosen_target
from operations.commands.terminal import foreign, open_console, print_error, print_json
from operations.incidents.incident import KINDS, SEVERITIES
from operations.notifications.records import MOST_RULES, PENDING, SENT
from operations.notifications.rules import CHANNELS, Rule, split

TEST_SECONDS = 60.0
POLL_SECONDS = 0.5

Name = Annotated[str, typer.Argument(help="Name of the rule.")]
Why = Annotated[str, typer.Option("--why", help="Reason, kept in the log of actions.")]
T = TypeVar("T")

notifications = typer.Typer(no_args_is_help=True)


@notifications.command("list")
def list_rules(as_json_document: AsJson = False) -> None:
    """List the rules: which incidents are sent where.

    Exit status 0, also if there are none, 3 if MongoDB cannot be reached.
    """
    rules = _run(lambda desk: desk.rules())
    if as_json_document:
        print_json({"items": [rule.as_json() for rule in rules]})
        return
    console = open_console(highlight=False)
    for rule in rules:
        state = "" if rule.enabled else " (off)"
        console.print(f"{foreign(rule.name)}{state}: {foreign(rule.describe())}", soft_wrap=True)
    if not rules:
        console.print("no rules: nothing is sent")


@notifications.command()
def add(
    name: Name,
    channel: Annotated[str, typer.Option("--channel", help=f"One of {', '.join(CHANNELS)}.")],
    why: Why,
    to: Annotated[
        str | None, typer.Option("--to", help="Addresses for e-mail, separated by commas.", show_default="none")
    ] = None,
    kind: Annotated[
        str | None, typer.Option("--kind", help=f"Kinds, separated by commas: {', '.join(KINDS)}.", show_default="all")
    ] = None,
    severity: Annotated[
        str | None,
        typer.Option("--severity", help=f"Of {', '.join(SEVERITIES)}, separated by commas.", show_default="all"),
    ] = None,
    service: Annotated[
        str | None, typer.Option("--service", help="Names of services, separated by commas.", show_default="all")
    ] = None,
) -> None:
    """Add a rule. Incidents from now on are sent.

    Exit status 0, 1 if there is a rule of this name, 2 for wrong usage, 3 if a server cannot be reached.
    """
    rule = Rule(name, channel, split(to), split(kind), split(severity), split(service))
    if objections := rule.objections():
        raise typer.BadParameter("; ".join(f"{field}: {problem}" for field, problem in objections))
    reason = checked_reason(why)

    if not _run(lambda desk: desk.add(rule, reason), "adding a rule"):
        _fail(f"there is a rule {name} already, or there are {MOST_RULES} rules")


@notifications.command()
def enable(name: Name, why: Why) -> None:
    """Turn a rule on. Incidents from now on are sent.

    Exit status 0, also if it is on, 1 if there is no such rule, 2 for wrong usage, 3 if a server cannot be reached.
    """
    _turn(name, True, why)


@notifications.command()
def disable(name: Name, why: Why) -> None:
    """Turn a rule off, and keep it. What happens until it is turned on is never sent.

    Exit status 0, also if it is off, 1 if there is no such rule, 2 for wrong usage, 3 if a server cannot be reached.
    """
    _turn(name, False, why)


def _turn(name: str, enabled: bool, why: str) -> None:
    reason = checked_reason(why)
    if not _run(lambda desk: desk.enable(name, enabled, reason), "changing a rule"):
        _fail(f"there is no rule {name}")


@notifications.command()
def remove(name: Name, why: Why) -> None:
    """Remove a rule.

    Exit status 0, 1 if there is no such rule, 2 for wrong usage, 3 if a server cannot be reached.
    """
    reason = checked_reason(why)
    if not _run(lambda desk: desk.remove(name, reason), "removing a rule"):
        _fail(f"there is no rule {name}")


@notifications.command()
def test(name: Name) -> None:
    """Have the console send a test message of a rule, and print what came of it.

    Exit status 0 if it was sent, 1 if not, or if there is no such rule, 3 if a server cannot be reached.
    """

    async def work(desk: RulesDesk) -> tuple[str, str] | None:
        message_id = await desk.test(name)
        if message_id is None:
            return None
        for _ in range(int(TEST_SECONDS / POLL_SECONDS)):
            status, words = await desk.message(message_id)
            if status != PENDING:
                return status, words
            await asyncio.sleep(POLL_SECONDS)
        return PENDING, f"The console has not sent it within {TEST_SECONDS:g} s: does it run?"

    tested = _run(work, "testing a rule")
    if tested is None:
        _fail(f"there is no rule {name}")
    else:
        status, words = tested
        typer.echo(words)
        raise typer.Exit(0 if status == SENT else 1)


def _run(work: Callable[[RulesDesk], Awaitable[T]], purpose: str | None = None) -> T:
    """Do the work on the rules; with a purpose, only if the key may write them."""

    async def connected() -> T:
        async with open_rules(chosen_target(), purpose) as desk:
            return await work(desk)

    return uvloop.run(connected())


def _fail(reason: str) -> None:
    print_error(reason)
    raise typer.Exit(1)
