"""Tracks the publications of one channel that the broker has confirmed, refused or returned. No I/O."""

import asyncio
from collections.abc import Sequence

from shared.errors import BusUnavailableError


class UnroutableError(BusUnavailableError):
    """A mandatory message reached no queue, because a queue or its binding was deleted."""


class MessageRefusedError(BusUnavailableError):
    """The broker refused a message: its queue is full or has no leader, or had none when the channel first used it."""


class ConfirmTimes:
    """How long confirms take, and from when on one is overdue; all in seconds.

    Estimated as TCP estimates when to send again (RFC 6298): smoothed mean and deviation, and not below one second. The
    time is not doubled after each loss, because the link sends again only once in a while.
    """

    _SHORTEST = 1.0

    def __init__(self) -> None:
        self._mean: float | None = None
        self._deviation = 0.0

    @property
    def overdue_after(self) -> float:
        """The age at which a publication without a confirm is probably lost."""
        return max(self._SHORTEST, (self._mean or 0.0) + 4 * self._deviation)

    def note(self, seconds: float) -> None:
        """Take the time of a confirm into account."""
        if self._mean is None:
            self._mean, self._deviation = seconds, seconds / 2
            return
        self._deviation += (abs(self._mean - seconds) - self._deviation) / 4
        self._mean += (seconds - self._mean) / 8


class Pending:
    """Publications that are written together; `outcome` is done when the last of them is decided."""

    def __init__(self, message_ids: Sequence[str]) -> None:
        self.message_ids = frozenset(message_ids)
        self.undecided = len(message_ids)
        self.outcome: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._error: BusUnavailableError | None = None

    def fail(self, error: BusUnavailableError) -> None:
        """Note that a publication failed. The first reason is reported once all are decided."""
        self._error = self._error or error

    def decide_one(self) -> None:
        """Count a publication that is confirmed or known to have failed."""
        self.undecided -= 1
        if self.undecided == 0:
            self._settle()

    def abort(self, error: BusUnavailableError) -> None:
        """End all of them: the broker will not decide any more of them."""
        self.fail(error)
        self._settle()

    def abandon(self) -> None:
        """Wait for the outcome no longer: a late failure is not logged as unretrieved."""
        if not self.outcome.cancel() and not self.outcome.cancelled():
            self.outcome.exception()

    def _settle(self) -> None:
        if self.outcome.done():  # the publisher has stopped waiting
            return
        if self._error is None:
            self.outcome.set_result(None)
        else:
            self.outcome.set_exception(self._error)


class Confirms:
    """The publications of one channel, which the broker numbers from 1."""

    def __init__(self) -> None:
        self._undecided: dict[int, tuple[Pending, float]] = {}
        self._last = 0
        self._oldest = 1

    def __len__(self) -> int:
        return len(self._undecided)

    @property
    def waiting_since(self) -> float | None:
        """When the oldest publication that is undecided was written; None if all are decided."""
        return next((written_at for _, written_at in self._undecided.values()), None)

    def written_at(self, tag: int) -> float | None:
        """When the publication `tag` was written; None if it is decided."""
        return self._undecided[tag][1] if tag in self._undecided else None

    def expect(self, pending: Pending, written_at: float) -> None:
        """Assign the next publication on the channel to `pending`."""
        self._last += 1
        self._undecided[self._last] = (pending, written_at)

    def confirmed(self, tag: int, *, all_up_to: bool) -> None:
        """Note that the broker has accepted the publication `tag`, or all up to it."""
        if not all_up_to:
            self._decide(tag)
            return
        for one in range(self._oldest, tag + 1):
            self._decide(one)
        self._oldest = max(self._oldest, tag + 1)

    def refused(self, tag: int, *, all_up_to: bool) -> None:
        """Note that the broker refused the publication `tag`, or all up to it: a queue is full or has no leader."""
        for one in range(self._oldest if all_up_to else tag, tag + 1):
            if one in self._undecided:
                pending, _ = self._undecided[one]
                pending.fail(MessageRefusedError("RabbitMQ refused a message (a queue is full or away)"))
        self.confirmed(tag, all_up_to=all_up_to)

    def returned(self, message_id: str | None, reason: str) -> None:
        """Note that a mandatory message was returned; the broker confirms it next, which must not count as success."""
        for pending in {pending for pending, _ in self._undecided.values()}:
            if message_id in pending.message_ids:
                pending.fail(UnroutableError(reason))

    def lost(self, reason: str) -> None:
        """Fail everything that is undecided: the channel is lost."""
        for pending, _ in self._undecided.values():
            pending.abort(BusUnavailableError(reason))
        self._undecided.clear()

    def _decide(self, tag: int) -> None:
        decided = self._undecided.pop(tag, None)
        if decided is not None:
            decided[0].decide_one()
