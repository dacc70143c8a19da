"""The worker of one endpoint: claims due deliveries, attempts them, and records what came of each.

An endpoint whose last attempt failed, or was slow, gets one attempt at a time until one succeeds quickly: however many
endpoints are dead or slow, they use few of the attempts that a process makes at once.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple, Protocol

import structlog

from notification_service import metrics
from notification_service.deletion import PORTION
from notification_service.deliveries import Deliveries
from notification_service.delivery import (
    ENDPOINT_DISABLED,
    Attempt,
    Delivery,
    Next,
    after_attempt,
)
from notification_service.endpoint import FAILING, GONE, Endpoint
from notification_service.endpoints import Endpoints
from notification_service.signing_secrets import SecretVault
from shared.access.principal import EVERYTHING
from shared.background import ErrorLog, jitter
from shared.clock import Clock
from shared.failpoints import WEBHOOK_CLAIMED, WEBHOOK_SENT, Failpoint
from shared.group_commit import GroupCommit

CLAIMED_PER_ATTEMPT = 4
"""The deliveries that are claimed for each attempt that may run, so that one claim serves several."""

SLOW_SECONDS = 2.0
"""An attempt that takes longer is slow."""

_RETRY_SECONDS = 1.0
_CONTENT = {"content-type": "application/json", "user-agent": "ordersaga-webhooks/1"}

_log = structlog.get_logger(__name__)


class Outcome(Protocol):
    """What came of a request."""

    @property
    def status(self) -> int | None:
        """The status of the answer; None if there was none."""

    @property
    def error(self) -> str | None:
        """Why there was no answer, for the owner of the endpoint."""

    @property
    def body(self) -> str:
        """The beginning of the answer's body."""

    @property
    def seconds(self) -> float:
        """The time it took."""


class Sender(Protocol):
    """Sends requests."""

    async def send(self, url: str, headers: Mapping[str, str], body: bytes) -> Outcome:
        """Post a body; return what came of it, also where nothing answers."""


Sign = Callable[[Sequence[str], str, datetime, bytes], Mapping[str, str]]
"""Returns the headers that authenticate a delivery, from the secrets, its id, the time and the body."""

Recorder = GroupCommit[tuple[Delivery, Attempt, Next], None]
"""Records outcomes of attempts, many in one write."""


class Limits(NamedTuple):
    """How many attempts run at once, how long one takes at most, and the delays between those of a delivery."""

    at_once: int
    per_endpoint: int
    timeout: timedelta
    retry_delays: Sequence[float]

    @property
    def lease(self) -> timedelta:
        """The time for which a delivery is claimed: its attempt begins in the first half, and ends in the second."""
        return 2 * self.timeout


class Dependencies(NamedTuple):
    """What the workers of a process share."""

    endpoints: Endpoints
    deliveries: Deliveries
    vault: SecretVault
    sender: Sender
    sign: Sign
    limits: Limits
    clock: Clock
    failpoint: Failpoint
    attempts: asyncio.Semaphore
    recorder: Recorder


class _Claimed(NamedTuple):
    """A claimed delivery with what its attempt needs; nothing is sent once the claim is too short for it."""

    delivery: Delivery
    endpoint: Endpoint
    secrets: Sequence[str]
    until: datetime


