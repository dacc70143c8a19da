"""What the commands do with the stock: through the inventory service of a stack, or through its console."""

import contextlib
from collections.abc import AsyncIterator
from http import HTTPStatus
from typing import Any, Protocol

import typer

from operations.commands.operator import current_operator
from operations.commands.orders.session import connect
from operations.commands.remote.api import OperationsApi, RefusedError, open_api
from operations.console import ConsoleDependencies
from operations.console.operator_actions import ActionFailed, OperatorAction
from operations.console.stock_actions import RESTOCK, SALE, add_units, switch_sale
from operations.console.upstream import ServiceResponse, Unavailable, acting_for, path
from operations.errors import CommandError, UnreachableError
from operations.settings import RemoteStack, Stack
from operations.sign_in.person import Person
from shared.access.permissions import Role
from shared.cursors import MAX_LIMIT

FIELDS = ("productId", "name", "onSale", "quantity", "reserved", "shipped")


class StockDesk(Protocol):
    """The stock of a stack; products are JSON documents. Raises UnreachableError, and CommandError for a refusal."""

    async def page(self, limit: int, cursor: str | None) -> dict[str, Any]:
        """Return up to `limit` products, by id, and the cursor of the next page."""

    async def find(self, product_id: str) -> dict[str, Any] | None:
        """Return a product, None if there is none with this id."""

    async def restock(self, product_id: str, units: int, why: str, key: str) -> bool:
        """Add units to what is free to sell, once for each key; return False if they had been added before."""

    async def switch_sale(self, product_id: str, why: str, *, on_sale: bool) -> None:
        """Put a product on sale, or take it off."""


class LocalDesk:
    """A `StockDesk` over the inventory service, which logs what it does in MongoDB."""

    def __init__(self, dependencies: ConsoleDependencies) -> None:
        self._dependencies = dependencies
        self._operator = current_operator()

    async def page(self, limit: int, cursor: str | None) -> dict[str, Any]:
        """See `StockDesk`."""
        items: list[dict[str, Any]] = []
        while True:
            asked: dict[str, str | int] = {"limit": min(limit - len(items), MAX_LIMIT)}
            found = await self._get("/inventory", **asked | ({"cursor": cursor} if cursor else {}))
            items += [_shown(each) for each in found.body["items"]]
            cursor = found.body["nextCursor"]
            if cursor is None or len(items) >= limit:
                return {"items": items, "nextCursor": cursor}

    async def find(self, product_id: str) -> dict[str, Any] | None:
        """See `StockDesk`."""
        found = await self._get(path("inventory", product_id))
        return _shown(found.body) if found.ok else None

    async def restock(self, product_id: str, units: int, why: str, key: str) -> bool:
        """See `StockDesk`."""
        with acting_for(self._person().principal()):
            outcome = await add_units(self._dependencies, self._action(why, RESTOCK, product_id), units, key)
        if isinstance(outcome, ActionFailed):
            raise _error_of(outcome)
        return not outcome.repeated

    async def switch_sale(self, product_id: str, why: str, *, on_sale: bool) -> None:
        """See `StockDesk`."""
        with acting_for(self._person().principal()):
            failed = await switch_sale(self._dependencies, self._action(why, SALE, product_id), on_sale=on_sale)
        if failed is not None:
            raise _error_of(failed)

    async def _get(self, address: str, **asked: str | int) -> ServiceResponse:
        found = await self._dependencies.services.get("inventory", address, **asked)
        if not isinstance(found, Unavailable):
            return found
        if found.refusal is None or found.refusal.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            raise UnreachableError(found.why)
        errors: list[dict[str, str]] = found.refusal.body.get("errors") or []
        if len(errors) == 1 and errors[0]["field"] == "cursor":
            raise typer.BadParameter(errors[0]["message"], param_hint="--cursor")
        raise CommandError(found.why)

    def _person(self) -> Person:
        """Return the operator, who may do everything: the command has the key of the stack."""
        return Person(self._operator, self._operator, frozenset({Role.ADMIN}))

    def _action(self, why: str, name: str, product_id: str) -> OperatorAction:
        return OperatorAction(self._operator, why, name, product_id)


class RemoteDesk:
    """A `StockDesk` over the operations API."""

    def __init__(self, api: OperationsApi) -> None:
        self._api = api

    async def page(self, limit: int, cursor: str | None) -> dict[str, Any]:
        """See `StockDesk`."""
        found = await self._api.pages("products", limit=limit, cursor=cursor)
        return {"items": [_shown(each) for each in found["items"]], "nextCursor": found["nextCursor"]}

    async def find(self, product_id: str) -> dict[str, Any] | None:
        """See `StockDesk`."""
        try:
            return _shown(await self._api.get("products", product_id))
        except RefusedError as error:
            if error.status != HTTPStatus.NOT_FOUND:
                raise
            return None

    async def restock(self, product_id: str, units: int, why: str, key: str) -> bool:
        """See `StockDesk`."""
        body = {"quantity": units, "reason": why}
        answer = await self._api.post("products", product_id, "restock", body=body, key=key)
        return not answer.get("repeated")  # a console of an earlier release does not say

    async def switch_sale(self, product_id: str, why: str, *, on_sale: bool) -> None:
        """See `StockDesk`."""
        await self._api.post("products", product_id, "sale", body={"onSale": on_sale, "reason": why})


@contextlib.asynccontextmanager
async def open_desk(target: Stack | RemoteStack) -> AsyncIterator[StockDesk]:
    """Connect to the stack, or to the console alone. Raises UnreachableError."""
    if isinstance(target, RemoteStack):
        async with open_api(target) as api:
            yield RemoteDesk(api)
    else:
        async with connect(target) as dependencies:
            yield LocalDesk(dependencies)


def _shown(item: dict[str, Any]) -> dict[str, Any]:
    """Return the stock of a product as both desks show it."""
    return {name: item.get(name) for name in FIELDS}


def _error_of(failed: ActionFailed) -> CommandError:
    text = f"{failed.verdict}: {failed.why}"
    return UnreachableError(text) if failed.is_transient else CommandError(text)
