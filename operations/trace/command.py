"""The command `ordersaga order trace`."""

from typing import Annotated

import typer
import uvloop
from pymongo import AsyncMongoClient

from operations.drivers import unreachable_unless_done
from operations.native.reachability import mongodb_missing
from operations.records import read_records
from operations.settings import Stack, UnreachableError, announced, locate_stack
from operations.story import Document, Records, story
from operations.terminal import open_console, print_error, print_json
from operations.trace.display import as_json, show
from shared.clock import utc_now

CONNECT_TIMEOUT_MS = 5000

order = typer.Typer(no_args_is_help=True)


@order.callback()
def _group() -> None:
    """Show an order's story."""


@order.command()
def trace(
    order_id: Annotated[str, typer.Argument(metavar="ORDER", help="The order's id.")],
    as_json_document: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Show what all services have recorded about an order, in order of time: steps, messages, waits, dead letters.

    Exit status 0, 1 when nothing is recorded about the order, 3 when a server does not answer.
    """
    records = uvloop.run(_read(announced(locate_stack()), order_id))
    if not records.exist:
        raise _unknown(order_id, as_json_document)
    steps = story(records)
    if as_json_document:
        print_json(as_json(records, steps))
    else:
        show(records, steps, open_console(highlight=False), utc_now())


async def _read(stack: Stack, order_id: str) -> Records:
    if missing := await mongodb_missing(stack.mongodb_url):
        raise UnreachableError(f"MongoDB {missing}")
    with unreachable_unless_done("the trace of an order"):
        async with AsyncMongoClient[Document](
            stack.mongodb_url, tz_aware=True, serverSelectionTimeoutMS=CONNECT_TIMEOUT_MS, appname="ordersaga-trace"
        ) as client:
            return await read_records(client, stack.database_prefix, order_id)


def _unknown(order_id: str, as_json_document: bool) -> typer.Exit:
    if as_json_document:
        print_json({"orderId": order_id, "found": False})
    else:
        text = f"Nothing is recorded about order {order_id}."
        print_error(text)
    return typer.Exit(1)
