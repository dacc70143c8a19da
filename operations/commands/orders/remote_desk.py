"""The orders of a stack of which the command reaches the console alone."""

import asyncio
from http import HTTPStatus
from typing import Any

from operations.commands.orders.desk import Acting, Chosen, Progress
from operations.commands.orders.failures import NothingToDoError
from operations.commands.remote.api import POLL_SECONDS, OperationsApi, RefusedError, in_rfc3339, new_key
from operations.impact.impact import minor_amounts
from operations.order_actions.bulk import FAILED, RUNNING, STARTING
from operations.order_actions.search import OrderSearch, OrderTotals
from operations.settings import RemoteStack
from shared.paging import MAX_LIMIT

LEFT_OUT = "there is no such order, or the action is not possible for it"


class RemoteDesk:
    """An `OrderDesk` over the operations API."""

    def __init__(self, api: OperationsApi) -> None:
        self._api = api
        self._left_out: list[str] = []

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
        found = await self._api.post("bulk-actions", acting.action.name, body=asked, repeat=True)
        totals = OrderTotals(found["orders"], found["customers"], minor_amounts(found["amounts"]))
        return Chosen(totals, found["leftOut"])

    async def start(self, acting: Acting, chosen: Chosen, why: str) -> dict[str, Any]:
        """See `OrderDesk`."""
        asked = _asked(acting) | {"reason": why, "rate": acting.rate, "expectedOrders": chosen.totals.orders or None}
        try:
            bulk: dict[str, Any] = await self._api.post("bulk-actions", acting.action.name, body=asked, key=new_key())
        except RefusedError as error:
            raise NothingToDoError(str(error)) from None
        while bulk["status"] == STARTING:
            await asyncio.sleep(POLL_SECONDS)
            bulk = await self._api.get("bulk-actions", bulk["id"])
        self._left_out = list(acting.search.ids)
        return bulk

    async def interrupted(self, acting: Acting) -> list[tuple[dict[str, Any], str | None]]:  # noqa: ARG002
        """See `OrderDesk`: none, because the console goes on with its actions."""
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
        items: list[dict[str, Any]] = []
        cursor = None
        while True:
            page = await self._api.get("bulk-actions", bulk["id"], "results", limit=MAX_LIMIT, cursor=cursor)
            items += page["items"]
            if (cursor := page["nextCursor"]) is None:
                break
        done = {item["orderId"] for item in items}
        left = [_left_out(order_id) for order_id in self._left_out if order_id not in done]
        shown = await self._api.get("bulk-actions", bulk["id"])
        return shown | {"total": shown["total"] + len(left), "failed": shown["failed"] + len(left)}, items + left

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
    """Return the parameters of a list of these orders."""
    return {
        "orderId": list(search.ids),
        "status": [str(status) for status in search.statuses],
        "reason": search.reason,
        "code": search.code,
        "userId": search.user,
        "ownerId": search.owner,
        "productId": search.product,
        "unsettled": search.open or None,
        "stuck": search.stuck_at is not None or None,
        "since": in_rfc3339(search.since),
        "until": in_rfc3339(search.until),
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
