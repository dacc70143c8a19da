"""What the commands do with orders: in the databases and services of a stack, or through its console."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from operations.order_actions.actions import OrderAction
from operations.order_actions.search import OrderSearch, OrderTotals
from operations.settings import RemoteStack, Stack
from shared.database import Document

Progress = Callable[[int], None]
"""Receives the number of orders that have a result since the last call."""


class Chosen(NamedTuple):
    """The orders that an action is about.

    `impossible` counts those that match, and that the action is not possible for; `orders` are the chosen ones, where
    the command keeps them itself.
    """

    totals: OrderTotals
    impossible: int
    orders: tuple[Document, ...] = ()


class Acting(NamedTuple):
    """How an action was asked for: the selection as it was typed, and the pace."""

    action: OrderAction
    search: OrderSearch
    selection: Document
    rate: float


class OrderDesk(Protocol):
    """The orders of a stack; actions on many orders are JSON documents. Raises UnreachableError."""

    @property
    def stack(self) -> Stack | RemoteStack:
        """The stack."""

    async def find(self, bulk_id: str) -> dict[str, Any] | None:
        """Return an action on many orders, None if there is none with this id."""

    async def choose(self, acting: Acting) -> Chosen:
        """Return the orders that the action is about."""

    async def start(self, acting: Acting, chosen: Chosen, why: str) -> dict[str, Any]:
        """Record the action on the chosen orders. Raises NothingToDoError if they are others by now."""

    async def interrupted(self, acting: Acting) -> list[tuple[dict[str, Any], str | None]]:
        """Return the unfinished actions of the same command, and why another one is meant; None where it may not be."""

    async def run(self, bulk: dict[str, Any], on_progress: Progress) -> None:
        """Act on the orders that have no result, or wait until the console has."""

    async def results(self, bulk: dict[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Return the action as it is now, and the result of each order."""

    async def stop(self, bulk: dict[str, Any], why: str) -> bool:
        """Stop an action before its next order; False if it was over already."""
