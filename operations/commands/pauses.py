"""The commands `ordersaga pause`, `resume` and `pauses`."""

import re
from datetime import datetime
from typing import Annotated

import typer
import uvloop
from rich.table import Table

from operations.cleanup.age import read_duration
from operations.commands.operator import current_operator
from operations.commands.orders.session import connect
from operations.commands.reason import checked_reason
from operations.commands.remote.api import open_api
from operations.commands.target import chosen_target
from operations.commands.terminal import foreign, open_console, print_error, print_json
from operations.console.consumers import PAUSABLE, PAUSE, RESUME, Consumption, change, consumption_from_json, read_all
from operations.console.operator_actions import ActionFailed
from operations.console.upstream import Services, acting_for
from operations.errors import UnreachableError
from operations.settings import RemoteStack, Stack
from operations.sign_in.person import Person
from shared.access.permissions import Role
from shared.pausing.api import LONGEST_SECONDS

_NAMES = tuple(service.name for service in PAUSABLE)

ServiceArgument = Annotated[str, typer.Argument(metavar="SERVICE", help=f"One of {', '.join(_NAMES)}.")]
Why = Annotated[
    str | None,
    typer.Option("--reason", "--why", help="Reason, shown to operators, viewers and admins.", show_default="asked for"),
]


def pause(
    service: ServiceArgument,
    reason: Why = None,
    duration: Annotated[
        str | None,
        typer.Option("--for", metavar="TIME", help="Resume after this time, such as 30m.", show_default="never"),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")] = False,
) -> None:
    """Pause the consumption of a service's inbox, in all of its processes within two seconds.

    What they have begun is finished; all other messages wait in the queue. Orders that wait for them are not cancelled
    meanwhile, and have their whole time again afterwards. Holds of stock, authorised cards and delivery slots have
    limits that a pause does not extend. A second call changes the reason and the end.

    Exit status 0 if it is paused, 1 if refused or not confirmed, 2 for wrong usage, 3 if a server cannot be reached.
    """
    _check_service(service)
    seconds = _seconds(duration)
    if reason is None and yes:
        raise typer.BadParameter("required with --yes", param_hint="--reason")
    stack = chosen_target()
    how_long = f"for {duration}" if duration else "until it is resumed"
    if not yes and not typer.confirm(f"Pause the consumption of the {service} service {how_long}?", err=True):
        raise typer.Exit(1)
    why = checked_reason(reason if reason is not None else typer.prompt("Reason", err=True))
    _change(stack, service, PAUSE, why, seconds)
    open_console(highlight=False, soft_wrap=True).print(
        f"{service} is paused {how_long}; `ordersaga resume {service}` ends that", markup=False
    )


def resume(service: ServiceArgument, reason: Why = None) -> None:
    """Consume the inbox of a service again, in all of its processes within two seconds.

    Exit status 0 if it is resumed, 1 if it is not paused or refused, 2 for wrong usage, 3 if a server cannot be
    reached.
    """
    _check_service(service)
    stack = chosen_target()
    why = checked_reason(reason if reason is not None else typer.prompt("Reason", err=True))
    _change(stack, service, RESUME, why)
    open_console(highlight=False, soft_wrap=True).print(f"{service} consumes its inbox again", markup=False)


def pauses(
    as_json_document: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Show which inboxes are paused: since when, until when, by whom and why.

    Exit status 0 if none is paused, 1 if one is, 3 if a service does not say it.
    """
    found = uvloop.run(_read(chosen_target()))
    if as_json_document:
        print_json({"ok": not any(each.paused for each in found), "items": [each.as_json() for each in found]})
    else:
        _show(found)
    if any(each.problem for each in found):
        raise typer.Exit(3)
    raise typer.Exit(1 if any(each.paused for each in found) else 0)


def _check_service(service: str) -> None:
    if service not in _NAMES:
        raise typer.BadParameter(f"{service!r} is none of {', '.join(_NAMES)}", param_hint="SERVICE")


def _seconds(duration: str | None) -> int | None:
    if duration is None:
        return None
    try:
        seconds = int(read_duration(duration).total_seconds())
    except ValueError as error:
        text = re.sub(r"such as 30d$", "such as 30m", str(error))
        raise typer.BadParameter(text, param_hint="--for") from None
    if not 1 <= seconds <= LONGEST_SECONDS:
        most = f"1s to {LONGEST_SECONDS // 86_400} days are allowed; without --for it lasts until it is resumed"
        raise typer.BadParameter(most, param_hint="--for")
    return seconds


def _change(stack: Stack | RemoteStack, service: str, what: str, why: str, seconds: int | None = None) -> None:
    if isinstance(stack, RemoteStack):
        uvloop.run(_ask_to_change(stack, service, what, why, seconds))
        return

    async def work() -> ActionFailed | None:
        by = current_operator()
        async with connect(stack) as dependencies:
            with acting_for(Person(by, by, frozenset({Role.ADMIN})).principal()):
                return await change(dependencies, service, what, by=by, why=why, seconds=seconds)

    failed = uvloop.run(work())
    if failed is None:
        return
    if failed.is_transient:
        raise UnreachableError(f"{failed.verdict}: {failed.why}")
    print_error(f"{failed.verdict}: {failed.why}")
    raise typer.Exit(1)


async def _ask_to_change(stack: RemoteStack, service: str, what: str, why: str, seconds: int | None) -> None:
    body = {"reason": why} | ({} if seconds is None else {"seconds": seconds})
    async with open_api(stack) as api:
        await api.post("consumers", service, what, body=body)


async def _read(stack: Stack | RemoteStack) -> list[Consumption]:
    if isinstance(stack, RemoteStack):
        async with open_api(stack) as api:
            return [consumption_from_json(each) for each in (await api.get("consumers"))["items"]]
    services = Services(stack.urls, stack.api_key)
    try:
        return await read_all(services)
    finally:
        await services.close()


def _show(found: list[Consumption]) -> None:
    console = open_console(highlight=False)
    table = Table("service", "consumption", "since", "until", "by", "reason", box=None, padding=(0, 1, 0, 0))
    for each in found:
        state = "paused" if each.paused else "runs"
        if each.problem:
            state = foreign(f"unknown: {each.problem}")
        since, until = _moment(each.since), _moment(each.until) if each.until or not each.paused else "it is resumed"
        table.add_row(each.service, state, since, until, foreign(each.by or "-"), foreign(each.reason or "-"))
    console.print(table)


def _moment(at: datetime | None) -> str:
    return f"{at:%Y-%m-%d %H:%M:%S} UTC" if at is not None else "-"
