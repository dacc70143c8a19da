"""Refuses new orders while those in progress would keep them from settling in time; backlog.py makes the estimate.

A request costs no read: the database is asked only when a request under a key is refused, because the order that it
repeats may exist, and by a loop, for orders whose answers other processes have handled.
"""

import math
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from http import HTTPStatus

import pymongo
from prometheus_client import Counter, Gauge

from order_service.backlog import Backlog
from order_service.order import Order, Status
from order_service.orders import Orders
from order_service.pauses import known_pauses, new_orders_wait, paused_services
from shared.background import run_periodically
from shared.clock import Clock
from shared.group_commit import GroupCommit
from shared.http import ProblemError
from shared.pausing.records import PauseRecords
from shared.problems import OVERLOADED

DEFAULT_SECONDS = 5.0
"""The longest time for storing an order, or for looking one up.

It is long enough for an election on three members of `ordersaga up --cluster`.
"""
ADOPTED = 10_000
"""Most orders of an earlier life that a process takes over at its start: the newest PENDING ones."""
LOOKED_UP = 200
"""The most repeated requests whose orders one read looks for."""

_refused = Counter("order_intake_refused_total", "New orders that were refused, as they would not have settled in time")
_in_progress = Gauge("order_intake_in_progress", "Orders that this process accepted and that are not settled yet")
_expected = Gauge("order_intake_expected_seconds", "Estimated time until a new order is settled")


def is_in_progress(order: Order) -> bool:
    """Return whether an order is on its way; its server, or an operator's decision, may take any time."""
    return not order.settled and order.status not in (Status.PROVISIONING, Status.FAILED)


class Intake:
    """Decides whether this process takes another order."""

    def __init__(
        self,
        orders: Orders,
        pauses: PauseRecords,
        clock: Clock,
        limit: float | None,
        *,
        within: float = DEFAULT_SECONDS,
    ) -> None:
        """`limit` is the seconds within which new orders have to settle; None admits all.

        A look-up begins within `within` seconds, and takes no longer than that.
        """
        self._within = within
        self._orders = orders
        self._pauses = pauses
        self._clock = clock
        self._started_at = clock()
        self._backlog = Backlog(limit, time.monotonic()) if limit is not None else None
        self._joining = 0
        self._adopted = False
        self._is_paused = False
        self._lookups: GroupCommit[Collection[str], bool] = GroupCommit(self._look_for, limit=LOOKED_UP)
        backlog = self._backlog
        if backlog is not None:
            _in_progress.set_function(lambda: len(backlog))
            _expected.set_function(lambda: backlog.expected(time.monotonic()))

    def refusal(self, owner: str | None) -> ProblemError | None:
        """Return the 503 problem for a new order of the owner; None if it is admitted."""
        if self._backlog is None or self._is_paused:
            return None
        now = time.monotonic()
        seconds = self._backlog.retry_after(owner, now, self._joining)
        if seconds is None:
            return None
        expected = math.ceil(self._backlog.expected(now, self._joining))
        detail = (
            f"Too many orders are in progress: a new one would take about {expected} s; "
            f"nothing was stored, try again in {seconds} s"
        )
        headers = {"Retry-After": str(seconds)}
        return ProblemError(HTTPStatus.SERVICE_UNAVAILABLE, detail, kind=OVERLOADED, headers=headers)

    async def admit(self, owner: str | None, known_as: Collection[str] = ()) -> None:
        """Raise the 503 problem if there is no room for an order of the owner, unless one of these ids exists.

        Raises NotStartedError or the driver's error if that cannot be found out in time.
        """
        refusal = self.refusal(owner)
        if refusal is not None and not (known_as and await self._lookups.submit(known_as, start_within=self._within)):
            _refused.inc()
            raise refusal

    @contextmanager
    def joining(self) -> Iterator[float]:
        """Count an order that is being stored; yields the moment from which on it waits."""
        self._joining += 1
        try:
            yield time.monotonic()
        finally:
            self._joining -= 1

    def accepted(self, order: Order, since: float) -> None:
        """Note that a new order was stored, which has been waiting since then."""
        if self._backlog is not None:
            self._backlog.add(order.order_id, order.owner_id, since)

    def announce(self, orders: Iterable[Order]) -> None:
        """Note how orders are after a change, whichever processes accepted them."""
        if self._backlog is not None:
            now = time.monotonic()
            for order in orders:
                if not is_in_progress(order):
                    self._backlog.remove(order.order_id, now)

    @property
    def background(self) -> Sequence[Callable[[], Awaitable[None]]]:
        """What has to run in the background: nothing where all are admitted."""
        return () if self._backlog is None else (partial(self._look_again_and_again, self._backlog.look_every),)

    async def _look_again_and_again(self, every: float) -> None:
        """Look up orders whose end this process has not seen, until cancelled."""
        await run_periodically(self.look, every=every, name="looking up orders in progress")

    async def look(self) -> None:
        """Take over the orders of an earlier life, once; then look up some of the orders that have waited for long."""
        backlog = self._backlog
        if backlog is None:
            return
        if not self._adopted:
            found, now = await self._orders.newest_pending(ADOPTED), self._clock()
            ages = ((order_id, (now - created_at).total_seconds()) for order_id, created_at in reversed(found))
            backlog.adopt(ages, time.monotonic())
            self._adopted = True
        asked = backlog.to_look_up(time.monotonic())
        self._is_paused = bool(asked) and await self._waits_for_paused()
        if asked:
            backlog.looked_up(asked, await self._orders.in_progress(asked), time.monotonic())

    async def _waits_for_paused(self) -> bool:
        """Return whether an operator has paused a service: orders wait for it on purpose, and have a later deadline."""
        now = self._clock()
        return new_orders_wait(paused_services(known_pauses(await self._pauses.all(), self._started_at, now), now))

    async def _look_for(self, requests: Sequence[Collection[str]]) -> Sequence[bool]:
        with pymongo.timeout(self._within):
            stored = await self._orders.stored([order_id for known_as in requests for order_id in known_as])
        return [not stored.isdisjoint(known_as) for known_as in requests]
