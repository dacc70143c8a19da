"""Removes marks that have done their work: on the side of other writes, after a short idle time, and by a sweep.

What is known about an order, from its reservation, is noted per counted thing until the mark is gone. Whoever writes
that next removes the mark with it; if nobody does, `flush` does. What a killed worker knew is found by `sweep`.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from datetime import timedelta

import structlog
from pymongo.errors import PyMongoError

from inventory_service.metrics import overdue_moves
from inventory_service.reservations import Reservations
from inventory_service.stock import Decision, Reservation, Status, StockItem, assignment_of, clear_moves, is_assignment
from inventory_service.stock_items import StockItems
from shared.clock import Clock
from shared.errors import TransientError

RETRY_SECONDS = 1.0
LINGER_SECONDS = 1.0
"""Under load a mark waits this long for a write that takes it along; a write of its own is one more to collide with."""
OVERDUE_SECONDS = 60.0
"""A mark without a reservation is a message in hand or on its way back; longer than this is worth a warning."""

_log = structlog.get_logger(__name__)


class PendingMoves:
    """What this process knows about marks on products, and the ways it makes use of it."""

    def __init__(
        self, stock_items: StockItems, reservations: Reservations, clock: Clock, *, idle: float, sweep_interval: float
    ) -> None:
        self._stock_items = stock_items
        self._reservations = reservations
        self._clock = clock
        self._idle = idle
        self._sweep_interval = sweep_interval
        self._known: dict[str, dict[str, Status]] = {}
        self._since: dict[str, float] = {}
        self._last_noted = 0.0
        self._something_known = asyncio.Event()
        self._unresolved: dict[tuple[str, str], float] = {}
        self._suspected: set[str] = set()

    def known_statuses(self, item_id: str) -> Mapping[str, Status]:
        """What became of orders that have marks on this, as far as it is known."""
        return self._known.get(item_id, {})

    def remember(self, item_id: str, order_id: str, status: Status) -> None:
        """Note what a reservation says about an order that has, or had a moment ago, a mark on this."""
        self._known.setdefault(item_id, {})[order_id] = status
        self._last_noted = time.monotonic()
        self._since.setdefault(item_id, self._last_noted)
        self._something_known.set()

    def remember_decisions(self, marked: Iterable[StockItem], decisions: Mapping[str, Decision]) -> set[str]:
        """Note what every decision says of which there is a mark; returns the ids of what is owed units by that."""
        returning = set()
        for item in marked:
            for order_id in item.pending_moves.keys() & decisions.keys():
                status = decisions[order_id].status_for(item)
                self.remember(item.id, order_id, status)
                if status is not Status.RESERVED and item.held_for(order_id):
                    returning.add(item.id)
        return returning

    def forget_cleared(self, before: StockItem, after: StockItem) -> None:
        """Forget about the marks that a write has removed."""
        self._forget(before.id, before.pending_moves.keys() - after.pending_moves.keys())

    async def clear(self, ids: Collection[str]) -> None:
        """Write what is known where it belongs: marks go, and units of orders that do not keep them come back."""
        left = set(ids)
        while left:
            noted = {item_id: dict(self.known_statuses(item_id)) for item_id in left}
            before = await self._stock_items.read(left)
            after = {item_id: clear_moves(item, noted[item_id]) for item_id, item in before.items()}
            changed = {item_id for item_id in before if after[item_id] is not before[item_id]}
            written = await self._stock_items.write([after[item_id] for item_id in changed])
            done = left - (changed - written)
            for item_id in done:
                self._forget(item_id, noted[item_id])
            left -= done

    async def flush(self) -> None:
        """Settle what is known whenever there is nothing else to do for a moment, until cancelled."""
        while True:
            await self._something_known.wait()
            await asyncio.sleep(self._idle)
            await _surviving(self._settle_waiting)

    async def sweep(self) -> None:
        """Look every interval for marks that a killed worker has left, until cancelled."""
        while True:
            await asyncio.sleep(self._sweep_interval)
            await _surviving(self.sweep_once)

    async def drain(self) -> None:
        """Settle everything that is known."""
        await self.clear(list(self._known))

    async def sweep_once(self) -> None:
        """Find out about old marks whose orders are decided; a mark without a reservation belongs to its message.

        That of an assignment belongs to a request that may not be made again: what a killed worker left is given up.
        """
        before = self._clock() - timedelta(seconds=self._sweep_interval)
        marked = await self._stock_items.pending_since_before(before)
        marks = {(item.id, order_id) for item in marked for order_id in item.pending_moves}
        decisions = await self._reservations.decisions({order_id for _, order_id in marks})
        undecided = {mark for mark in marks if mark[1] not in decisions}
        self._watch(undecided)
        decisions |= await self._give_up({order_id for _, order_id in undecided if is_assignment(order_id)})
        self.remember_decisions(marked, decisions)

    async def _give_up(self, reservation_ids: set[str]) -> dict[str, Decision]:
        """Release assignments that are still undecided a whole sweep after their mark was seen; returns which are."""
        before, self._suspected = self._suspected, reservation_ids
        now = self._clock()
        abandoned = reservation_ids & before
        tombstones = [
            Reservation(reservation_id, Status.RELEASED, now, now, assignment=assignment_of(reservation_id))
            for reservation_id in abandoned
        ]
        decided_meanwhile = await self._reservations.insert(tombstones)
        return dict.fromkeys(abandoned - decided_meanwhile, Decision(Status.RELEASED))

    def _watch(self, unresolved: set[tuple[str, str]]) -> None:
        now = time.monotonic()
        self._unresolved = {mark: self._unresolved.get(mark, now) for mark in unresolved}
        overdue = [mark for mark, since in self._unresolved.items() if now - since > OVERDUE_SECONDS]
        overdue_moves.set(len(overdue))
        if overdue:
            item_id, order_id = overdue[0]
            _log.warning(
                "stock is taken for orders that nobody decides",
                marks=len(overdue),
                product_id=item_id,
                order_id=order_id,
            )

    def _forget(self, item_id: str, order_ids: Iterable[str]) -> None:
        known = self._known.get(item_id)
        if known is None:
            return
        for order_id in order_ids:
            known.pop(order_id, None)
        if not known:
            del self._known[item_id]
            del self._since[item_id]
        if not self._known:
            self._something_known.clear()

    async def _settle_waiting(self) -> None:
        now = time.monotonic()
        idle = now - self._last_noted >= self._idle
        await self.clear([item_id for item_id, since in self._since.items() if idle or now - since >= LINGER_SECONDS])


async def _surviving(work: Callable[[], Awaitable[None]]) -> None:
    """Do the work; what goes wrong is logged, and done again after a pause."""
    try:
        await work()
    except (TransientError, PyMongoError) as error:
        _log.warning("marks on products have to wait", error=str(error)[:200])
        await asyncio.sleep(RETRY_SECONDS)
    except Exception:  # noqa: BLE001 - logged; a fault here must not end the service, the marks only wait
        _log.exception("removing marks from products failed")
        await asyncio.sleep(RETRY_SECONDS)
