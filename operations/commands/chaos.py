"""The command `ordersaga chaos`."""

import asyncio
import contextlib
import signal
from collections.abc import Mapping, Sequence
from typing import Annotated

import typer
import uvloop
from rich.console import Console

from chaos.catalogue import catalogue, choose, needs_namespaces
from chaos.disk_faults import servers_on_small_disks
from chaos.fault import Fault
from chaos.namespaces import NamespaceError, enter
from chaos.report import Result
from chaos.running import ChaosPlan, run
from chaos.stack import own_stack
from operations.commands.stack_display import TemporaryStackDisplay
from operations.commands.terminal import open_console, print_error, print_json
from operations.stack.run import CANNOT_RUN

INTERRUPTED = 130
"""The exit status after a second SIGINT, or one that came before the first fault."""


def chaos(
    minutes: Annotated[float, typer.Option(min=0.1, help="End after that time, when the last fault is over.")] = 10,
    faults: Annotated[
        int | None, typer.Option(min=1, help="End after so many faults.", show_default="as many as there is time for")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the faults and of the clients' requests.")] = 0,
    cluster: Annotated[
        bool, typer.Option("--cluster", help="On three RabbitMQ nodes and a MongoDB replica set with three members.")
    ] = False,
    only: Annotated[
        str, typer.Option(metavar="KINDS", help="Kinds of faults, separated by commas.", show_default="all")
    ] = "",
    rate: Annotated[float, typer.Option(min=0.1, max=1000, help="Clients per second.")] = 15,
    as_json_document: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Start a stack of its own, let faults happen to it under load, and check that nothing was lost or doubled.

    Processes are killed, stopped and restarted, servers stay away, the broker runs out of memory, queues are purged and
    deleted, and for root on Linux networks are cut, disks fill and clocks jump, while clients place orders of all kinds
    and repeat what is not answered. The table has the time until clients saw nothing of each fault any more. Ctrl-C
    ends the fault, and judges what has happened until then.

    Exit status 0 if everything that clients were told is so and the books balance, 1 if not, 2 for wrong usage, 3 if a
    server cannot be reached, 130 when interrupted before there was anything to judge.
    """
    try:
        kinds = choose(catalogue(cluster=cluster), only)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--only") from None
    _isolate(kinds)
    possible = [kind for kind in kinds if kind.missing() is None]
    left_out = {kind.title: why for kind in kinds if (why := kind.missing()) is not None}
    if not possible:
        raise typer.BadParameter(_in_words(left_out), param_hint="--only")
    plan = ChaosPlan(possible, seed, faults, 60 * minutes, rate, left_out)
    progress = open_console(stderr=True)
    # SIGTERM and SIGHUP end it as ctrl-C does: with a verdict, and without the stack.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        result = _run(plan, progress, cluster=cluster)
    except CANNOT_RUN as error:
        print_error(str(error))
        raise typer.Exit(1) from None
    except (KeyboardInterrupt, asyncio.CancelledError):
        print_error("interrupted without a verdict")
        raise typer.Exit(INTERRUPTED) from None
    if as_json_document:
        print_json(result.as_json())
    else:
        console = open_console()
        for line in result.lines():
            console.print(line, markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(0 if result.ok else 1)


def _isolate(kinds: Sequence[Fault]) -> None:
    """Give the run a network and mounts of its own if its faults need them; without, those are left out."""
    if needs_namespaces(kinds):
        with contextlib.suppress(NamespaceError):
            enter()


def _in_words(left_out: Mapping[str, str]) -> str:
    return "; ".join(f"{title}: {why}" for title, why in left_out.items())


def _run(plan: ChaosPlan, progress: Console, *, cluster: bool) -> Result:
    def tell(line: str) -> None:
        progress.print(line, markup=False, highlight=False, soft_wrap=True)

    on_small_disks = servers_on_small_disks(plan.faults)
    with own_stack(
        TemporaryStackDisplay(progress), plan.settings, cluster=cluster, on_small_disks=on_small_disks
    ) as own:
        own.keep = True  # unless all is well: an error leaves logs and answers, too
        result = uvloop.run(run(plan, own.directory, tell))
        own.keep = not result.ok
    return result
