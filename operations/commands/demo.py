"""The command `ordersaga demo`."""

import os
import shutil
import signal
import sys
import time
from pathlib import Path

import typer
import uvloop

from operations.commands.terminal import open_console
from operations.demo.demo_stack import own_stack
from operations.demo.reporter import Reporter
from operations.demo.scenarios import SCENARIOS, tell
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

`up` prints the ports, should these be taken. The card tok_declined is declined.
`{ordersaga} audit` checks the books, `{ordersaga} load` measures the speed.
"""


def demo() -> None:
    """Watch orders go through real services, a real broker and a real database, with the books audited at the end.

    Exit status 0 only if everything that is claimed was seen. The stack is its own, and ends with it.
    """
    console = open_console()
    scene = Reporter(console)
    # Whatever asks this program to end, it ends as by ctrl-C: the stack is taken down first.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: signal.raise_signal(signal.SIGINT))
    started = time.monotonic()
    console.print("Starting four services, a provider, RabbitMQ and MongoDB, for this story alone", highlight=False)
    try:
        with own_stack(console) as stage:
            uvloop.run(tell(SCENARIOS, scene, stage))
            stage.keep_data = not scene.held
    except CANNOT_RUN as error:
        scene.fail(str(error))
    except KeyboardInterrupt:
        console.print("\n[red]interrupted; the stack is taken down[/]")
        raise typer.Exit(INTERRUPTED) from None
    _conclude(scene, time.monotonic() - started)
    raise typer.Exit(0 if scene.held else 1)


def _conclude(scene: Reporter, seconds: float) -> None:
    if not scene.held:
        scene.console.print("\n[bold red]Not all of it held:[/] see what is red above.")
        return
    scene.console.print(f"\n[bold green]All of it held.[/] The stack is gone again; it took {seconds:.0f} s.")
    scene.console.print(AFTERWORD.format(ordersaga=_how_to_call()), highlight=False, soft_wrap=True, end="")


def _how_to_call() -> str:
    """What to type for this program, from where the user is."""
    program = Path(sys.argv[0])
    if shutil.which("ordersaga") or program.name != "ordersaga":
        return "ordersaga"
    return os.path.relpath(program.absolute())
