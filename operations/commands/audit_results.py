"""Audits through the console of a stack, and the results that it keeps of all that it ran."""

import asyncio
from datetime import datetime
from http import HTTPStatus
from typing import Any

import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from operations.audit.report import Report, violation_from_json
from operations.audit.runs import ANSWERED, RUNNING, AuditRuns, run_as_json
from operations.commands.remote.api import POLL_SECONDS, OperationsApi, RefusedError, open_api
from operations.commands.terminal import counted, foreign, open_console
from operations.errors import UnreachableError
from operations.reading.connection import open_mongodb
from operations.settings import RemoteStack, Stack
from shared.services import CONSOLE

_STYLES = {"ok": "green", "violations": "red"}


async def audit_by_console(stack: RemoteStack) -> Report:
    """Have the console check the books, and return the result. Raises UnreachableError if it comes to none."""
    async with open_api(stack) as api:
        run = await _begin(api)
        console = open_console(stderr=True)
        columns = (SpinnerColumn(), TextColumn("the console audits"), TimeElapsedColumn())
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
            progress.add_task("audit", total=None)
            while run["status"] == RUNNING:
                await asyncio.sleep(POLL_SECONDS)
                run = await api.get("audits", run["id"])
    if run["status"] not in ANSWERED:
        raise UnreachableError(f"the audit came to no result ({run['status']}): {run['why']}")
    return report_of(run)


async def _begin(api: OperationsApi) -> dict[str, Any]:
    """Begin an audit; one that is under way is waited for, because it may have passed what matters now."""
    said = False
    while True:
        try:
            begun: dict[str, Any] = await api.post("audits")
        except RefusedError as error:
            if error.status != HTTPStatus.CONFLICT:
                raise
        else:
            return begun
        if not said:
            typer.echo("another audit is under way; waiting for its end", err=True)
            said = True
        await asyncio.sleep(POLL_SECONDS * 4)


def report_of(run: dict[str, Any]) -> Report:
    """Return the report that a kept result has; one of an earlier release has no figures about the stack."""
    violations = [violation_from_json(each) for each in run["violations"]]
    return Report(run["checked"], violations, run["information"] or {}, run["found"] - len(violations))


async def read_results(stack: Stack | RemoteStack, limit: int) -> dict[str, Any]:
    """Return the newest results that are kept, as the operations API shows them."""
    if isinstance(stack, RemoteStack):
        async with open_api(stack) as api:
            return await api.pages("audits", limit=limit)
    async with open_mongodb(stack.mongodb_url, purpose="the audits", name="ordersaga-audits") as client:
        page = await AuditRuns(client[CONSOLE.database_in(stack.database_prefix)]).page(limit=limit)
    return {"items": [run_as_json(run) for run in page.items], "nextCursor": page.next_cursor, "total": page.total}


def show_results(page: dict[str, Any], console: Console) -> None:
    """Print a line for each result, the newest first."""
    for run in page["items"]:
        status = f"[{style}]{run['status']}[/]" if (style := _STYLES.get(run["status"])) else run["status"]
        found = f": {counted(run['found'], 'violations')}" if run["found"] else ""
        why = f": {foreign(run['why'])}" if run["why"] else ""
        began = datetime.fromisoformat(run["startedAt"])
        console.print(
            f"{began:%Y-%m-%d %H:%M:%S}  {run['id']}  {status}{found}{why}  by {foreign(run['by'])}", soft_wrap=True
        )
    shown, total = len(page["items"]), counted(page["total"], "audits")
    console.print(total if shown == page["total"] else f"{shown:,} of {total}")
