"""The orders of a stack whose databases and services the command reaches itself."""

from collections import Counter
from datetime import timedelta
from typing import Any

from operations.commands.operator import current_operator
from operations.commands.orders.desk import Acting, Chosen, Progress
from operations.console import ConsoleDependencies
from operations.console.bulk_executor import BulkExecutor
from operations.order_actions.bulk import BY_COMMAND, BulkActions
from operations.order_actions.order_json import bulk_as_json, item_as_json
from operations.order_actions.search import query_for, query_of, select_orders, totals_of
from operations.settings import Stack
from operations.sign_in.person import Person, person_of
from shared.access.permissions import Role
from shared.clock import utc_now
from shared.database import Document

CONTINUED_FOR = timedelta(hours=1)
"""How long the same command continues an interrupted action, in place of a new one."""


class LocalDesk:
    """An `OrderDesk` over MongoDB and the services."""

    def __init__(self, stack: Stack, dependencies: ConsoleDependencies) -> None:
        self.stack = stack
        self._dependencies = dependencies
        self._orders = dependencies.orders
        self._records = BulkActions(dependencies.operations)

    async def find(self, bulk_id: str) -> dict[str, Any] | None:
        """See `OrderDesk`."""
        bulk = await self._records.find(bulk_id)
        return None if bulk is None else await self._shown(bulk)

    async def choose(self, acting: Acting) -> Chosen:
        """See `OrderDesk`: those for which the action is possible, and whatever is named by its id."""
        search = acting.search
        query = query_of(search) if search.ids else query_for(acting.action, search)
        selected = await select_orders(self._orders, query)
        if selected:
            return Chosen(totals_of(selected), 0, tuple(selected))
        matching = 0 if search.ids else await self._orders.count_documents(query_of(search))
        return Chosen(totals_of([]), matching)

    async def start(self, acting: Acting, chosen: Chosen, why: str) -> dict[str, Any]:
        """See `OrderDesk`: what was confirmed is what is done; ids of no order get a result too."""
        found = {order["_id"] for order in chosen.orders}
        unknown: list[Document] = [{"_id": order_id} for order_id in acting.search.ids if order_id not in found]
        bulk = await self._records.start(
            [*chosen.orders, *unknown],
            person=_person(),
            why=why,
            action=acting.action.name,
            selection=acting.selection,
            rate=acting.rate,
            via=BY_COMMAND,
        )
        return await self._shown(bulk)

    async def interrupted(self, acting: Acting) -> list[tuple[dict[str, Any], str | None]]:
        """See `OrderDesk`."""
        same = acting.action.name, acting.selection
        return [
            (await self._shown(bulk), await self._why_another(bulk))
            for bulk in await self._records.unfinished(BY_COMMAND)
            if (bulk["action"], bulk["selection"]) == same
        ]

    async def run(self, bulk: dict[str, Any], on_progress: Progress) -> None:
        """See `OrderDesk`."""
        record = await self._records.find(bulk["id"]) or {}
        await BulkExecutor(self._dependencies).run(record, lambda _: on_progress(1))

    async def results(self, bulk: dict[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """See `OrderDesk`."""
        items = await self._records.results(bulk["id"])
        record = await self._records.find(bulk["id"]) or {}
        outcomes = Counter(str(item["outcome"]) for item in items if item.get("outcome"))
        return bulk_as_json(record, outcomes), [item_as_json(item) for item in items]

    async def stop(self, bulk: dict[str, Any], why: str) -> bool:
        """See `OrderDesk`."""
        record = await self._records.find(bulk["id"]) or {}
        return await self._records.stop(record, by=_person().label, why=why)

    async def _shown(self, bulk: Document) -> dict[str, Any]:
        return bulk_as_json(bulk, await self._records.outcomes(bulk["_id"]))

    async def _why_another(self, bulk: Document) -> str | None:
        """Return why an unfinished action is not the one that this command continues; None if it is."""
        person = person_of(bulk["by"])
        if person.subject != _person().subject:
            return f"was asked for by {person.name}"
        if bulk["at"] < utc_now() - CONTINUED_FOR:
            return f"was asked for at {bulk['at']:%Y-%m-%d %H:%M} UTC"
        return "may be running now" if await self._records.is_live(bulk) else None


def _person() -> Person:
    """Return the operator: the command line reaches the database itself, so its user may do everything."""
    name = current_operator()
    return Person(name, name, frozenset({Role.ADMIN}))
