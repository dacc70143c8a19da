"""How long a new order would take to settle: an estimate from the orders that this process accepted. Pure.

By Little's law, what waits divided by what leaves per second is how long the last in the queue waits. Each process of
the service counts its own orders only. It accepts a share of all orders, and the same share of those that leave is its
own, so the share cancels out and the processes need no common state.

An order is in progress until it settles, or until it waits for something slow by nature: its server is provisioned, or
an operator decides. Where only some orders are held up and later ones overtake them, they are no queue either.
"""

import math
from collections import OrderedDict
from collections.abc import Collection, Iterable, Sequence
from itertools import islice
from typing import NamedTuple

FEW = 10
"""So many orders may be stuck for reasons of their own before they count as a queue."""
LOOK = 0.05
"""The part of the limit after which the database is asked about an order that no answer here has settled; 1 s at most.

Orders that have waited twice as long count as a queue: a burst is none until they have.
"""
FOR_ALL = 0.5
"""The part of the limit up to which every order is admitted.

The rest is for errors of the estimate, and for the time until a request is read.
"""
FOR_SMALL = 0.65
"""The part up to which callers are admitted that have less than their share of the orders in progress."""
OVERTAKEN = 1 / 3
"""By which part of the limit a later order must overtake an earlier one before that is no longer waited for."""
MEMORY = 0.35
"""The part of the limit over which the rate is averaged."""
STANDSTILL = 0.2
"""The part of that time after which nothing leaves any more, rather than little."""
EVIDENCE = 0.15
"""The part of that time that must have been observed."""
SAMPLES = 100
"""Orders that are looked up at once; of more, each stands for its neighbours."""
MOST = 100_000
"""Most orders that are counted: while an operator has paused a service, any number may be waiting."""
LONGEST_RETRY_SECONDS = 10

Caller = str | None
"""The owner of orders; None without authentication."""


class _InProgress(NamedTuple):
    since: float
    caller: Caller


class Flow:
    """How many orders leave per second while there is a queue, averaged over the last seconds of one."""

    def __init__(self, seconds: float, now: float) -> None:
        self._seconds = seconds
        self._count = self._time = 0.0
        self.last = now
        """When an order left."""

    def note(self, count: int, queue_since: float, now: float) -> None:
        """Note that so many have left a queue; nothing of a standstill and its end is counted."""
        passed = max(now - max(self.last, queue_since), 0.0)
        if passed < self._seconds * STANDSTILL:
            kept = math.exp(-passed / self._seconds)
            self._count, self._time = self._count * kept + count, self._time * kept + passed

    @property
    def per_second(self) -> float:
        """The rate; 0 while too little has been seen to know it."""
        return self._count / self._time if self._time >= self._seconds * EVIDENCE else 0.0


class Backlog:
    """The orders in progress that this process accepted, oldest first; `limit` is when a new order has to be settled.

    All methods take the seconds of a clock that never jumps.
    """

    def __init__(self, limit: float, now: float) -> None:
        self.limit = limit
        self.look_every = min(1.0, limit * LOOK)
        self._queue_after = 2 * self.look_every
        self._orders: OrderedDict[str, _InProgress] = OrderedDict()
        self._of_caller: dict[Caller, int] = {}
        self._flow = Flow(limit * MEMORY, now)

    def __len__(self) -> int:
        return len(self._orders)

    def adopt(self, found: Iterable[tuple[str, float]], now: float) -> None:
        """Take over orders of an earlier life of the process: their ids and ages, oldest first."""
        own, self._orders, self._of_caller = self._orders, OrderedDict(), {}
        for order_id, age in found:
            if order_id not in own:
                self.add(order_id, None, now - age)
        for order_id, order in own.items():
            self.add(order_id, order.caller, order.since)

    def add(self, order_id: str, caller: Caller, now: float) -> None:
        """Note that an order was accepted."""
        if order_id not in self._orders:
            self._orders[order_id] = _InProgress(now, caller)
            self._of_caller[caller] = self._of_caller.get(caller, 0) + 1
            if len(self._orders) > MOST:
                self._forget(next(iter(self._orders)))

    def remove(self, order_id: str, now: float) -> None:
        """Note that an order is no longer in progress, unless another process accepted it."""
        if order_id in self._orders:
            self._leave([order_id], now)

    def to_look_up(self, now: float) -> list[str]:
        """Return some orders that may have left unnoticed, evenly distributed: other processes handle answers too."""
        ids = []
        for order_id, order in self._orders.items():
            if now - order.since < self.look_every:
                break
            ids.append(order_id)
        step = max(1, math.ceil(len(ids) / SAMPLES))
        return ids[step - 1 :: step]

    def looked_up(self, looked_up: Sequence[str], in_progress: Collection[str], now: float) -> None:
        """Note which of these orders are in progress; each that is not stands for those between it and the one before.

        `looked_up` is what `to_look_up` returned; some of them may have been removed meanwhile.
        """
        asked, stretch, gone = set(looked_up), list[str](), list[str]()
        for order_id in self._orders:
            stretch.append(order_id)
            if order_id in asked:
                if order_id not in in_progress:
                    gone.extend(stretch)
                stretch = []
        if gone:
            self._leave(gone, now)

    def waited(self, now: float) -> float:
        """Return how long orders have been waiting, apart from a few."""
        since = self._queue_since()
        return 0.0 if since is None else now - since

    def expected(self, now: float, joining: int = 0) -> float:
        """Return the seconds until a new order is settled, if `joining` others come before it.

        While nothing leaves, the standstill is expected to last as long again.
        """
        waited = self.waited(now)
        if waited < self._queue_after:
            return waited
        rate = self._flow.per_second
        to_work_off = (len(self._orders) + joining) / rate if rate else 0.0
        return max(waited, to_work_off + min(waited, now - self._flow.last))

    def retry_after(self, caller: Caller, now: float, joining: int = 0) -> int | None:
        """Return after how many seconds to try again; None if a new order of the caller is admitted."""
        excess = self.expected(now, joining) - self.limit * (FOR_SMALL if self._has_little(caller) else FOR_ALL)
        return None if excess <= 0 else min(max(math.ceil(excess), 1), LONGEST_RETRY_SECONDS)

    def _has_little(self, caller: Caller) -> bool:
        """Return whether the caller has less than its share of the orders in progress."""
        own = self._of_caller.get(caller, 0)
        callers = len(self._of_caller) + (caller not in self._of_caller)
        return own * callers < len(self._orders)

    def _queue_since(self) -> float | None:
        """Return since when more than a few orders have been in progress; None if they are fewer now."""
        order = next(islice(self._orders.values(), FEW - 1, None), None)
        return None if order is None else order.since

    def _leave(self, order_ids: Sequence[str], now: float) -> None:
        queue_since = self._queue_since()
        newest = max(self._forget(order_id).since for order_id in order_ids)
        if queue_since is not None and now - queue_since >= self._queue_after:
            self._flow.note(len(order_ids), queue_since, now)
        self._flow.last = now
        self._forget_overtaken(newest)

    def _forget(self, order_id: str) -> _InProgress:
        order = self._orders.pop(order_id)
        left = self._of_caller[order.caller] - 1
        if left:
            self._of_caller[order.caller] = left
        else:
            del self._of_caller[order.caller]
        return order

    def _forget_overtaken(self, since: float) -> None:
        """Forget orders that one has overtaken which was accepted much later."""
        while self._orders:
            oldest = next(iter(self._orders))
            if self._orders[oldest].since >= since - self.limit * OVERTAKEN:
                break
            self._forget(oldest)
