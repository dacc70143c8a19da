"""The command `ordersaga demo`."""

import os
import shutil
import signal
import sys
import time
from pathlib import Path

import typer
import uvloop

from operations.commands.demo_display import TerminalReporter
from operations.commands.stack_display import TemporaryStackDisplay
from operations.commands.terminal import open_console
from operations.demo.demo_stack import temporary_stack
from operations.demo.scenarios import SCENARIOS, run_scenarios
from operations.stack.run import CANNOT_RUN

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


def demo() -> None:
    """Run scenarios on real services, a real broker and a real database, and audit the books at the end.

    The demo starts a temporary stack and removes it at the end. Exit status 0 if every check passed, 1 if not, 130 when
    interrupted.
    """
    console = open_console()
    reporter = TerminalReporter(console)
    # SIGTERM and SIGHUP end the demo as ctrl-C does: it removes the stack first.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: signal.raise_signal(signal.SIGINT))
    started = time.monotonic()
    console.print("Starting a temporary stack: MongoDB, RabbitMQ, the services and a provider", highlight=False)
    try:
        with temporary_stack(TemporaryStackDisplay(console)) as demo_stack:
            uvloop.run(run_scenarios(SCENARIOS, reporter, demo_stack))
            demo_stack.keep_data = reporter.failed
    except CANNOT_RUN as error:
        reporter.fail(str(error))
    except KeyboardInterrupt:
        console.print("\n[red]interrupted, the stack was removed[/]")
        raise typer.Exit(INTERRUPTED) from None
    _conclude(reporter, time.monotonic() - started)
    raise typer.Exit(1 if reporter.failed else 0)


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
