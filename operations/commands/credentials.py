"""The command `ordersaga credentials`."""

import asyncio
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from operations.commands.target import chosen_stack
from operations.commands.terminal import open_console, print_error, print_json
from operations.errors import UnreachableError
from operations.reading.connection import open_mongodb
from operations.settings import Stack
from operations.stack.layout import Layout
from operations.stack.provider import KEY_VARIABLE
from provisioning_service import jobs
from provisioning_service.credentials import Vault
from provisioning_service.reencryption import Reencryption, reencrypt
from shared.errors import StartError
from shared.services import PROVISIONING
from shared.setting_files import read_value, with_file_values

credentials = typer.Typer(no_args_is_help=True)


@credentials.callback()
def _group() -> None:
    """Rotate the key that encrypts the credentials of servers."""


@credentials.command()
def rotate(
    data_dir: Annotated[Path | None, typer.Option("--data-dir", help="Data directory of the stack.")] = None,
    as_json_document: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Encrypt all stored credentials with the first key, so that the other keys can be removed.

    The keys are those of the provisioning service: ORDERSAGA_CREDENTIALS_KEY or ORDERSAGA_CREDENTIALS_KEY_FILE, else
    credentials.key in the stack's data directory. Services keep running; a run that was stopped can be repeated.

    Exit status 0 if all credentials are encrypted with the first key, 1 if no key opens some of them.
    """
    stack = chosen_stack(data_dir)
    done = asyncio.run(_rotate(stack, _vault(stack)))
    if as_json_document:
        print_json(
            {
                "checked": done.checked,
                "changed": done.changed,
                "unreadable": done.unreadable,
                "unreadableOrders": done.unreadable_orders,
            }
        )
    else:
        open_console(highlight=False).print(
            f"{done.checked} stored credentials: {done.changed} encrypted with the first key now, "
            f"{done.checked - done.changed - done.unreadable} before, {done.unreadable} unreadable",
            soft_wrap=True,
        )
    if done.unreadable:
        print_error(f"no key opens the credentials of {', '.join(done.unreadable_orders)}: keep all former keys")
        raise typer.Exit(1)


async def _rotate(stack: Stack, vault: Vault) -> Reencryption:
    async with open_mongodb(stack.url_for_changes, purpose="the rotation", name="ordersaga-credentials") as client:
        return await reencrypt(client[PROVISIONING.database_in(stack.database_prefix)][jobs.COLLECTION], vault)


def _vault(stack: Stack, environment: Mapping[str, str] = os.environ) -> Vault:
    try:
        keys = with_file_values(environment, [KEY_VARIABLE]).get(KEY_VARIABLE)
        if not keys and stack.data_dir is not None:
            keys = read_value(f"{KEY_VARIABLE}_FILE", Layout(stack.data_dir).credentials_key)
    except StartError as error:
        raise UnreachableError(str(error)) from None
    if not keys:
        raise UnreachableError(f"set {KEY_VARIABLE} or {KEY_VARIABLE}_FILE to the keys of the provisioning service")
    try:
        return Vault(keys)
    except ValueError:
        raise UnreachableError(f"{KEY_VARIABLE} is not valid: allowed are Fernet keys, separated by commas") from None
