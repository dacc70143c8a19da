"""The command `ordersaga audit`."""

from typing import Annotated

import typer
import uvloop

from operations.audit import audit as run_audit
from operations.commands.audit_display import audit_with_progress, show
from operations.commands.target import chosen_stack
from operations.commands.terminal import open_console, print_json


def audit(
    as_json_document: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Check the books of all services: every order and every product. Orders may be in flight meanwhile.

    Exit status 0 if the books balance, 1 if there are violations (each is listed), 3 if a server cannot be reached.
    """
    stack = chosen_stack()
    if as_json_document:
        report = uvloop.run(run_audit(stack.mongodb_url, stack.amqp_url, stack.database_prefix))
        print_json({"stack": stack.as_json(), **report.as_json()})
    else:
        console = open_console()
        report = uvloop.run(audit_with_progress(stack, console))
        show(report, console)
    raise typer.Exit(0 if report.ok else 1)
