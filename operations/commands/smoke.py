"""The command `ordersaga smoke`."""

from collections.abc import Callable
from typing import Annotated

import httpx
import typer
import uvloop

from operations.actions import record_action
from operations.commands.operator import current_operator
from operations.commands.target import chosen_stack
from operations.commands.terminal import foreign, open_console, print_json
from operations.reading.connection import open_mongodb
from operations.settings import Stack
from operations.smoke.calls import Calls
from operations.smoke.steps import SmokeTest, Step
from shared.services import CONSOLE
from shared.tls import client_context

REQUEST_SECONDS = 30.0
ACTION = "smoke"
"""The name of a run in the log of actions."""


def smoke(
    within: Annotated[float, typer.Option("--within", min=1, help="Seconds that an order may take.")] = 60,
    server: Annotated[
        str | None,
        typer.Option(
            "--server", metavar="PRODUCT", help="Also buy this server, which costs money.", show_default="none"
        ),
    ] = None,
    why: Annotated[str, typer.Option("--why", help="Reason, kept in the log of actions.", show_default="none")] = "",
    as_json_document: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Check a stack after a deployment: do one of everything, undo it, and say what was done.

    It makes stock, a hold with room in a slot, a retainer, and an order that is paid from it; then it refunds the
    order, closes the retainer, deletes the hold and takes the product off sale. Amounts are 0.01 XTS, a currency for
    tests. With --server it also buys a server, which stays. Several can run at the same time: each takes a product
    that no other run has, and leaves it to the next, off sale and without units.

    Exit status 0 if everything was done and undone, 1 if a step failed (what was done is undone), 2 for wrong usage, 3
    if no stack is known or MongoDB does not answer.
    """
    stack = chosen_stack()
    console = open_console(highlight=False, soft_wrap=True)

    def show(step: Step) -> None:
        mark = "[green]✓[/]" if step.ok else "[red]✗[/]"
        console.print(f"{mark} {step.name} {step.outcome}: {foreign(step.detail)}")

    steps = uvloop.run(_run(stack, within, server, why, (lambda _: None) if as_json_document else show))
    ok = all(step.ok for step in steps)
    if as_json_document:
        print_json({"ok": ok, "stack": stack.as_json(), "steps": [step.as_json() for step in steps]})
    raise typer.Exit(0 if ok else 1)


async def _run(
    stack: Stack, within: float, server: str | None, why: str, on_step: Callable[[Step], None]
) -> list[Step]:
    steps: list[Step] = []
    async with (
        # First, because it fails at once where MongoDB is away: a run that cannot be noted is not begun.
        open_mongodb(stack.mongodb_url, purpose="the log of actions", name="ordersaga-smoke") as mongo,
        httpx.AsyncClient(
            timeout=REQUEST_SECONDS, trust_env=False, verify=client_context(), headers=stack.headers
        ) as client,
    ):
        test = SmokeTest(Calls(client, stack.urls), within=within, server=server)
        running = test.run()
        try:
            async for step in running:
                steps.append(step)
                on_step(step)
        finally:
            # If a step cannot be shown, what was done is undone and noted all the same.
            steps += [step async for step in running]
            await record_action(
                mongo[CONSOLE.database_in(stack.database_prefix)],
                by=current_operator(),
                why=why,
                action=ACTION,
                subject=test.user,
                outcome="; ".join(f"{step.name} {step.outcome}" for step in steps),
            )
    return steps
