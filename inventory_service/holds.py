"""Holds: units and room in a slot that a customer keeps for a while before the order, and the sweep of expired ones.

A hold is a reservation without an order. It ends once: an order claims it, it expires, or it is deleted. Each of these
is one update of the hold's document, whose filter finds the hold open (hold_records.py). Only after it do units move,
by pending moves like those of orders (stock.py), and any worker may finish what another has begun.
"""

import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from inventory_service import metrics
from inventory_service.allocation import HoldLine, HoldOrder
from inventory_service.hold_limits import HoldLimits, HoldPlace
from inventory_service.hold_records import HoldClaim
from inventory_service.releaser import Releaser
from inventory_service.reservation_processor import Claims, ReservationProcessor
from inventory_service.reservations import Reservations
from inventory_service.stock import (
    UNKNOWN_HOLD,
    USED_HOLD,
    HoldOutcome,
    HoldTerms,
    HoldUse,
    Reservation,
    Status,
    hold_reservation_id,
)
from shared.access.principal import Visible
from shared.background import jitter, run_periodically
from shared.clock import Clock
from shared.contracts import OrderCreated
from shared.contracts.orders import DeliveryInstruction
from shared.failpoints import HOLD_CLAIMED, HOLD_ENDED, Failpoint
from shared.group_commit import GroupCommit

SWEEP_BATCH = 1000
MAX_PLACED_AT_ONCE = 200
COUNT_SECONDS = 5.0
"""The interval at which a sweep counts all holds for the metrics."""


@dataclass(frozen=True, slots=True)
class HoldRequest:
    """A request for a hold. `fingerprint` identifies the request if it was sent with a key."""

    hold_id: str
    owner_id: str | None
    user_id: str
    lines: tuple[HoldLine, ...]
    slot: str | None
    seconds: int
    fingerprint: str | None = None


