"""Clears the pending moves of decided orders: together with other writes, after a short idle time, and by a sweep.

The status of a decided order is remembered per item until its pending move is gone. The next write of the item clears
the move with it; if there is none soon, `flush` does. `sweep` finds the moves that a killed worker has left behind.
"""

import asyncio
import time
from collections.abc import Collection, Iterable, Mapping
from datetime import timedelta

import structlog

from inventory_service.metrics import overdue_moves
from inventory_service.reservations import Reservations
from inventory_service.stock import (
    Decision,
    Reservation,
    Status,
    StockItem,
    assignment_of,
    clear_moves,
    is_assignment,
    is_hold,
)
from inventory_service.stock_items import StockItems
from shared.background import jitter, run_periodically
from shared.clock import Clock

LINGER_SECONDS = 1.0
"""The wait of a move, under load, for a write that clears it: a separate write is one more that can collide."""
OVERDUE_SECONDS = 60.0
"""A move without a reservation means that a message is being handled or redelivered; beyond this, warn."""

_log = structlog.get_logger(__name__)


class PendingMoves:
    """The statuses of orders with pending moves, as far as this process knows them, and the clearing of those moves."""

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
        self._last_remembered = 0.0
        self._something_known = asyncio.Event()
        self._undecided: dict[tuple[str, str], float] = {}
        self._suspected: set[str] = set()

    def known_statuses(self, item_id: str) -> Mapping[str, Status]:
        """Return the known statuses of orders with pending moves on the item, by order."""
        return self._known.get(item_id, {})

    def remember(self, item_id: str, order_id: str, status: Status) -> None:
        """Remember the status of an order that has, or just had, a pending move on the item."""
        self._known.setdefault(item_id, {})[order_id] = status
        self._last_remembered = time.monotonic()
        self._since.setdefault(item_id, self._last_remembered)
        self._something_known.set()

    def remember_decisions(self, items: Iterable[StockItem], decisions: Mapping[str, Decision]) -> set[str]:
        """Remember the decisions of orders with pending moves on these items; return the items that get units back."""
        returning = set()
        for item in items:
            for order_id in item.pending_moves:
                if order_id not in decisions:
                    continue
                status = decisions[order_id].status_for(item)
                self.remember(item.id, order_id, status)
                if not status.keeps_units and item.held_for(order_id):
                    returning.add(item.id)
        return returning

    def forget_cleared(self, before: StockItem, after: StockItem) -> None:
        """Forget the moves that a write has cleared."""
        self._forget(before.id, before.pending_moves.keys() - after.pending_moves.keys())

    async def clear(self, ids: Collection[str]) -> None:
        """Clear the known moves of these items, and return the units of orders that do not keep them."""
        left = set(ids)
        while left:
            known = {item_id: dict(self.known_statuses(item_id)) for item_id in left}
            before = await self._stock_items.read(left)
            after = {item_id: clear_moves(item, known[item_id]) for item_id, item in before.items()}
            changed = {item_id for item_id in before if after[item_id] is not before[item_id]}
            written = await self._stock_items.write([after[item_id] for item_id in changed])
            # What another worker has changed since the read is tried again.
            done = left - (changed - written)
            for item_id in done:
                # A status that has changed since then belongs to a later move, such as that of a release.
                latest = self.known_statuses(item_id)
                self._forget(item_id, [each for each, status in known[item_id].items() if latest.get(each) is status])
            left -= done

    async def flush(self) -> None:
        """Clear known moves whenever the process is idle for a moment, until cancelled."""
        await run_periodically(
            self._flush_once, every=LINGER_SECONDS, wake=self._something_known, name="clearing pending moves"
        )

    async def sweep(self) -> None:
        """Look for moves that a killed worker has left behind, every interval, until cancelled."""
        await run_periodically(
            self.sweep_once, every=lambda: jitter(self._sweep_interval), name="sweeping pending moves"
        )

    async def drain(self) -> None:
        """Clear all known moves."""
        await self.clear(list(self._known))

    async def sweep_once(self) -> None:
        """Remember the decisions of orders with old moves, for `flush` to clear.

        A move without a reservation stays, because the order's message will be redelivered. The request for an
        assignment or a hold may never be repeated, so the move of an undecided one is abandoned.
        """
        before = self._clock() - timedelta(seconds=self._sweep_interval)
        items = await self._stock_items.pending_since_before(before)
        moves = {(item.id, order_id) for item in items for order_id in item.pending_moves}
        decisions = await self._reservations.decisions({order_id for _, order_id in moves})
        undecided = {(item_id, order_id) for item_id, order_id in moves if order_id not in decisions}
        self._warn_of_overdue(undecided)
        decisions |= await self._abandon({each for _, each in undecided if is_assignment(each) or is_hold(each)})
        self.remember_decisions(items, decisions)

    async def _abandon(self, reservation_ids: set[str]) -> dict[str, Decision]:
        """Release the assignments and holds that the previous sweep also found undecided; return their decisions."""
        now = self._clock()
        abandoned = reservation_ids & self._suspected
        tombstones = [
            Reservation(
                reservation_id,
                Status.RELEASED,
                now,
                now,
                assignment=assignment_of(reservation_id) if is_assignment(reservation_id) else None,
            )
            for reservation_id in sorted(abandoned)
        ]
        decided_meanwhile = await self._reservations.insert(tombstones)
        # Only now: a sweep that fails above is repeated at once, but two sweeps must be an interval apart.
        self._suspected = reservation_ids
        return dict.fromkeys(abandoned - decided_meanwhile, Decision(Status.RELEASED))

    def _warn_of_overdue(self, undecided: set[tuple[str, str]]) -> None:
        now = time.monotonic()
        self._undecided = {move: self._undecided.get(move, now) for move in undecided}
        overdue = [move for move, since in self._undecided.items() if now - since > OVERDUE_SECONDS]
        overdue_moves.set(len(overdue))
        if overdue:
            item_id, order_id = overdue[0]
            _log.warning(
                "stock is taken for orders that stay undecided",
                moves=len(overdue),
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

    async def _flush_once(self) -> bool:
        """Wait for moves, and clear those that have been known for long enough; return True while others are left."""
        if not self._known:
            await self._something_known.wait()
        await asyncio.sleep(self._idle)
        now = time.monotonic()
        idle = now - self._last_remembered >= self._idle
        await self.clear([item_id for item_id, since in self._since.items() if idle or now - since >= LINGER_SECONDS])
        return bool(self._known)
