"""The circuit breaker of a consumer: when it stops consuming because everything fails, and when it tries again. Pure.

It is open once batches in a row, and as many different messages, have failed for one cause within five minutes. Then
single messages test it, after pauses that double; the first that is handled closes it. What each batch counts as:

    the batch                                          while it is closed                while it is open
    ─────────────────────────────────────────────────  ────────────────────────────────  ─────────────────────────────
    some of its messages were handled                  counts from zero again            closes it
    none was handled, and they failed for one cause    counts                            the next test is later
    none was handled, and they failed for several      counts from zero again            the next test is later
    none was handled, and none is to be retried        changes nothing                   changes nothing

The last are poison, which is the message's own fault, messages that wait for a newer release, and the news of pauses. A
message alone never opens it, however often it is retried.
"""

from collections.abc import Collection
from dataclasses import dataclass, replace

from shared.bus.patterns import pattern

FIRST_TEST_SECONDS = 1.0
LONGEST_TEST_SECONDS = 30.0
COUNTED_FOR_SECONDS = 300.0
"""The longest time that a count takes: a few bad messages of a quiet night are no fault that every message meets."""


def cause_of(error: Exception) -> str:
    """Return what several failures have in common if they have one cause, as the groups of dead letters do."""
    return f"{type(error).__name__}: {pattern(str(error))}"


@dataclass(frozen=True, slots=True)
class Batch:
    """The result of a batch: whether a message was handled, the causes of those to be retried, and their ids."""

    handled: bool
    causes: frozenset[str] = frozenset()
    failed: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Breaker:
    """The state; `opens_after` is the number of batches, 0 for a breaker that never opens. Times are in seconds."""

    opens_after: int
    cause: str | None = None
    batches: int = 0
    counts_since: float = 0.0
    messages: frozenset[str] = frozenset()
    opened_at: float | None = None
    tests: int = 0
    test_at: float = 0.0

    @property
    def is_open(self) -> bool:
        """Whether single messages are tested only."""
        return self.opened_at is not None

    def after(self, batch: Batch, now: float) -> "Breaker":
        """Return the state after a batch, or the message of a test."""
        if batch.handled:
            return Breaker(self.opens_after)
        if not batch.causes:
            return self
        if self.is_open:
            return self._tested_in_vain(batch.causes, now)
        if not self.opens_after or len(batch.causes) > 1:
            return Breaker(self.opens_after)
        (cause,) = batch.causes
        return self._counted(cause, batch.failed, now)

    def _counted(self, cause: str, failed: Collection[str], now: float) -> "Breaker":
        goes_on = cause == self.cause and now - self.counts_since <= COUNTED_FOR_SECONDS
        before = self if goes_on else Breaker(self.opens_after, counts_since=now)
        known = before.messages.union(failed) if len(before.messages) < self.opens_after else before.messages
        counted = replace(before, cause=cause, batches=before.batches + 1, messages=known)
        if counted.batches < self.opens_after or len(counted.messages) < self.opens_after:
            return counted
        return replace(counted, messages=frozenset(), opened_at=now, test_at=now + FIRST_TEST_SECONDS)

    def _tested_in_vain(self, causes: frozenset[str], now: float) -> "Breaker":
        pause = min(FIRST_TEST_SECONDS * 2 ** min(self.tests + 1, 20), LONGEST_TEST_SECONDS)
        return replace(self, cause=min(causes), tests=self.tests + 1, test_at=now + pause)

    def in_words(self, now: float) -> str | None:
        """Return for people why it is open; None if it is not. Only the log names the cause, as this is public."""
        if self.opened_at is None:
            return None
        tested = f"{self.tests} tests failed" if self.tests != 1 else "1 test failed"
        why = f"{self.batches} batches in a row failed for one cause, which the log names"
        return f"open for {now - self.opened_at:.0f} s: {why}; {tested}"
