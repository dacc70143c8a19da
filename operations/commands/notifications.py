"""The commands `ordersaga notifications list`, `add`, `remove` and `test`."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Annotated, TypeVar

import typer
import uvloop

from operations.actions import record_action
from operations.commands.operator import current_operator
from operations.commands.permission import require_permission
from operations.commands.reason import checked_reason
from operations.commands.target import chosen_stack
from operations.commands.terminal import foreign, open_console, print_error, print_json
from operations.incidents.incident import KINDS, SEVERITIES
from operations.notifications.records import MOST_RULES, PENDING, SENT, NotificationRecords
from operations.notifications.rules import CHANNELS, Rule, split
from operations.reading.connection import open_mongodb
from operations.settings import Stack
from shared.access.permissions import Permission
from shared.database import Database, Document
from shared.services import CONSOLE

TEST_SECONDS = 60.0
POLL_SECONDS = 0.5

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
Name = Annotated[str, typer.Argument(help="Name of the rule.")]
Why = Annotated[str, typer.Option("--why", help="Reason, kept in the log of actions.")]
T = TypeVar("T")

notifications = typer.Typer(no_args_is_help=True)


@notifications.command("list")
def list_rules(as_json_document: AsJson = False) -> None:
    """List the rules: which incidents are sent where.

    Exit status 0, also if there are none, 3 if MongoDB cannot be reached.
    """
    rules = _run(lambda database: NotificationRecords(database).rules())
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

    async def work(database: Database) -> bool:
        added = await NotificationRecords(database).add(rule)
        if added:
            await _log(database, "add", name, reason, rule.describe(addresses=False))
        return added

    if not _run(work, "adding a rule"):
        _fail(f"there is a rule {name} already, or there are {MOST_RULES} rules")


@notifications.command()
def remove(name: Name, why: Why) -> None:
    """Remove a rule.

    Exit status 0, 1 if there is no such rule, 2 for wrong usage, 3 if a server cannot be reached.
    """
    reason = checked_reason(why)

    async def work(database: Database) -> bool:
        records = NotificationRecords(database)
        rule = await records.find(name)
        if rule is None or not await records.remove(name):
            return False
        await _log(database, "remove", name, reason, rule.describe(addresses=False))
        return True

    if not _run(work, "removing a rule"):
        _fail(f"there is no rule {name}")


@notifications.command()
def test(name: Name) -> None:
    """Have the console send a test message of a rule, and print what came of it.

    Exit status 0 if it was sent, 1 if not, or if there is no such rule, 3 if a server cannot be reached.
    """

    async def work(database: Database) -> Document | None:
        records = NotificationRecords(database)
        rule = await records.find(name)
        if rule is None:
            return None
        message_id = await records.open_test(rule)
        await _log(database, "test", name, "to test the rule", f"message {message_id}")
        for _ in range(int(TEST_SECONDS / POLL_SECONDS)):
            found = await records.message(message_id)
            if found is not None and found["status"] != PENDING:
                return found
            await asyncio.sleep(POLL_SECONDS)
        return {"status": PENDING, "words": f"The console has not sent it within {TEST_SECONDS:g} s: does it run?"}

    tested = _run(work, "testing a rule")
    if tested is None:
        _fail(f"there is no rule {name}")
    else:
        typer.echo(tested["words"])
        raise typer.Exit(0 if tested["status"] == SENT else 1)


def _run(work: Callable[[Database], Awaitable[T]], purpose: str | None = None) -> T:
    """Do the work on the database of operations; with a purpose, only if the key may write rules."""

    async def connected(stack: Stack) -> T:
        if purpose is not None:
            await require_permission(stack, Permission.WEBHOOKS_WRITE, purpose)
        async with open_mongodb(stack.mongodb_url, purpose="the rules", name="ordersaga-notifications") as client:
            return await work(client[CONSOLE.database_in(stack.database_prefix)])

    return uvloop.run(connected(chosen_stack()))


async def _log(database: Database, action: str, name: str, why: str, outcome: str) -> None:
    logged = {"by": current_operator(), "why": why, "action": f"notifications.{action}", "subject": name}
    await record_action(database, **logged, outcome=outcome)


def _fail(reason: str) -> None:
    print_error(reason)
    raise typer.Exit(1)
