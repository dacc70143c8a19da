"""The command `ordersaga demo`."""

import os
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Annotated

import aiohttp
import typer
import uvloop
from rich.markup import escape

from operations.commands.console import LinkRefusedError, create_link
from operations.commands.demo_display import TerminalReporter
from operations.commands.operator import current_operator
from operations.commands.stack_display import TemporaryStackDisplay
from operations.commands.terminal import open_console, print_json
from operations.demo.demo_stack import lasting_stack, temporary_stack
from operations.demo.incident import SETTINGS, Incident, make_incident
from operations.demo.scenarios import SCENARIOS, run_scenarios
from operations.demo.shop_client import NotSettledError, ShopClient
from operations.errors import UnreachableError
from operations.settings import Stack
from operations.stack.run import CANNOT_RUN
from shared.services import CONSOLE

INTERRUPTED = 130

AFTERWORD = """
[bold]To keep a stack running and place an order:[/]

  {ordersaga} up

  curl -X PUT http://127.0.0.1:3009/inventory/lamp \\
       -H 'Content-Type: application/json' -d '{{"quantity": 5}}'

  curl -i http://127.0.0.1:3008/orders -H 'Content-Type: application/json' \\
       -d '{{"userId": "u1", "totalAmount": 10, "payment": {{"token": "tok_ok"}},
            "items": [{{"productId": "lamp", "quantity": 1, "price": 10}}]}}'

  curl http://127.0.0.1:3008/orders/<the orderId of the answer>

If these ports are taken, `up` chooses others and prints them. The card
tok_declined is declined. `{ordersaga} audit` checks the books,
`{ordersaga} load` measures throughput and latency.
"""

WHAT_TO_DO = """
[bold]The incident is there.[/] {letters} messages failed for four causes. {without_answer} customers paid and wait for
an answer, one order waits for its stock, and {failed} servers were not sold.

[bold]Sign in to the console[/] within 60 s (`{ordersaga} console` prints another link):

  {link}

[bold]Click first:[/]

  1. Dead letters, the group `payment.processed`: "Replay all…". The
     page of the replay says what became of it.
  2. Dead letters, the group about `quantity`: its letter, "Edit and replay",
     and a number in place of the word.
  3. Dead letters, the other two groups: nobody placed these orders. "Discard".
  4. Orders, status FAILED: tick them, "Retry". The provider has servers again.
  5. Audit: "Run an audit". The books balance, so nobody is harmed.

docs/tutorial.md goes through it step by step. `{ordersaga} down` ends the stack;
its data stays in {data}
"""


def demo(
    keep: Annotated[
        bool, typer.Option("--keep", help="Make an incident instead, and leave the stack running to work through it.")
    ] = False,
    as_json_document: Annotated[
        bool, typer.Option("--json", help="With --keep, print one JSON document; what happens goes to stderr.")
    ] = False,
) -> None:
    """Run scenarios on real services, a real broker and a real database, and audit the books at the end.

    The demo starts a temporary stack and removes it at the end. With --keep it leaves a stack in which orders wait,
    messages failed and servers were not sold, and says where to look first; `ordersaga down` ends it.

    Exit status 0 if every check passed, or the incident is there; 1 if not, 2 for wrong usage, 130 when interrupted.
    """
    if as_json_document and not keep:
        raise typer.BadParameter("only with --keep", param_hint="--json")
    console = open_console(stderr=as_json_document)
    reporter = TerminalReporter(console)
    # SIGTERM and SIGHUP end the demo as ctrl-C does: it removes the stack first.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        if keep:
            _leave_an_incident(reporter, as_json_document)
        else:
            _run_scenarios(reporter)
    except CANNOT_RUN as error:
        reporter.fail(str(error))
    except KeyboardInterrupt:
        console.print("\n[red]interrupted, the stack was removed[/]")
        raise typer.Exit(INTERRUPTED) from None
    raise typer.Exit(1 if reporter.failed else 0)


def _run_scenarios(reporter: TerminalReporter) -> None:
    started = time.monotonic()
    reporter.console.print(
        "Starting a temporary stack: MongoDB, RabbitMQ, the services and a provider", highlight=False
    )
    with temporary_stack(TemporaryStackDisplay(reporter.console)) as demo_stack:
        uvloop.run(run_scenarios(SCENARIOS, reporter, demo_stack))
        demo_stack.keep_data = reporter.failed
    _conclude(reporter, time.monotonic() - started)


def _leave_an_incident(reporter: TerminalReporter, as_json_document: bool) -> None:
    try:
        with lasting_stack(TemporaryStackDisplay(reporter.console), SETTINGS) as demo_stack:
            stack = demo_stack.stack
            incident = uvloop.run(_made_incident(reporter, stack))
            link = create_link(stack, current_operator())
    except (UnreachableError, NotSettledError, LinkRefusedError) as error:
        reporter.fail(str(error))
        return
    if as_json_document:
        print_json(
            {
                "dataDirectory": str(stack.data_dir),
                "console": stack.urls[CONSOLE.name],
                "signInLink": link,
                **incident.as_json(),
            }
        )
        return
    words = WHAT_TO_DO.format(
        ordersaga=_command_name(),
        link=escape(link),
        data=escape(str(stack.data_dir)),
        letters=incident.dead_letters,
        without_answer=len(incident.without_answer),
        failed=len(incident.failed_servers),
    )
    reporter.console.print(words, highlight=False, soft_wrap=True, end="")


async def _made_incident(reporter: TerminalReporter, stack: Stack) -> Incident:
    timeout = aiohttp.ClientTimeout(total=20)
    async with aiohttp.ClientSession(timeout=timeout, headers=stack.headers) as session:
        return await make_incident(reporter.say, stack, ShopClient(session, stack))


def _conclude(reporter: TerminalReporter, seconds: float) -> None:
    console = reporter.console
    if reporter.failed:
        console.print("\n[bold red]Some checks failed,[/] see the red lines above.")
        return
    console.print(f"\n[bold green]All checks passed.[/] The demo took {seconds:.0f} s; its stack was removed.")
    console.print(AFTERWORD.format(ordersaga=_command_name()), highlight=False, soft_wrap=True, end="")


def _command_name() -> str:
    """Return the command that runs this program from the current directory."""
    program = Path(sys.argv[0])
    if shutil.which("ordersaga") or program.name != "ordersaga":
        return "ordersaga"
    return os.path.relpath(program.absolute())