class Holds:
    """Makes, extends and ends holds; safe with any number of concurrent workers."""

    def __init__(
        self,
        reservations: Reservations,
        limits: HoldLimits,
        processor: ReservationProcessor,
        releaser: Releaser,
        clock: Clock,
        failpoint: Failpoint,
    ) -> None:
        self._reservations = reservations
        self._records = reservations.holds
        self._limits = limits
        self._processor = processor
        self._releaser = releaser
        self._clock = clock
        self._failpoint = failpoint
        self._counted_at = -COUNT_SECONDS
        self._placements: GroupCommit[HoldRequest, Reservation | None] = GroupCommit(
            self.place, limit=MAX_PLACED_AT_ONCE
        )

    # --- For clients. ---

    async def place_with_others(self, request: HoldRequest) -> Reservation | None:
        """Do as `place`, in one write with the requests that arrive meanwhile."""
        return await self._placements.submit(request)

    async def place(self, requests: Sequence[HoldRequest]) -> list[Reservation | None]:
        """Hold everything that each request asks for, or nothing; return the reservations, FAILED with the reason.

        It is None if the user has as many open holds as allowed. A request that is repeated under its id finds the
        first one's hold.
        """
        now = self._clock()
        places = [_place(request) for request in requests]
        admitted = await self._limits.admit(places)
        orders = [
            _order(request, now)
            for request, place in zip(requests, places, strict=True)
            if place.request_id in admitted
        ]
        decided = await self._processor.reserve(orders) if orders else {}
        held = {key for key, found in decided.items() if found.status is Status.RESERVED}
        await self._limits.withdraw(
            place for place in places if place.request_id in admitted and place.reservation_id not in held
        )
        for order in orders:
            metrics.holds.labels(metrics.HELD if order.order_id in held else metrics.REFUSED).inc()
        return [decided[place.reservation_id] if place.request_id in admitted else None for place in places]

    async def find(self, hold_id: str, visible: Visible) -> Reservation | None:
        """Return the hold, None if there is none that is visible."""
        found = await self._reservations.find(hold_reservation_id(hold_id), visible)
        return found if found is not None and found.hold is not None else None

    async def find_own(self, hold_id: str, owner_id: str | None) -> Reservation | None:
        """Return the owner's hold, also one that ended before it was complete."""
        return await self._reservations.find(hold_reservation_id(hold_id), {"ownerId": owner_id})

    async def extend(self, hold_id: str, seconds: int, visible: Visible) -> bool:
        """Let the hold expire so many seconds from now; return whether it was still open."""
        expires_at = self._clock() + timedelta(seconds=seconds)
        return await self._records.extend(hold_id, expires_at, visible) is not None

    async def delete(self, hold_id: str, visible: Visible) -> Reservation | None:
        """End the hold and return its units; return it as it is then, None if there is none that is visible."""
        await self._records.delete(hold_id, visible)
        self._failpoint(HOLD_ENDED)
        found = await self.find(hold_id, visible)
        is_deleted = found is not None and found.hold is not None and found.hold.outcome is HoldOutcome.DELETED
        if found is not None and is_deleted and found.status is Status.RESERVED:
            await self._releaser.release_ended_holds([found.order_id], HoldOutcome.DELETED)
            metrics.holds.labels(HoldOutcome.DELETED).inc()
        return found

    # --- For orders. ---

    async def claim(self, orders: Sequence[OrderCreated]) -> Claims:
        """Claim the holds that undecided orders name; an expired one is returned, for the order to be served as usual.

        Costs nothing for orders that name none.
        """
        claims = Claims()
        named = {order.order_id: order for order in orders if order.hold_id is not None}
        if not named:
            return claims
        decided = await self._reservations.decisions(named)
        asked = [
            HoldClaim(order.hold_id or "", order_id, order.owner_id, order.user_id) for order_id, order in named.items()
        ]
        # A decided order, such as one that was cancelled before it arrived, must not use up the hold.
        found = await self._claim_named(asked, [claim for claim in asked if claim.order_id not in decided])
        for claim in asked:
            key = hold_reservation_id(claim.hold_id)
            outcome = _use(claim, found.get(key))
            claims.add(claim.order_id, [key] if outcome == HoldOutcome.TAKEN else [], HoldUse(claim.hold_id, outcome))
        return claims

    async def _claim_named(self, asked: Sequence[HoldClaim], claims: Sequence[HoldClaim]) -> dict[str, Reservation]:
        """Claim holds and return all that were asked for: each is taken or ended, or the order may not have it."""
        found: dict[str, Reservation] = {}
        while True:
            await self._records.claim(claims)
            self._failpoint(HOLD_CLAIMED)
            now = self._clock()
            found = await self._reservations.read({hold_reservation_id(claim.hold_id) for claim in asked})
            over = [key for key, hold in found.items() if _is_over(hold, now)]
            if over:
                if await self._end(over) < len(over):
                    # Another process may have claimed one of them for the same order in the meantime.
                    found |= await self._reservations.read(over)
                await self._releaser.release_ended_holds(over, HoldOutcome.EXPIRED, HoldOutcome.DELETED)
            # A hold that had expired for the claim, and is open now, was extended in between by a process whose clock
            # is behind. Each repetition is one such extension, so this ends.
            claims = [
                claim for claim in claims if _is_claimable(claim, found.get(hold_reservation_id(claim.hold_id)), now)
            ]
            if not claims:
                return found

    async def finish(self, claims: Claims) -> None:
        """Return what decided orders have left of the holds that they have claimed."""
        if ids := claims.ids():
            await self._releaser.release_ended_holds(ids, HoldOutcome.TAKEN)
            metrics.holds.labels(HoldOutcome.TAKEN).inc(len(ids))

    # --- The sweep. ---

    async def sweep(self, interval: float) -> None:
        """End expired holds and finish what killed workers have left, every interval, until cancelled."""
        await run_periodically(self.sweep_once, every=lambda: jitter(interval), name="sweeping holds")

    async def sweep_once(self) -> bool:
        """End a batch of holds; return True if there may be more."""
        due = await self._records.due(SWEEP_BATCH)
        await self._count_all()
        expired = [key for key, terms in due.items() if terms.outcome is None]
        # If another process has just ended all of them, it returns their units.
        if expired and await self._end(expired):
            await self._releaser.release_ended_holds(expired, HoldOutcome.EXPIRED)
        if len(expired) < len(due):
            await self._finish({key: terms for key, terms in due.items() if terms.outcome is not None})
        return len(due) == SWEEP_BATCH

    async def _finish(self, ended: Mapping[str, HoldTerms]) -> None:
        """Return what killed workers have left of ended holds; what an undecided order has claimed comes later."""
        taken = {key: terms.order_id for key, terms in ended.items() if terms.outcome is HoldOutcome.TAKEN}
        decided = await self._reservations.decisions({order_id or "" for order_id in taken.values()})
        waiting = [key for key, order_id in taken.items() if order_id not in decided]
        await self._records.postpone(waiting)
        await self._releaser.release_ended_holds(ended.keys() - set(waiting), *HoldOutcome)

    async def _count_all(self) -> None:
        now = time.monotonic()
        if now >= self._counted_at + COUNT_SECONDS:
            self._counted_at = now
            metrics.open_holds.set(await self._records.count_all())

    async def _end(self, keys: Sequence[str]) -> int:
        """Record the end of those of these holds that are open and expired; return their number."""
        number = await self._records.expire(keys)
        metrics.holds.labels(HoldOutcome.EXPIRED).inc(number)
        self._failpoint(HOLD_ENDED)
        return number