class EndpointWorker:
    """Delivers to one endpoint until nothing is due."""

    def __init__(self, endpoint_id: str, dependencies: Dependencies) -> None:
        self._endpoint_id = endpoint_id
        self._d = dependencies
        self._claimed: deque[_Claimed] = deque()
        self._running: dict[asyncio.Task[None], _Claimed] = {}
        """The attempts, until their outcomes are recorded."""
        self._sending = 0
        """The attempts that count against the limit."""
        self._is_failing: bool | None = None
        """Whether the endpoint is recorded as failing; None before the first look."""
        self._one_at_a_time = False
        """Whether the last attempt failed or was slow."""
        self.may_be_due = True
        """Whether something may be due that is not claimed."""
        self._stopping = False
        self._changed = asyncio.Event()

    @property
    def is_busy(self) -> bool:
        """Return whether as many attempts run as may: then waking it is no use."""
        return self._sending >= self._limit

    @property
    def _limit(self) -> int:
        return 1 if self._one_at_a_time else self._d.limits.per_endpoint

    def wake(self) -> None:
        """Look for what is due."""
        self.may_be_due = True
        self._changed.set()

    def stop(self) -> None:
        """Start no further attempt; `run` ends when those that run have ended."""
        self._stopping = True
        self._changed.set()

    async def run(self) -> None:
        """Deliver until nothing is due, waiting for a database that is away."""
        errors = ErrorLog("delivering webhooks")
        try:
            while not self._stopping:
                self._changed.clear()
                try:
                    await self._claim_some()
                except Exception as error:  # noqa: BLE001 - logged; what is claimed comes due again
                    self.may_be_due = True
                    errors.failed(error, webhook_id=self._endpoint_id)
                    await asyncio.sleep(jitter(_RETRY_SECONDS))
                    continue
                errors.succeeded()
                if not self._running and not self.may_be_due:
                    return
                await self._changed.wait()
            if self._running:
                await asyncio.wait(self._running)
        finally:
            await self._give_back()

    async def _claim_some(self) -> None:
        """Claim what is due while there is room for it, and start attempts."""
        while self.may_be_due and self._has_room() and not self._stopping:
            self.may_be_due = False
            self._claimed.extend(await self._claim())
            self._start()

    def _has_room(self) -> bool:
        """Return whether to claim more.

        A claim begins while a few claimed ones are left, so that attempts go on meanwhile; with one attempt at a time
        it does not, or the next one would be too old. What waits to be recorded is bounded.
        """
        few_left = len(self._claimed) + self._sending < self._limit + self._limit // 2
        return few_left and len(self._running) < self._d.limits.per_endpoint * CLAIMED_PER_ATTEMPT

    def _start(self) -> None:
        """Start attempts until as many run as may."""
        while self._claimed and self._sending < self._limit and not self._stopping:
            claimed = self._claimed.popleft()
            self._sending += 1
            task = asyncio.create_task(self._attempt(claimed))
            self._running[task] = claimed
            task.add_done_callback(self._ended)

    async def _claim(self) -> list[_Claimed]:
        endpoint, now = await self._d.endpoints.find(self._endpoint_id, EVERYTHING), self._d.clock()
        if endpoint is None:
            await self._d.deliveries.delete_some(self._endpoint_id, now, PORTION)
            return []
        if not endpoint.enabled:
            await self._d.deliveries.fail_due(self._endpoint_id, ENDPOINT_DISABLED, now)
            return []
        if self._is_failing is None:
            self._one_at_a_time = endpoint.failing_since is not None
        self._is_failing = endpoint.failing_since is not None
        secrets = self._d.vault.open(endpoint.id, endpoint.signing_secrets(now))
        number = 1 if self._one_at_a_time else self._limit * CLAIMED_PER_ATTEMPT
        lease = self._d.limits.lease
        deliveries = await self._d.deliveries.claim(endpoint.id, now, lease, number)
        if len(deliveries) == number:
            self.may_be_due = True
        self._d.failpoint(WEBHOOK_CLAIMED)
        # Only now: the request that deletes an endpoint waits for the claims that it finds (see deletion.py).
        if deliveries and await self._d.endpoints.is_deleted(endpoint.id):
            await self._d.deliveries.release(deliveries, self._d.clock())
            return []
        return [_Claimed(each, endpoint, secrets, now + lease) for each in deliveries]

    async def _attempt(self, claimed: _Claimed) -> None:
        """Attempt a delivery and record the outcome, unless its claim is too old: then it is due again.

        A success makes room for the next attempt before it is recorded, so that one write records many. Any other
        outcome is recorded first: the endpoint may be disabled.
        """
        try:
            async with self._d.attempts:
                if self._d.clock() + self._d.limits.timeout > claimed.until:
                    await self._d.deliveries.release([claimed.delivery], self._d.clock())
                    self.may_be_due = True
                    return
                with metrics.IN_FLIGHT.track_inprogress():
                    attempt = await self._send(claimed)
            self._d.failpoint(WEBHOOK_SENT)
            metrics.ATTEMPTS.labels(metrics.outcome_of(attempt)).inc()
            metrics.SECONDS.observe(attempt.seconds)
            self._one_at_a_time = not attempt.succeeded or attempt.seconds > SLOW_SECONDS
            if not attempt.succeeded:
                await self._record(claimed, attempt)
        finally:
            self._sending -= 1
            self._start()
            self._changed.set()
        if attempt.succeeded:
            await self._record(claimed, attempt)

    async def _record(self, claimed: _Claimed, attempt: Attempt) -> None:
        delivery, delays = claimed.delivery, self._d.limits.retry_delays
        following = after_attempt(attempt, delivery.tries + 1, delays, jitter(1.0), self._d.clock())
        await self._d.recorder.submit((delivery, attempt, following))
        await self._note(claimed.endpoint, attempt)

    async def _send(self, claimed: _Claimed) -> Attempt:
        at, delivery = self._d.clock(), claimed.delivery
        body = delivery.body.encode()
        try:
            headers = {**_CONTENT, **self._d.sign(claimed.secrets, delivery.event_id, at, body)}
            outcome = await self._d.sender.send(claimed.endpoint.url, headers, body)
        except Exception as error:  # noqa: BLE001 - logged
            # It counts as an attempt, so that a delivery that nothing can send does not come due for ever.
            _log.exception("a webhook could not be sent", webhook_id=self._endpoint_id, event_id=delivery.event_id)
            return Attempt(at, None, f"It could not be sent ({type(error).__name__})", "", 0.0)
        return Attempt(at, outcome.status, outcome.error, outcome.body, outcome.seconds)

    async def _note(self, endpoint: Endpoint, attempt: Attempt) -> None:
        """Record what the attempt says about the endpoint."""
        if attempt.gone:
            await self._disable(endpoint, GONE, metrics.DISABLED_GONE)
        elif attempt.succeeded:
            if self._is_failing:
                self._is_failing = False
                await self._d.endpoints.note_success(endpoint.id)
        elif endpoint.has_failed_too_long(attempt.at):
            await self._disable(endpoint, FAILING, metrics.DISABLED_FAILING)
        elif not self._is_failing:
            self._is_failing = True
            await self._d.endpoints.note_failure(endpoint.id, attempt.at)

    async def _disable(self, endpoint: Endpoint, reason: str, label: str) -> None:
        if await self._d.endpoints.disable(endpoint, reason, self._d.clock()):
            metrics.DISABLED.labels(label).inc()
            _log.warning("a webhook was disabled", webhook_id=endpoint.id, reason=reason)
        # The next look fails them.
        claimed, self._claimed = self._claimed, deque()
        self.may_be_due = True
        await self._d.deliveries.release((each.delivery for each in claimed), self._d.clock())

    def _ended(self, task: "asyncio.Task[None]") -> None:
        del self._running[task]
        self._changed.set()
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error(
                "the outcome of a webhook is lost; it is sent again", webhook_id=self._endpoint_id, exc_info=error
            )

    async def _give_back(self) -> None:
        """Return the claims of what was not attempted to its end."""
        self._stopping = True
        unfinished = [*self._claimed, *self._running.values()]
        for task in list(self._running):
            task.cancel()
        if unfinished:
            try:
                await self._d.deliveries.release((each.delivery for each in unfinished), self._d.clock())
            except Exception as error:  # noqa: BLE001 - they come due when their claims end
                _log.warning("claims of webhooks could not be returned", error=str(error)[:200])
