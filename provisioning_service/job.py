"""The job of one order's server, from the request to its end, as a value."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from provisioning_service.addresses import package_key
from shared.contracts.provisioning import Server


class State(StrEnum):
    """Where a job is on its way."""

    QUEUED = "QUEUED"
    """It waits in the queue of its package."""
    RUNNING = "RUNNING"
    """A worker has claimed it until `due_at`, which the worker renews."""
    WAITING = "WAITING"
    """It waits for its next attempt at `due_at`; no lock is held meanwhile."""
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"


ENDED_STATES = (State.COMPLETED, State.FAILED)


class Step(StrEnum):
    """What a job does, or did last; up to `verify` it holds the lock of its package for that."""

    LOCK = "lock"
    CHECK = "check"
    BUY = "buy"
    VERIFY = "verify"
    STATUS = "status"


@dataclass(frozen=True, slots=True)
class Attempt:
    """One line of a job's log, for operators; `outcome` is ok, failed or unknown."""

    step: Step
    at: datetime
    outcome: str
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Purchase:
    """An attempt to buy that has not given an address, with enough to find out later whether it bought one.

    `asked` are the addresses asked for, over all attempts, and `free_before` those that were free when an attempt
    began: any of them that is sold now may be ours. While `answered` is false the provider may still be processing the
    request, and even a retry buys nothing before `no_retry_before`. `failed` is true once the attempt counts as failed,
    `searched` once a search after that has found nothing.
    """

    asked: tuple[str, ...]
    free_before: tuple[str, ...]
    started_at: datetime
    no_retry_before: datetime
    answered: bool = False
    failed: bool = False
    searched: bool = False
    error: str | None = None


@dataclass(frozen=True, slots=True)
class OutboxMessage:
    """A message waiting to be published, with its number in the sequence of the job's messages."""

    sequence: int
    routing_key: str
    body: dict[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """The state that decisions are made from; times in UTC, RAM in MB.

    `run` counts the requests: the first one and each retry; the present one came at `requested_at`, which jobs of
    earlier releases do not have. Every run up to `cancel_run` is cancelled. `fence` counts
    the claims: a worker writes only while the job has the fence of its claim. `version` counts the stored states, and
    `queue_position` orders the package's queue. `lock_timeouts` counts the waits for the lock that took too long, and
    `lock_timed_out_at` is when the last one ended. A job that was cancelled before its request arrived has no package
    and no user. `traceparent` is where the job's messages continue the trace of the order.
    """

    order_id: str
    state: State
    created_at: datetime
    updated_at: datetime
    requested_at: datetime | None = None
    user_id: str | None = None
    package: str | None = None
    package_id: str | None = None
    ram: int | None = None
    run: int = 1
    cancel_run: int = 0
    fence: int = 0
    version: int = 0
    queue_position: int = 0
    step: Step = Step.LOCK
    due_at: datetime | None = None
    waiting_since: datetime | None = None
    lock_timeouts: int = 0
    lock_timed_out_at: datetime | None = None
    buy_attempts: int = 0
    status_attempts: int = 0
    purchase: Purchase | None = None
    ip: str | None = None
    wrong_ips: tuple[str, ...] = ()
    server: Server | None = None
    credentials: bytes | None = None
    failure_reason: str | None = None
    failure_code: str | None = None
    customer_reason: str | None = None
    retryable: bool = False
    attempts: tuple[Attempt, ...] = ()
    sequence: int = 0
    outbox: tuple[OutboxMessage, ...] = ()
    outbox_since: datetime | None = None
    traceparent: str | None = None
    owner_id: str | None = None

    @property
    def ended(self) -> bool:
        """True if nothing happens any more unless another run is requested."""
        return self.state in ENDED_STATES

    @property
    def cancel_requested(self) -> bool:
        """True if this run must stop before it buys."""
        return self.cancel_run >= self.run

    @property
    def lock_key(self) -> str | None:
        """The key of its package's lock."""
        return None if self.package is None else package_key(self.package)

    @property
    def needs_lock(self) -> bool:
        """True if its next step requires the package's lock."""
        return not self.ended and self.ip is None
