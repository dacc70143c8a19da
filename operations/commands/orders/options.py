"""Options that several commands share, and the search for orders that they describe."""

from typing import Annotated, Any

import typer

from operations.commands.times import time_or_age_option
from operations.order_actions.search import OrderSearch
from order_service.order import Status
from shared.clock import utc_now

Ids = Annotated[
    list[str] | None, typer.Argument(metavar="[ORDER]...", help="Ids of orders.", show_default="all that match")
]
All = Annotated[bool, typer.Option("--all", help="Select all orders for which the action is possible.")]
StatusOption = Annotated[
    str | None, typer.Option("--status", help=f"Statuses separated by commas: {', '.join(Status)}.", show_default="any")
]
Reason = Annotated[str | None, typer.Option("--reason", help="Failure reason, or how it begins.", show_default="any")]
Code = Annotated[str | None, typer.Option("--code", help="Failure code, such as card_declined.", show_default="any")]
Unsettled = Annotated[bool, typer.Option("--unsettled", help="Orders that something is still to happen to.")]
Stuck = Annotated[bool, typer.Option("--stuck", help="Orders that have waited for an answer for five minutes.")]
User = Annotated[str | None, typer.Option("--user", help="The userId of the orders.", show_default="any")]
Owner = Annotated[str | None, typer.Option("--owner", help="The owner of the orders.", show_default="any")]
Product = Annotated[
    str | None, typer.Option("--product", help="Id of a product that is among the items.", show_default="any")
]
Since = Annotated[
    str | None,
    typer.Option(
        "--since",
        metavar="TIME",
        help="Placed since a date or time, or within a span such as 2h.",
        show_default="any time",
    ),
]
Until = Annotated[
    str | None, typer.Option("--until", metavar="TIME", help="Placed before a date or time.", show_default="any time")
]
Why = Annotated[str | None, typer.Option("--why", help="Reason, kept in the log of actions.", show_default="asked for")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")]


def build_search(given: dict[str, Any]) -> OrderSearch:
    """Return the search that these options describe, by their names. Raises BadParameter for a status or a time."""
    now = utc_now()
    return OrderSearch(
        ids=tuple(dict.fromkeys(given.get("ids") or ())),
        statuses=_statuses(given.get("status")),
        reason=given.get("reason") or "",
        code=given.get("code") or "",
        open=bool(given.get("unsettled")),
        stuck_at=now if given.get("stuck") else None,
        user=given.get("user") or "",
        owner=given.get("owner") or "",
        product=given.get("product") or "",
        since=time_or_age_option(given.get("since"), "--since", now),
        until=time_or_age_option(given.get("until"), "--until", now),
    )


def _statuses(text: str | None) -> tuple[str, ...]:
    names = tuple(name.strip().upper() for name in (text or "").split(",") if name.strip())
    if unknown := [name for name in names if name not in list(Status)]:
        raise typer.BadParameter(f"{unknown[0]!r} is not one of {', '.join(Status)}", param_hint="--status")
    return names
