"""The commands `ordersaga keys`."""

import os
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Annotated, TypeVar

import typer
from rich.table import Table

from operations.cleanup.age import read_duration
from operations.commands.names import check_name
from operations.commands.operator import current_operator
from operations.commands.target import name_target
from operations.commands.terminal import foreign, open_console, print_error, print_json
from operations.stack.api_keys import OVERLAP, KeyFileError, create_key, list_keys, revoke_key, rotate_key
from operations.stack.layout import KEYS_FILE_VARIABLE, Layout, choose_data_directory
from shared.access.keys import KeyRecord
from shared.access.permissions import Role, parse_role
from shared.clock import to_rfc3339, utc_now

keys = typer.Typer(no_args_is_help=True, help="Create, list, revoke and rotate the API keys of callers.")

DataDirectory = Annotated[
    Path | None,
    typer.Option(
        "--data-dir",
        help="Data directory of the stack.",
        show_default=f"{KEYS_FILE_VARIABLE}, else the stack used last",
    ),
]
KeyId = Annotated[str, typer.Argument(help="The 8 characters after osk_, as `ordersaga keys list` shows them.")]
T = TypeVar("T")


@keys.command()
def create(
    role: Annotated[str, typer.Option(help=f"One of {', '.join(Role)}.")],
    owner: Annotated[str, typer.Option(help="Owns the records that the caller creates, such as the shop's name.")],
    subject: Annotated[
        str | None, typer.Option(help="Of a customer: the userId of its orders.", show_default="none")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Who uses it, for the audit log.", show_default="you")] = None,
    expires: Annotated[str | None, typer.Option(help="After this time, such as 90d.", show_default="never")] = None,
    data_dir: DataDirectory = None,
) -> None:
    """Create a key and print it, with nothing else on stdout. It cannot be shown again: only a hash is stored.

    Running services accept it within seconds.
    """
    lifetime = _option("--expires", read_duration, expires) if expires is not None else None
    chosen = _option("--role", parse_role, role)
    for option, value in (("--owner", owner), ("--subject", subject), ("--name", name)):
        check_name(option, value)
    file = _file(data_dir)
    typer.echo(
        _attempt(
            lambda: create_key(file, chosen, owner, name or current_operator(), subject=subject, lifetime=lifetime)
        )
    )


@keys.command("list")
def show(
    data_dir: DataDirectory = None,
    as_json_document: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """List the keys: who uses them, with which role, and until when. The keys themselves are not stored."""
    file = _file(data_dir)
    found = _attempt(lambda: list_keys(file))
    now = utc_now()
    if as_json_document:
        print_json({"file": str(file), "keys": [_as_json(key, now) for key in found]})
        return
    console = open_console(highlight=False, soft_wrap=True)
    if not found:
        console.print(f"no keys in {foreign(file)}: `ordersaga keys create` makes one")
        return
    table = Table("id", "role", "owner", "name", "created", "valid", box=None, padding=(0, 1, 0, 0))
    for key in found:
        owner = f"{key.owner}, {key.subject}" if key.subject else key.owner
        table.add_row(
            key.id, key.role, foreign(owner), foreign(key.name), f"{key.created:%Y-%m-%d}", _validity(key, now)
        )
    console.print(table)


@keys.command()
def revoke(key_id: KeyId, data_dir: DataDirectory = None) -> None:
    """Make a key invalid. Running services refuse it within 5 s."""
    file = _file(data_dir)
    revoked = _attempt(lambda: revoke_key(file, key_id))
    _say(f"key {revoked.id} ({revoked.role} of {revoked.owner}, {revoked.name}) is revoked")


@keys.command()
def rotate(key_id: KeyId, data_dir: DataDirectory = None) -> None:
    """Print a new key with the same rights, and nothing else on stdout. The former one stays valid for 24 h."""
    file = _file(data_dir)
    key, former = _attempt(lambda: rotate_key(file, key_id))
    typer.echo(key)
    ends = to_rfc3339(former.expires) if former.expires else "never"
    typer.echo(f"the former key {former.id} is valid until {ends} ({OVERLAP.total_seconds() / 3600:.0f} h)", err=True)


def _file(data_dir: Path | None) -> Path:
    """Return the file of the keys, and name it."""
    named = os.environ.get(KEYS_FILE_VARIABLE) if data_dir is None else None
    file = Path(named) if named else Layout(choose_data_directory(data_dir, last_used=True)).keys
    name_target("keys", file)
    return file


def _option(name: str, parse: Callable[[str], T], value: str) -> T:
    try:
        return parse(value)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=name) from None


def _attempt(act: Callable[[], T]) -> T:
    try:
        return act()
    except KeyFileError as error:
        print_error(str(error))
        raise typer.Exit(1) from None


def _say(text: str) -> None:
    open_console(highlight=False, soft_wrap=True).print(foreign(text))


def _validity(key: KeyRecord, now: datetime) -> str:
    if why := key.why_invalid(now):
        return f"[red]{why}[/]"
    return f"until {key.expires:%Y-%m-%d %H:%M} UTC" if key.expires else "yes"


def _as_json(key: KeyRecord, now: datetime) -> dict[str, str | None]:
    def moment(at: datetime | None) -> str | None:
        return to_rfc3339(at) if at else None

    return {
        "id": key.id,
        "role": key.role,
        "owner": key.owner,
        "subject": key.subject,
        "name": key.name,
        "created": moment(key.created),
        "expires": moment(key.expires),
        "revoked": moment(key.revoked),
        "invalid": key.why_invalid(now),
    }
