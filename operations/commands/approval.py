"""Asks for a second person where a command's act needs one."""

from typing import NoReturn

import typer

from operations.approvals.policy import ApprovalPolicy
from operations.approvals.records import ApprovalRecords
from operations.commands.operator import current_operator
from operations.settings import Stack
from operations.sign_in.person import Person
from shared.access.permissions import Role
from shared.database import Database, Document
from shared.services import CONSOLE


async def policy_of_stack(database: Database) -> ApprovalPolicy:
    """Return the acts that need a second person, as the console of the stack published them."""
    return await ApprovalRecords(database).policy()


async def ask_for_approval(
    stack: Stack, database: Database, action: str, subject: str, why: str, parameters: Document
) -> NoReturn:
    """Record the act as one that a second person must approve, say so, and end with status 1: nothing is done yet."""
    name = current_operator()
    # The command line reaches the database itself, so its user may do everything.
    person = Person(name, name, frozenset({Role.ADMIN}))
    approval = await ApprovalRecords(database).ask(
        person, action=action, subject=subject, why=why, parameters=parameters
    )
    say_that_it_waits(action, approval, name, stack.urls[CONSOLE.name])


def say_that_it_waits(action: str, approval: str, name: str, console: str) -> NoReturn:
    """Say that a second person has been asked, and end with status 1: nothing is done yet."""
    typer.echo(
        f"nothing is done yet: {action} needs a second person. Request {approval} is waiting until somebody other than "
        f"{name} approves it at {console}/approvals, within 24 h",
        err=True,
    )
    raise typer.Exit(1)
