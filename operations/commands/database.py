"""The command `ordersaga database prepare`."""

import os
from pathlib import Path
from typing import Annotated, NoReturn

import pymongo.errors
import typer
import uvloop

from operations.commands.target import name_target
from operations.commands.terminal import open_console, print_error, print_json
from operations.reading.connection import open_mongodb
from operations.stack.database_users import load_passwords, prepare_users
from operations.stack.environment import invalid_value, with_values
from operations.stack.layout import MONGODB_URL_VARIABLE, database_prefix
from operations.stack.start import StackStartError
from shared.database import first_line
from shared.errors import StartError
from shared.urls import hide_credentials

database = typer.Typer(no_args_is_help=True)


@database.callback()
def _group() -> None:
    """Create the users of MongoDB."""


@database.command("prepare")
def prepare(
    secrets: Annotated[
        Path, typer.Option("--secrets", metavar="DIR", help="Directory of the password files; missing ones are made.")
    ],
    as_json_document: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Create a user with the least rights for each service on a MongoDB that somebody else runs.

    ORDERSAGA_MONGODB_URL, or the file that ORDERSAGA_MONGODB_URL_FILE names, has the URL of an administrator. The
    passwords are random, in one file for each user (mongodb-order and so on), readable by their owner only. Run it
    again after an upgrade, after a change of a password file or after an interruption: what exists gets the passwords
    in the files and the rights of this release. docs/database.md lists the rights.

    Exit status 0 when all users are there, 1 if the administrator may not create them or a file cannot be used, 3 if
    MongoDB cannot be reached.
    """
    try:
        environment = with_values(os.environ)
        if problem := invalid_value(environment):
            _fail(problem)
        url = environment.get(MONGODB_URL_VARIABLE)
        if not url:
            _fail(f"{MONGODB_URL_VARIABLE} or {MONGODB_URL_VARIABLE}_FILE must have the URL of an administrator")
        prefix = database_prefix(environment)
        name_target("MongoDB", f"{hide_credentials(url)} (databases {prefix}_*)")
        done = uvloop.run(_prepare(url, prefix, load_passwords(secrets)))
    except (OSError, StackStartError, StartError) as error:
        _fail(str(error))
    if as_json_document:
        print_json({"databasePrefix": prefix, "done": done})
        return
    console = open_console(highlight=False, soft_wrap=True)
    for line in done:
        console.print(line, markup=False)


async def _prepare(url: str, prefix: str, passwords: dict[str, str]) -> list[str]:
    async with open_mongodb(url, purpose="the creation of users", name="ordersaga database prepare") as client:
        try:
            return await prepare_users(client, prefix, passwords)
        except pymongo.errors.OperationFailure as error:
            raise StartError(
                f"MongoDB refuses the user in {MONGODB_URL_VARIABLE}, who must be an administrator: {first_line(error)}"
            ) from None


def _fail(reason: str) -> NoReturn:
    print_error(reason)
    raise typer.Exit(1)
