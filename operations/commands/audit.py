"""The command `ordersaga audit`."""

from typing import Annotated

import typer
import uvloop

from operations.audit import Report
from operations.audit import audit as run_audit
from operations.commands.audit_display import audit_with_progress, show
from operations.commands.audit_results import audit_by_console, read_results, show_results
from operations.commands.target import chosen_target
from operations.commands.terminal import open_console, print_json
from operations.settings import RemoteStack, Stack


def audit(
    results: Annotated[
        bool, typer.Option("--results", help="Audit nothing: list what the audits of the console came to.")
    ] = False,
    limit: Annotated[int, typer.Option("--limit", min=1, max=1000, help="Maximum number of results.")] = 20,
    as_json_document: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Check the books of all services: every order and every product. Orders may be in flight meanwhile.

    With ORDERSAGA_URL, the console checks them and keeps the result.

    Exit status 0 if the books balance, 1 if there are violations (each is listed), 3 if a server cannot be reached.
    """
    stack = chosen_target()
    if results:
        page = uvloop.run(read_results(stack, limit))
        if as_json_document:
            print_json(page)
        else:
            show_results(page, open_console(highlight=False))
        return
    report = _audit(stack, as_json_document)
    if as_json_document:
        print_json({"stack": stack.as_json(), **report.as_json()})
    else:
        show(report, open_console())
    raise typer.Exit(0 if report.ok else 1)


def _audit(stack: Stack | RemoteStack, as_json_document: bool) -> Report:
    if isinstance(stack, RemoteStack):
        return uvloop.run(audit_by_console(stack))
    if as_json_document:
        return uvloop.run(run_audit(stack.mongodb_url, stack.amqp_url, stack.database_prefix))
    return uvloop.run(audit_with_progress(stack, open_console()))