def _place(request: HoldRequest) -> HoldPlace:
    return HoldPlace(uuid.uuid4().hex, hold_reservation_id(request.hold_id), request.owner_id, request.user_id)


def _order(request: HoldRequest, now: datetime) -> HoldOrder:
    expires_at = now + timedelta(seconds=request.seconds)
    return HoldOrder(
        order_id=hold_reservation_id(request.hold_id),
        user_id=request.user_id,
        items=request.lines,
        total_amount=sum(line.quantity * (line.price or 0) for line in request.lines),
        terms=HoldTerms(request.user_id, expires_at, expires_at, fingerprint=request.fingerprint),
        delivery=DeliveryInstruction(slot=request.slot),
        owner_id=request.owner_id,
    )


def _is_over(hold: Reservation, now: datetime) -> bool:
    """Return whether the hold has expired or was deleted, and its units may still be out."""
    if hold.hold is None or hold.status is not Status.RESERVED:
        return False
    return hold.hold.expires_at <= now if hold.hold.outcome is None else hold.hold.outcome is not HoldOutcome.TAKEN


def _is_claimable(claim: HoldClaim, hold: Reservation | None, now: datetime) -> bool:
    """Return whether the hold is still open, and the order may have it."""
    if hold is None or hold.hold is None or hold.status is not Status.RESERVED or not _belongs_to(hold, claim):
        return False
    return hold.hold.outcome is None and hold.hold.expires_at > now


def _belongs_to(hold: Reservation, claim: HoldClaim) -> bool:
    return hold.hold is not None and (hold.owner_id, hold.hold.user_id) == (claim.owner_id, claim.user_id)


def _use(claim: HoldClaim, hold: Reservation | None) -> str:
    """Return what became of the hold that an order names: TAKEN if the order has it."""
    if hold is None or hold.hold is None or not _belongs_to(hold, claim):
        return UNKNOWN_HOLD
    if hold.hold.outcome is HoldOutcome.TAKEN:
        return HoldOutcome.TAKEN if hold.hold.order_id == claim.order_id else USED_HOLD
    return hold.hold.outcome or HoldOutcome.EXPIRED
