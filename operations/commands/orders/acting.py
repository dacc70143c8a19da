"""The commands `ordersaga orders cancel`, `retry`, `refund`, `nudge`, `resume` and `stop`."""

from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Annotated, Any

import typer
import uvloop

from operations.commands.options import AsJson
from operations.commands.orders.desk import Acting, Chosen, OrderDesk
from operations.commands.orders.display import follow, show_results, totals_in_words
from operations.commands.orders.failures import NothingToDoError
from operations.commands.orders.options import (
    All,
    Code,
    Ids,
    Owner,
    Product,
    Reason,
    Since,
    StatusOption,
    Stuck,
    Unsettled,
    Until,
    User,
    Why,
    Yes,
    build_search,
)
from operations.commands.orders.session import open_desk
from operations.commands.permission import NotPermittedError, require_permission
from operations.commands.reason import checked_reason
from operations.commands.target import chosen_target
from operations.commands.terminal import counted, print_error
from operations.console.bulk_executor import DEFAULT_RATE
from operations.order_actions.actions import ORDER_ACTIONS
from operations.order_actions.bulk import RUNNING, START_VALID_FOR, STARTING
from operations.order_actions.search import OrderSearch
from shared.clock import utc_now

Rate = Annotated[float, typer.Option("--rate", min=0.1, max=1000, help="Orders per second.")]

_EXIT_STATUS = (
    "Exit status 0 if every order is done, 1 if one failed or waits for a second person, if there is none or it is not "
    "confirmed, 2 for wrong usage, 3 if a server cannot be reached: run the same command again then, it continues. "
    "With ORDERSAGA_URL, the console continues by itself: `ordersaga orders resume` follows, with the id that is shown."
)


def action_command(name: str, description: str) -> Callable[..., None]:
    """Return the command that takes the action of this name on the orders that its options select."""

    def command(
        ids: Ids = None,
        all_orders: All = False,
        status: StatusOption = None,
        reason: Reason = None,
        code: Code = None,
        unsettled: Unsettled = False,
        stuck: Stuck = False,
        user: User = None,
        owner: Owner = None,
        product: Product = None,
        since: Since = None,
        until: Until = None,
        rate: Rate = DEFAULT_RATE,
        why: Why = None,
        yes: Yes = False,
        as_json_document: AsJson = False,
    ) -> None:
        _act(name, locals())

    command.__doc__ = f"{description}\n\n{_EXIT_STATUS}"
    return command


def resume(
    bulk_id: Annotated[str, typer.Argument(metavar="ID", help="Id that the interrupted command printed.")],
    as_json_document: AsJson = False,
) -> None:
    """Continue an interrupted action on many orders, and show the result of each; of one that has ended, show it.

    Exit status 0 if every order is accepted, 1 if not or if the id is unknown, 3 if a server cannot be reached.
    """

    async def work(desk: OrderDesk) -> bool:
        bulk = await _found(desk, bulk_id)
        if bulk["status"] == STARTING:
            raise NothingToDoError(_why_not_begun(bulk))
        return await _run(desk, bulk, as_json_document)

    _connected(work)


def stop(
    bulk_id: Annotated[str, typer.Argument(metavar="ID", help="Id of the action.")],
    why: Annotated[str, typer.Option("--why", help="Reason, kept in the log of actions.")],
) -> None:
    """Stop an action on many orders before its next order, wherever it runs. What is done stays done.

    Exit status 0 if it is stopped, 1 if it was over already or the id is unknown, 3 if a server cannot be reached.
    """

    async def work(desk: OrderDesk) -> bool:
        bulk = await _found(desk, bulk_id)
        await require_permission(desk.stack, ORDER_ACTIONS[bulk["action"]].permission, "`orders stop`")
        if not await desk.stop(bulk, checked_reason(why)):
            raise NothingToDoError(f"action {bulk_id} was over already")
        bulk = await _found(desk, bulk_id)
        done = bulk["total"] - bulk["open"]
        typer.echo(f"stopped after {done:,} of {counted(bulk['total'], 'orders')}")
        return True

    _connected(work)


def _why_not_begun(bulk: dict[str, Any]) -> str:
    if datetime.fromisoformat(bulk["at"]) > utc_now() - START_VALID_FOR:
        return f"action {bulk['id']} is about to begin: try again in a moment"
    return f"action {bulk['id']} was interrupted before it began, and did nothing: ask for it again"


async def _found(desk: OrderDesk, bulk_id: str) -> dict[str, Any]:
    bulk = await desk.find(bulk_id)
    if bulk is None:
        raise NothingToDoError(f"there is no action on many orders with the id {bulk_id}")
    return bulk


