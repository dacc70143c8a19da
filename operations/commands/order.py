"""The commands `ordersaga order trace` and `ordersaga order release`."""

import logging
from typing import Annotated, NoReturn

import typer
import uvloop

from operations.commands.operator import current_operator
from operations.commands.order_display import as_json, show
from operations.commands.target import chosen_stack
from operations.commands.terminal import open_console, print_error, print_json
from operations.reading.connection import open_mongodb
from operations.reading.participant_records import recorded_states
from operations.settings import Stack
from operations.timeline.records import read_records
from operations.timeline.release import COMMANDS, NotReleasableError, refuse_release
from operations.timeline.release import release as send_release
from operations.timeline.timeline import TimelineRecords, build_timeline
from shared.clock import utc_now
from shared.observability import logs_to_stderr
from shared.printable import printable

LONGEST_REASON = 500
"""Characters of the reason of a release."""

order = typer.Typer(no_args_is_help=True)


@order.callback()
def _group() -> None:
    """Show an order's story, or return what is held for an order that does not exist."""


@order.command()
def trace(
    order_id: Annotated[str, typer.Argument(metavar="ORDER", help="The order's id.")],
    as_json_document: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Show what all services have recorded about an order, in order of time: steps, messages, waits, dead letters.

    Exit status 0, 1 when nothing is recorded about the order, 3 when a server does not answer.
    """
    records = uvloop.run(_read(chosen_stack(), order_id))
    if not records.exist:
        raise _unknown(order_id, as_json_document)
    steps = build_timeline(records)
    if as_json_document:
        print_json(as_json(records, steps))
    else:
        show(records, steps, open_console(highlight=False), utc_now())


@order.command()
def release(
    order_id: Annotated[str, typer.Argument(metavar="ORDER", help="The id that the order service does not know.")],
    why: Annotated[str | None, typer.Option("--why", help="Why; it is kept in the log of actions.")] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Return stock and money that are held for an order id that the order service does not know.

    A message `order.created` that the order service has not sent reserves and charges without an order. An order that
    exists is refused: cancel that.

    Exit status 0 when the release and the refund are sent, 1 when refused or not agreed to, 2 for wrong usage, 3 when a
    server does not answer.
    """
    if why is None and yes:
        raise typer.BadParameter("say why", param_hint="--why")
    stack = chosen_stack()
    records = uvloop.run(_read(stack, order_id))
    if refusal := refuse_release(records):
        _refuse(refusal)
    held = recorded_states(records.by_participant)
    if not yes and not typer.confirm(f"Return what is held for order {printable(order_id)} ({held})?", err=True):
        raise typer.Exit(1)
    reason = _reason(why if why is not None else typer.prompt("Why?", err=True))
    try:
        with logs_to_stderr(logging.ERROR):
            uvloop.run(send_release(stack, order_id, by=current_operator(), why=reason))
    except NotReleasableError as error:
        _refuse(str(error))
    console = open_console(highlight=False, markup=False)
    console.print(f"{COMMANDS} are sent", soft_wrap=True)
    console.print(f"`ordersaga order trace {order_id}` shows when everything is returned", soft_wrap=True)
    console.print("their answers become dead letters, as the order service does not know the order", soft_wrap=True)


def _reason(text: str) -> str:
    reason = text.strip()
    if not 1 <= len(reason) <= LONGEST_REASON:
        raise typer.BadParameter(f"has {len(reason)} characters, allowed are 1 to {LONGEST_REASON}", param_hint="--why")
    return reason


def _refuse(reason: str) -> NoReturn:
    print_error(f"Nothing is released: {reason}.")
    raise typer.Exit(1)


async def _read(stack: Stack, order_id: str) -> TimelineRecords:
    async with open_mongodb(stack.mongodb_url, purpose="the timeline of an order", name="ordersaga-timeline") as client:
        return await read_records(client, stack.database_prefix, order_id)


def _unknown(order_id: str, as_json_document: bool) -> typer.Exit:
    if as_json_document:
        print_json({"orderId": order_id, "found": False})
    else:
        text = f"Nothing is recorded about order {order_id}."
        print_error(text)
    return typer.Exit(1)
