"""The command `ordersaga credentials`."""

import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, NamedTuple

import typer

from notification_service import endpoints
from notification_service import reencryption as webhook_reencryption
from notification_service.signing_secrets import SecretVault
from operations.commands.target import DataDirectory, chosen_stack
from operations.commands.terminal import open_console, print_error, print_json
from operations.errors import UnreachableError
from operations.reading.connection import open_mongodb
from operations.settings import Stack
from operations.stack.encryption_keys import WEBHOOK_KEY_VARIABLE
from operations.stack.layout import Layout
from operations.stack.provider import KEY_VARIABLE
from provisioning_service import jobs
from provisioning_service import reencryption as server_reencryption
from provisioning_service.credentials import Vault
from shared.clock import utc_now
from shared.database import Collection
from shared.errors import StartError
from shared.reencryption import Reencryption
from shared.sealing import check_keys
from shared.services import NOTIFICATION, PROVISIONING, Service
from shared.setting_files import read_value, with_file_values

credentials = typer.Typer(no_args_is_help=True)


class Which(StrEnum):
    """What a key encrypts."""

    SERVERS = "servers"
    WEBHOOKS = "webhooks"


class _Secrets(NamedTuple):
    """Secrets that a service stores."""

    service: Service
    collection: str
    variable: str
    """The variable with the keys."""
    key_file: Callable[[Layout], Path]
    reencrypt: Callable[[Collection, str], Awaitable[Reencryption]]
    """Takes the keys."""
    name: str
    listed_as: str
    """The name of the list of the records with a secret that no key opens."""


async def _reencrypt_servers(collection: Collection, keys: str) -> Reencryption:
    return await server_reencryption.reencrypt(collection, Vault(keys))


async def _reencrypt_webhooks(collection: Collection, keys: str) -> Reencryption:
    return await webhook_reencryption.reencrypt(collection, SecretVault(keys), utc_now())


_SECRETS: Mapping[Which, _Secrets] = {
    Which.SERVERS: _Secrets(
        service=PROVISIONING,
        collection=jobs.COLLECTION,
        variable=KEY_VARIABLE,
        key_file=lambda layout: layout.credentials_key,
        reencrypt=_reencrypt_servers,
        name="credentials",
        listed_as="unreadableOrders",
    ),
    Which.WEBHOOKS: _Secrets(
        service=NOTIFICATION,
        collection=endpoints.COLLECTION,
        variable=WEBHOOK_KEY_VARIABLE,
        key_file=lambda layout: layout.webhook_key,
        reencrypt=_reencrypt_webhooks,
        name="secrets of webhooks",
        listed_as="unreadableWebhooks",
    ),
}


@credentials.callback()
def _group() -> None:
    """Rotate the keys that encrypt the credentials of servers and the secrets of webhooks."""


@credentials.command()
def rotate(
    which: Annotated[Which, typer.Argument(help="What the key encrypts.")] = Which.SERVERS,
    data_dir: DataDirectory = None,
    as_json_document: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Encrypt all stored credentials with the first key, so that the other keys can be removed.

    The keys for servers are those of the provisioning service: ORDERSAGA_CREDENTIALS_KEY or
    ORDERSAGA_CREDENTIALS_KEY_FILE, else credentials.key in the stack's data directory. Those for webhooks are those of
    the notification service: ORDERSAGA_WEBHOOK_KEY or ORDERSAGA_WEBHOOK_KEY_FILE, else secrets/webhook-key. Services
    keep running; a run that was stopped can be repeated.

    Exit status 0 if all are encrypted with the first key, 1 if no key opens some of them.
    """
    stack, secrets = chosen_stack(data_dir), _SECRETS[which]
    done = asyncio.run(_rotate(stack, secrets, _keys(stack, secrets)))
    if as_json_document:
        print_json(
            {
                "checked": done.checked,
                "changed": done.changed,
                "unreadable": done.unreadable,
                secrets.listed_as: done.unreadable_ids,
            }
        )
    else:
        open_console(highlight=False).print(
            f"{done.checked} stored {secrets.name}: {done.changed} encrypted with the first key now, "
            f"{done.checked - done.changed - done.unreadable} before, {done.unreadable} unreadable",
            soft_wrap=True,
        )
    if done.unreadable:
        print_error(f"no key opens the {secrets.name} of {', '.join(done.unreadable_ids)}: keep all former keys")
        raise typer.Exit(1)


async def _rotate(stack: Stack, secrets: _Secrets, keys: str) -> Reencryption:
    database = secrets.service.database_in(stack.database_prefix)
    async with open_mongodb(stack.url_for_changes, purpose="the rotation", name="ordersaga-credentials") as client:
        return await secrets.reencrypt(client[database][secrets.collection], keys)


def _keys(stack: Stack, secrets: _Secrets, environment: Mapping[str, str] = os.environ) -> str:
    variable, file_variable = secrets.variable, f"{secrets.variable}_FILE"
    try:
        keys = with_file_values(environment, [variable]).get(variable)
        if not keys and stack.data_dir is not None:
            keys = read_value(file_variable, secrets.key_file(Layout(stack.data_dir)))
    except StartError as error:
        raise UnreachableError(str(error)) from None
    if not keys:
        raise UnreachableError(f"set {variable} or {file_variable} to the keys of the {secrets.service.name} service")
    try:
        check_keys(keys)
    except ValueError:
        raise UnreachableError(f"{variable} is not valid: allowed are Fernet keys, separated by commas") from None
    return keys
