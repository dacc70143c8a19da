"""The orders of a stack of which the command reaches the console alone."""

import asyncio
from http import HTTPStatus
from typing import Any

import typer

from operations.commands.orders.desk import Acting, Chosen, Progress
from operations.commands.orders.failures import NothingToDoError
from operations.commands.remote.api import POLL_SECONDS, ById, OperationsApi, RefusedError, new_key
from operations.errors import UnreachableError
from operations.impact.impact import minor_amounts
from operations.order_actions.bulk import DONE, ENDED, FAILED, RUNNING, STARTING, WAITING
from operations.order_actions.search import OrderSearch, OrderTotals
from operations.settings import RemoteStack
from shared.clock import to_rfc3339, to_rfc3339_if_any, utc_now
from shared.cursors import MAX_LIMIT

LEFT_OUT = "there is no such order, or the action is not possible for it"


BY_ID = ById("orderId", "orderId", "createdAt")


class RemoteDesk:
    """An `OrderDesk` over the operations API."""

    def __init__(self, api: OperationsApi) -> None:
        self._api = api
        self._left_out: list[str] = []
        self._key = new_key()
        self._action_id = ""
        self._selection = ""

    @property
    def stack(self) -> RemoteStack:
        """The stack."""
        return self._api.stack

    async def find(self, bulk_id: str) -> dict[str, Any] | None:
        """See `OrderDesk`."""
        try:
            found: dict[str, Any] = await self._api.get("bulk-actions", bulk_id)
        except RefusedError as error:
            if error.status != HTTPStatus.NOT_FOUND:
                raise
            return None
        return found

    async def choose(self, acting: Acting) -> Chosen:
        """See `OrderDesk`: of orders that are named by their ids, those for which the action is possible."""
        asked = _asked(acting) | {"reason": "only asks", "dryRun": True}
        found = await self._api.post("bulk-actions", acting.action.name, body=asked, key=self._key, only_asks=True)
        self._action_id, self._selection = found["actionId"], found["selection"]
        totals = OrderTotals(found["orders"], found["customers"], minor_amounts(found["amounts"]))
        return Chosen(totals, found["leftOut"])

    async def start(self, acting: Acting, chosen: Chosen, why: str) -> dict[str, Any]:
        """See `OrderDesk`: the id is known before, so that an action can be followed whose answer is lost."""
        self._left_out = list(acting.search.ids)
        if not chosen.totals.orders:
            return self._impossible(acting, why)
        asked = _asked(acting) | {"reason": why, "rate": acting.rate, "expectedSelection": self._selection}
        follow = f"`ordersaga orders resume {self._action_id}` shows whether it has begun, and follows it"
        typer.echo(f"asks for action {self._action_id}: {follow}", err=True)
        try:
            bulk = await self._ask_for(acting, asked)
            while bulk["status"] == STARTING:
                await asyncio.sleep(POLL_SECONDS)
                # Again with the key: if the process that was starting it has ended, this request starts it again.
                bulk = await self._ask_for(acting, asked)
        except UnreachableError as error:
            raise UnreachableError(f"{error}; {follow}") from error
        return bulk

    async def _ask_for(self, acting: Acting, asked: dict[str, Any]) -> dict[str, Any]:
        try:
            bulk: dict[str, Any] = await self._api.post("bulk-actions", acting.action.name, body=asked, key=self._key)
        except RefusedError as error:
            if error.status != HTTPStatus.CONFLICT:
                raise
            raise NothingToDoError(str(error)) from None
        return bulk

    def _impossible(self, acting: Acting, why: str) -> dict[str, Any]:
        """Return what the console would say of an action that is possible for none of the orders that are named."""
        none = dict.fromkeys(("total", DONE, WAITING, FAILED, "open"), 0)
        asked = {"action": acting.action.name, "at": to_rfc3339(utc_now()), "by": "the owner of this key", "why": why}
        return {"id": None, **asked, "status": ENDED, **none}

    async def interrupted(self, acting: Acting) -> list[tuple[dict[str, Any], str | None]]:  # noqa: ARG002
        """See `OrderDesk`: none, because the console itself continues its actions."""
        return []

    async def run(self, bulk: dict[str, Any], on_progress: Progress) -> None:
        """See `OrderDesk`: the console acts."""
        before = bulk["total"] - bulk["open"]
        while bulk["status"] == RUNNING:
            await asyncio.sleep(POLL_SECONDS)
            bulk = await self._api.get("bulk-actions", bulk["id"])
            on_progress(bulk["total"] - bulk["open"] - before)
            before = bulk["total"] - bulk["open"]

    async def results(self, bulk: dict[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """See `OrderDesk`: with a failure for each order that was named, and that the console has left out."""
        items = [] if bulk["id"] is None else await self._items(bulk["id"])
        done = {item["orderId"] for item in items}
        left = [_left_out(order_id) for order_id in self._left_out if order_id not in done]
        shown = bulk if bulk["id"] is None else await self._api.get("bulk-actions", bulk["id"])
        return shown | {"total": shown["total"] + len(left), "failed": shown["failed"] + len(left)}, items + left

    async def _items(self, bulk_id: str) -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = []
        cursor = None
        while True:
            page = await self._api.get("bulk-actions", bulk_id, "results", limit=MAX_LIMIT, cursor=cursor)
            items += page["items"]
            if (cursor := page["nextCursor"]) is None:
                return items

    async def stop(self, bulk: dict[str, Any], why: str) -> bool:
        """See `OrderDesk`."""
        try:
            await self._api.post("bulk-actions", bulk["id"], "stop", body={"reason": why})
        except RefusedError as error:
            if error.status != HTTPStatus.CONFLICT:
                raise
            return False
        return True


def query_of_list(search: OrderSearch) -> dict[str, Any]:
    """Return the parameters of a list of these orders, without their ids."""
    return {
        "status": [str(status) for status in search.statuses],
        "reason": search.reason,
        "code": search.code,
        "userId": search.user,
        "ownerId": search.owner,
        "productId": search.product,
        "unsettled": search.open or None,
        "stuck": search.stuck_at is not None or None,
        "since": to_rfc3339_if_any(search.since),
        "until": to_rfc3339_if_any(search.until),
    }


def _asked(acting: Acting) -> dict[str, Any]:
    """Return which orders an action is about, in a body."""
    if acting.search.ids:
        return {"orderIds": list(acting.search.ids)}
    matching = query_of_list(acting.search)
    return {"matching": {name: value for name, value in matching.items() if value} or {"all": True}}


def _left_out(order_id: str) -> dict[str, Any]:
    unknown = dict.fromkeys(("userId", "totalAmount", "currency"))
    return {"orderId": order_id, **unknown, "outcome": FAILED, "detail": LEFT_OUT}
