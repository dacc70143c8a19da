"""The commands `ordersaga orders cancel`, `retry`, `refund`, `nudge`, `resume` and `stop`."""

from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Annotated, Any

import typer
import uvloop

from operations.commands.operator import current_operator
from operations.commands.orders.display import follow, show_results, totals_in_words
from operations.commands.orders.options import (
    All,
    AsJson,
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
from operations.commands.orders.session import connect
from operations.commands.permission import NotPermittedError, require_permission
from operations.commands.reason import checked_reason
from operations.commands.target import chosen_stack
from operations.commands.terminal import counted, print_error
from operations.console import ConsoleDependencies
from operations.console.bulk_executor import DEFAULT_RATE, BulkExecutor
from operations.errors import CommandError
from operations.order_actions.actions import ORDER_ACTIONS, OrderAction
from operations.order_actions.bulk import BY_COMMAND, DONE, RUNNING, STARTING, BulkActions
from operations.order_actions.search import OrderSearch, query_for, query_of, select_orders, totals_of
from operations.settings import Stack
from operations.sign_in.person import Person, person_of
from shared.access.permissions import Role
from shared.clock import utc_now
from shared.database import Collection, Document

Rate = Annotated[float, typer.Option("--rate", min=0.1, max=1000, help="Orders per second.")]

CONTINUED_FOR = timedelta(hours=1)
"""How long the same command continues an interrupted action, in place of a new one."""

_EXIT_STATUS = (
    "Exit status 0 if every order is done, 1 if one failed or waits for a second person, if there is none or it is not "
    "confirmed, 2 for wrong usage, 3 if a server cannot be reached: run the same command again then, it continues."
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

    async def work(stack: Stack, dependencies: ConsoleDependencies) -> bool:
        bulk = await BulkActions(dependencies.operations).find(bulk_id)
        if bulk is None:
            raise NothingToDoError(f"there is no action on many orders with the id {bulk_id}")
        if bulk["status"] == STARTING:
            raise NothingToDoError(
                f"action {bulk_id} was interrupted before it began, and did nothing: ask for it again"
            )
        return await _run(stack, dependencies, bulk, as_json_document)

    _connected(work)


def stop(
    bulk_id: Annotated[str, typer.Argument(metavar="ID", help="Id of the action.")],
    why: Annotated[str, typer.Option("--why", help="Reason, kept in the log of actions.")],
) -> None:
    """Stop an action on many orders before its next order, wherever it runs. What is done stays done.

    Exit status 0 if it is stopped, 1 if it was over already or the id is unknown, 3 if a server cannot be reached.
    """

    async def work(stack: Stack, dependencies: ConsoleDependencies) -> bool:
        records = BulkActions(dependencies.operations)
        bulk = await records.find(bulk_id)
        if bulk is None:
            raise NothingToDoError(f"there is no action on many orders with the id {bulk_id}")
        await require_permission(stack, ORDER_ACTIONS[bulk["action"]].permission, "`orders stop`")
        if not await records.stop(bulk, by=_person().label, why=checked_reason(why)):
            raise NothingToDoError(f"action {bulk_id} was over already")
        done = (await records.outcomes(bulk_id)).total()
        typer.echo(f"stopped after {done:,} of {counted(bulk['total'], 'orders')}")
        return True

    _connected(work)


class NothingToDoError(CommandError):
    """There is no order to act on, or no such action; the message is for the operator."""


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

    async def work(stack: Stack, dependencies: ConsoleDependencies) -> bool:
        await require_permission(stack, action.permission, f"`orders {name}`")
        records = BulkActions(dependencies.operations)
        bulk = await _interrupted(records, action, selection, yes=given["yes"])
        if bulk is None:
            # Selected once: what is confirmed is what is done.
            selected = await select_orders(dependencies.orders, _query(action, search))
            reason = await _confirm(dependencies.orders, action, search, selected, given)
            found = {order["_id"] for order in selected}
            unknown: list[Document] = [{"_id": order_id} for order_id in search.ids if order_id not in found]
            bulk = await records.start(
                selected + unknown,
                person=_person(),
                why=reason,
                action=name,
                selection=selection,
                rate=given["rate"],
                via=BY_COMMAND,
            )
        return await _run(stack, dependencies, bulk, given["as_json_document"])

    _connected(work)


_FILTERS = ("status", "reason", "code", "unsettled", "stuck", "user", "owner", "product", "since", "until")


def _connected(work: Callable[[Stack, ConsoleDependencies], Awaitable[bool]]) -> None:
    """Connect to the stack, do the work, and end with exit status 1 unless all of it is done."""

    async def connected() -> bool:
        stack = chosen_stack()
        async with connect(stack) as dependencies:
            return await work(stack, dependencies)

    try:
        done = uvloop.run(connected())
    except (NothingToDoError, NotPermittedError) as error:
        print_error(str(error))
        raise typer.Exit(1) from None
    if not done:
        raise typer.Exit(1)


async def _run(stack: Stack, dependencies: ConsoleDependencies, bulk: Document, as_json_document: bool) -> bool:
    """Act on the orders that have no result, show all results, and return whether every order is done."""
    records = BulkActions(dependencies.operations)
    if bulk["status"] == RUNNING:
        await require_permission(stack, ORDER_ACTIONS[bulk["action"]].permission, f"`orders {bulk['action']}`")
        again = f"`ordersaga orders resume {bulk['_id']}` continues it if this is interrupted"
        typer.echo(f"action {bulk['_id']} on {counted(bulk['total'], 'orders')}; {again}", err=True)
        await follow(bulk, await records.outcomes(bulk["_id"]), BulkExecutor(dependencies).run)
    await show_results(records, bulk, as_json_document=as_json_document)
    return (await records.outcomes(bulk["_id"]))[DONE] == int(bulk["total"])


async def _interrupted(records: BulkActions, action: OrderAction, selection: Document, *, yes: bool) -> Document | None:
    """Return the interrupted action of the same command, to continue it; None if there is none, or it is declined.

    One of somebody else, an old one and one that a process works on are only named: this command may mean another.
    """
    for bulk in await records.unfinished(BY_COMMAND):
        if (bulk["action"], bulk["selection"]) != (action.name, selection):
            continue
        if (why := await _why_another(records, bulk)) is not None:
            again = f"`ordersaga orders resume {bulk['_id']}` continues it"
            typer.echo(f"the same action {why}, and is not finished: {again}; this is a new one", err=True)
            continue
        done = (await records.outcomes(bulk["_id"])).total()
        question = f"The same action was interrupted after {done:,} of {bulk['total']:,} orders. Continue it?"
        if yes or typer.confirm(question, default=True, err=True):
            return bulk
    return None


async def _why_another(records: BulkActions, bulk: Document) -> str | None:
    """Return why an unfinished action is not the one that this command continues; None if it is."""
    person = person_of(bulk["by"])
    if person.subject != _person().subject:
        return f"was asked for by {person.name}"
    if bulk["at"] < utc_now() - CONTINUED_FOR:
        return f"was asked for at {bulk['at']:%Y-%m-%d %H:%M} UTC"
    return "may be running now" if await records.is_live(bulk) else None


def _query(action: OrderAction, search: OrderSearch) -> Document:
    """Return the orders to act on: those for which the action is possible, and whatever is named by its id."""
    return query_of(search) if search.ids else query_for(action, search)


async def _confirm(
    orders: Collection, action: OrderAction, search: OrderSearch, selected: list[Document], given: dict[str, Any]
) -> str:
    """Say how many orders, customers and how much money it is about, ask, and return the reason.

    Raises NothingToDoError if no order is selected.
    """
    if not selected and not search.ids:
        matching = await orders.count_documents(query_of(search))
        if not matching:
            raise NothingToDoError(f"no order matches that could be {action.participle}")
        raise NothingToDoError(f"{counted(matching, 'orders')} match, and none of them can be {action.participle}")
    words = totals_in_words(totals_of(selected))
    typer.echo(f"{action.title} {words}: {action.warning}", err=True)
    if not given["yes"] and not typer.confirm(f"{action.title} {words}?", err=True):
        raise typer.Exit(1)
    return checked_reason(given["why"] if given["why"] is not None else typer.prompt("Reason", err=True))


def _person() -> Person:
    """Return the operator: the command line reaches the database itself, so its user may do everything."""
    name = current_operator()
    return Person(name, name, frozenset({Role.ADMIN}))
