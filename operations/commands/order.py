"""The commands `ordersaga order timeline` and `ordersaga order release`."""

from http import HTTPStatus
from typing import Annotated, NoReturn

import typer
import uvloop

from operations.actions import ORDER_RELEASE
from operations.commands.approval import ask_for_approval, policy_of_stack, say_that_it_waits
from operations.commands.operator import current_operator
from operations.commands.order_display import show
from operations.commands.reason import checked_reason
from operations.commands.remote.api import RefusedError, new_key, open_api
from operations.commands.target import chosen_target
from operations.commands.terminal import open_console, print_error, print_json
from operations.reading.archived_totals import ArchivedTotals
from operations.reading.connection import open_mongodb
from operations.reading.participant_records import recorded_states
from operations.settings import RemoteStack, Stack
from operations.timeline.records import read_records
from operations.timeline.release import COMMANDS, NotReleasableError, refuse_release, release_held
from operations.timeline.timeline import TimelineRecords, TimelineStep, build_timeline, step_from_json
from operations.timeline.timeline_json import timeline_as_json
from shared.clock import utc_now
from shared.printable import printable
from shared.services import CONSOLE

order = typer.Typer(no_args_is_help=True)


@order.callback()
def _group() -> None:
    """Show an order's timeline, or release stock and money of an unknown order."""


@order.command()
def timeline(
    order_id: Annotated[str, typer.Argument(metavar="ORDER", help="Id of the order.")],
    as_json_document: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Show the timeline of an order over all services: steps, messages, waits and dead letters.

    Exit status 0, 1 if no service knows the order, 3 if a server cannot be reached.
    """
    stack = chosen_target()
    records, steps = uvloop.run(_read(stack, order_id))
    if not records.exist:
        raise _unknown(stack, order_id, as_json_document)
    if as_json_document:
        print_json(timeline_as_json(records, steps))
    else:
        show(records, steps, open_console(highlight=False), utc_now())


order.command("trace", hidden=True)(timeline)  # the former name


@order.command()
def release(
    order_id: Annotated[str, typer.Argument(metavar="ORDER", help="Id that the order service does not know.")],
    why: Annotated[
        str | None, typer.Option("--why", help="Reason, kept in the log of actions.", show_default="asked for")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")] = False,
) -> None:
    """Release stock and refund money that are held for an id that the order service does not know.

    A forged `order.created` reserves stock and charges money without an order. Existing orders are refused: cancel or
    refund them instead.

    Exit status 0 if release and refund are sent, 1 if refused or not confirmed, 2 for wrong usage, 3 if a server cannot
    be reached.
    """
    if why is None and yes:
        raise typer.BadParameter("required with --yes", param_hint="--why")
    stack = chosen_target()
    records, _ = uvloop.run(_read(stack, order_id))
    if refusal := refuse_release(records):
        _refuse(refusal)
    held = recorded_states(records.by_participant)
    if not yes and not typer.confirm(f"Release what is held for order {printable(order_id)} ({held})?", err=True):
        raise typer.Exit(1)
    reason = checked_reason(why if why is not None else typer.prompt("Reason", err=True))
    try:
        uvloop.run(_send(stack, records, reason))
    except NotReleasableError as error:
        _refuse(str(error))
    console = open_console(highlight=False, markup=False)
    console.print(f"{COMMANDS} were sent", soft_wrap=True)
    console.print(f"`ordersaga order timeline {order_id}` shows when everything is returned", soft_wrap=True)
    console.print("the answers become dead letters, because the order service does not know the order", soft_wrap=True)


async def _send(stack: Stack | RemoteStack, records: TimelineRecords, reason: str) -> None:
    """Send the release, or ask for a second person if the policy of the stack wants one for as much money."""
    if isinstance(stack, RemoteStack):
        async with open_api(stack) as api:
            answer = await api.post("orders", records.order_id, "release", body={"reason": reason}, key=new_key())
        if answer["outcome"] == "waiting":
            say_that_it_waits(ORDER_RELEASE, answer["approval"], "the owner of this key", stack.url)
        return
    async with open_mongodb(stack.mongodb_url, purpose="the release of an order", name="ordersaga-release") as client:
        prefix, by = stack.database_prefix, current_operator()
        operations = client[CONSOLE.database_in(prefix)]
        amount = (records.payment or {}).get("amount")
        if (await policy_of_stack(operations)).order_needs(amount):
            await ask_for_approval(stack, operations, ORDER_RELEASE, records.order_id, reason, {})
        await release_held(client, prefix, stack.amqp_url, records.order_id, by=by, why=reason)


def _refuse(reason: str) -> NoReturn:
    print_error(f"Nothing was released: {reason}.")
    raise typer.Exit(1)


async def _read(stack: Stack | RemoteStack, order_id: str) -> tuple[TimelineRecords, list[TimelineStep]]:
    """Return what is recorded of an order, as far as it is shown, and its timeline."""
    if isinstance(stack, RemoteStack):
        return await _ask_for(stack, order_id)
    async with open_mongodb(stack.mongodb_url, purpose="the timeline of an order", name="ordersaga-timeline") as client:
        records = await read_records(client, stack.database_prefix, order_id)
        return records, build_timeline(records)


async def _ask_for(stack: RemoteStack, order_id: str) -> tuple[TimelineRecords, list[TimelineStep]]:
    async with open_api(stack) as api:
        try:
            found = await api.get("orders", order_id)
        except RefusedError as error:
            if error.status != HTTPStatus.NOT_FOUND:
                raise
            return TimelineRecords(order_id, None), []
    order = {name: found[name] for name in ("status", "settled", "failureReason", "traceparent")}
    held = {name: {"status": state} for name, state in found["recorded"].items()}
    steps = [step_from_json(step) for step in found["steps"]]
    # A dead letter alone is a record of the order too.
    letters = [{"_id": step.letter} for step in steps if step.letter is not None]
    return TimelineRecords(order_id, order if order["status"] else None, held, letters=letters), steps


def _unknown(stack: Stack | RemoteStack, order_id: str, as_json_document: bool) -> typer.Exit:
    if as_json_document:
        print_json({"orderId": order_id, "found": False})
    else:
        archived = 0 if isinstance(stack, RemoteStack) else uvloop.run(_count_archived(stack))
        hint = f" It may be one of the {archived:,} archived orders, see docs/retention.md." if archived else ""
        print_error(f"No service knows order {order_id}.{hint}")
    return typer.Exit(1)


async def _count_archived(stack: Stack) -> int:
    async with open_mongodb(stack.mongodb_url, purpose="the totals of archives", name="ordersaga-timeline") as client:
        return sum((await ArchivedTotals(client, stack.database_prefix).orders()).values())
