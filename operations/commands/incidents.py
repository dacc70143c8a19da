"""The command `ordersaga incidents`."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import timedelta
from typing import Annotated, Any

import typer
import uvloop
from rich.console import Console

from operations.commands.options import PageCursor
from operations.commands.remote.api import OperationsApi, open_api
from operations.commands.target import chosen_target
from operations.commands.terminal import as_ascii_json, counted, foreign, open_console, print_json
from operations.commands.times import time_or_age_option
from operations.incidents.incident import KINDS, SEVERITIES, Incident, incident_from_json
from operations.incidents.records import IncidentFilter, IncidentPage, IncidentRecords
from operations.reading.connection import open_mongodb
from operations.settings import RemoteStack, Stack
from shared.clock import to_rfc3339, to_rfc3339_if_any, utc_now
from shared.services import CONSOLE, SERVICES

POLL_SECONDS = 2.0

LATE = timedelta(minutes=5)
"""How much earlier than it is recorded an incident may have happened."""

_STYLES = {"critical": "red", "warning": "yellow"}


def incidents(
    kind: Annotated[
        str | None,
        typer.Option("--kind", help=f"Kinds separated by commas: {', '.join(KINDS)}.", show_default="all"),
    ] = None,
    severity: Annotated[
        str | None,
        typer.Option(
            "--severity", help=f"Severities, separated by commas: {', '.join(SEVERITIES)}.", show_default="all"
        ),
    ] = None,
    service: Annotated[
        str | None, typer.Option("--service", help="Names of services, separated by commas.", show_default="all")
    ] = None,
    since: Annotated[
        str | None,
        typer.Option("--since", metavar="TIME", help="Date or time, or a span such as 2h.", show_default="any time"),
    ] = None,
    until: Annotated[
        str | None, typer.Option("--until", metavar="TIME", help="Date or time, or a span.", show_default="any time")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=1000, help="Maximum number of incidents.")] = 50,
    cursor: PageCursor = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with each incident as it comes.")] = False,
    as_json_document: Annotated[
        bool, typer.Option("--json", help="Print one JSON document; with --follow, one for each incident in a line.")
    ] = False,
) -> None:
    """List what happened to the stack itself, newest first: processes, failovers, audits, packages, deployments.

    With --follow, the oldest comes first, and Ctrl-C ends it.

    Exit status 0, also if the list is empty, 2 for wrong usage, 3 if MongoDB cannot be reached.
    """
    now = utc_now()
    wanted = IncidentFilter(
        _names(kind, KINDS, "--kind"),
        _names(severity, SEVERITIES, "--severity"),
        _names(service, SERVICES, "--service"),
        time_or_age_option(since, "--since", now),
        time_or_age_option(until, "--until", now),
    )
    if follow and (until or cursor):
        raise typer.BadParameter("cannot be used with --until or --cursor", param_hint="--follow")
    stack, console = chosen_target(), open_console(highlight=False)
    if follow:
        _follow(stack, wanted, limit, _line_printer(console, as_json_document))
        return
    try:
        page = uvloop.run(_read(stack, wanted, limit, cursor))
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--cursor") from None
    if as_json_document:
        items = [_as_json(incident) for incident in page.items]
        print_json({"items": items, "nextCursor": page.next_cursor, "total": page.total})
    else:
        _show(page, console)


def _names(text: str | None, known: Sequence[str] | Any, option: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in (text or "").split(",") if name.strip())
    if unknown := [name for name in names if name not in known]:
        raise typer.BadParameter(f"{unknown[0]!r} is not one of {', '.join(known)}", param_hint=option)
    return names


Reader = Callable[[IncidentFilter, int, str | None], Awaitable[IncidentPage]]
"""Returns a page of incidents."""


@contextlib.asynccontextmanager
async def _reading(stack: Stack | RemoteStack) -> AsyncIterator[Reader]:
    """Connect to the stack's MongoDB, or to its console alone."""
    if isinstance(stack, RemoteStack):
        async with open_api(stack) as api:
            yield lambda wanted, limit, cursor: _ask(api, wanted, limit, cursor)
        return
    async with open_mongodb(stack.mongodb_url, purpose="the incidents", name="ordersaga-incidents") as client:
        records = IncidentRecords(client[CONSOLE.database_in(stack.database_prefix)])
        yield lambda wanted, limit, cursor: records.page(wanted, limit=limit, cursor=cursor)


async def _ask(api: OperationsApi, wanted: IncidentFilter, limit: int, cursor: str | None) -> IncidentPage:
    page = await api.pages(
        "incidents",
        limit=limit,
        cursor=cursor,
        kind=list(wanted.kinds),
        severity=list(wanted.severities),
        service=list(wanted.services),
        since=to_rfc3339_if_any(wanted.since),
        until=to_rfc3339_if_any(wanted.until),
    )
    return IncidentPage([incident_from_json(each) for each in page["items"]], page["nextCursor"], page["total"])


async def _read(stack: Stack | RemoteStack, wanted: IncidentFilter, limit: int, cursor: str | None) -> IncidentPage:
    async with _reading(stack) as read:
        return await read(wanted, limit, cursor)


def _follow(stack: Stack | RemoteStack, wanted: IncidentFilter, limit: int, show: Callable[[Incident], None]) -> None:
    async def run() -> None:
        async with _reading(stack) as read:
            page, shown = await read(wanted, limit, None), set[str]()
            while True:
                for incident in reversed(page.items):
                    if incident.id not in shown:
                        shown.add(incident.id)
                        show(incident)
                await asyncio.sleep(POLL_SECONDS)
                lately = max(filter(None, (wanted.since, utc_now() - LATE)))
                recent = IncidentFilter(wanted.kinds, wanted.severities, wanted.services, lately)
                page = await read(recent, 1000, None)

    try:
        uvloop.run(run())
    except KeyboardInterrupt:
        return


def _line_printer(console: Console, as_json_document: bool) -> Callable[[Incident], None]:
    if as_json_document:
        return lambda incident: typer.echo(as_ascii_json(_as_json(incident)))
    return lambda incident: console.print(_line(incident), soft_wrap=True)


def _show(page: IncidentPage, console: Console) -> None:
    for incident in page.items:
        console.print(_line(incident), soft_wrap=True)
    shown = len(page.items)
    total = counted(page.total, "incidents")
    console.print(total if shown == page.total else f"{shown:,} of {total}")
    if page.next_cursor:
        console.print(f"the next page: --cursor {page.next_cursor}", soft_wrap=True)


def _line(incident: Incident) -> str:
    severity = f"{incident.severity:<8}"
    style = _STYLES.get(incident.severity)
    shown = f"[{style}]{severity}[/]" if style else severity
    return f"{incident.at:%Y-%m-%d %H:%M:%S}  {shown}  {incident.kind:<17}  {foreign(incident.text)}"


def _as_json(incident: Incident) -> dict[str, Any]:
    return {
        "id": incident.id,
        "at": to_rfc3339(incident.at),
        "kind": incident.kind,
        "severity": incident.severity,
        "service": incident.service,
        "subject": incident.subject,
        "text": incident.text,
        "link": incident.link,
    }