def _act(name: str, given: dict[str, Any]) -> None:
    """Take an action on the orders that the options select, after confirmation; exit with status 1 if any failed."""
    action, search = ORDER_ACTIONS[name], build_search(given)
    if (search != OrderSearch()) == given["all_orders"]:
        raise typer.BadParameter("give ids, filters or --all (but not --all with others)")
    if search.ids and search != OrderSearch(ids=search.ids):
        raise typer.BadParameter("give ids or filters, not both: `ordersaga orders list` shows the ids that match")
    if given["as_json_document"] and not given["yes"]:
        raise typer.BadParameter("--json does not prompt: add --yes")
    if given["why"] is None and given["yes"]:
        raise typer.BadParameter("required with --yes", param_hint="--why")
    # As it was typed: `--since 2h` means another time when the command is run again.
    options = ("ids", "all_orders", *_FILTERS)
    selection = {option: given[option] for option in options if given[option]}
    acting = Acting(action, search, selection, given["rate"])

    async def work(desk: OrderDesk) -> bool:
        await require_permission(desk.stack, action.permission, f"`orders {name}`")
        bulk = await _interrupted(desk, acting, yes=given["yes"])
        if bulk is None:
            chosen = await desk.choose(acting)
            bulk = await desk.start(acting, chosen, _confirm(acting, chosen, given))
        return await _run(desk, bulk, given["as_json_document"])

    _connected(work)


_FILTERS = ("status", "reason", "code", "unsettled", "stuck", "user", "owner", "product", "since", "until")


def _connected(work: Callable[[OrderDesk], Awaitable[bool]]) -> None:
    """Connect to the stack, do the work, and end with exit status 1 unless all of it is done."""

    async def connected() -> bool:
        async with open_desk(chosen_target()) as desk:
            return await work(desk)

    try:
        done = uvloop.run(connected())
    except (NothingToDoError, NotPermittedError) as error:
        print_error(str(error))
        raise typer.Exit(1) from None
    if not done:
        raise typer.Exit(1)


async def _run(desk: OrderDesk, bulk: dict[str, Any], as_json_document: bool) -> bool:
    """Act on the orders that have no result, show all results, and return whether every order is done."""
    if bulk["status"] == RUNNING:
        await require_permission(desk.stack, ORDER_ACTIONS[bulk["action"]].permission, f"`orders {bulk['action']}`")
        again = f"`ordersaga orders resume {bulk['id']}` continues it if this is interrupted"
        typer.echo(f"action {bulk['id']} on {counted(bulk['total'], 'orders')}; {again}", err=True)
        await follow(bulk, desk.run)
    bulk, items = await desk.results(bulk)
    show_results(bulk, items, as_json_document=as_json_document)
    return int(bulk["done"]) == int(bulk["total"])


async def _interrupted(desk: OrderDesk, acting: Acting, *, yes: bool) -> dict[str, Any] | None:
    """Return the interrupted action of the same command, to continue it; None if there is none, or it is declined.

    One of somebody else, an old one and one that a process works on are only named: this command may mean another.
    """
    for bulk, why in await desk.interrupted(acting):
        if why is not None:
            again = f"`ordersaga orders resume {bulk['id']}` continues it"
            typer.echo(f"the same action {why}, and is not finished: {again}; this is a new one", err=True)
            continue
        done = bulk["total"] - bulk["open"]
        question = f"The same action was interrupted after {done:,} of {bulk['total']:,} orders. Continue it?"
        if yes or typer.confirm(question, default=True, err=True):
            return bulk
    return None


def _confirm(acting: Acting, chosen: Chosen, given: dict[str, Any]) -> str:
    """Say how many orders, customers and how much money it is about, ask, and return the reason.

    Raises NothingToDoError if no order is selected.
    """
    action = acting.action
    if not chosen.totals.orders and not acting.search.ids:
        if not chosen.impossible:
            raise NothingToDoError(f"no order matches that could be {action.participle}")
        match = counted(chosen.impossible, "orders")
        raise NothingToDoError(f"{match} match, and none of them can be {action.participle}")
    words = totals_in_words(chosen.totals)
    typer.echo(f"{action.title} {words}: {action.warning}", err=True)
    if not given["yes"] and not typer.confirm(f"{action.title} {words}?", err=True):
        raise typer.Exit(1)
    return checked_reason(given["why"] if given["why"] is not None else typer.prompt("Reason", err=True))
