"""A job as the decisions see it: one order's server, from the request to its end."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from provisioning_service.addresses import package_key
from shared.contracts.provisioning import Server


class State(StrEnum):
    """Where a job is on its way."""

    QUEUED = "QUEUED"
    """It stands in the line of its package."""
    RUNNING = "RUNNING"
    """A worker has claimed it, until `due_at` unless that is renewed."""
    WAITING = "WAITING"
    """It waits for its next attempt at `due_at`; nobody and nothing is held meanwhile."""
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"


OVER = (State.COMPLETED, State.FAILED)


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
    """What is known about an attempt to buy that has not given an address: enough to find out whether it did.

    `asked` are the addresses that were asked for, over all attempts, and `free_before` those that were free when an
    attempt began: one of them that is sold now may be ours. `answered` is false where the provider may still be at it:
    nothing is bought again before `rest_until` then, also not by a retry. `settled` is true once the attempt counts as
    failed, and `looked` once nothing was found to be sold after that.
    """

    asked: tuple[str, ...]
    free_before: tuple[str, ...]
    started_at: datetime
    rest_until: datetime
    answered: bool = False
    settled: bool = False
    looked: bool = False
    trouble: str | None = None


@dataclass(frozen=True, slots=True)
class Notice:
    """A message that a job owes, under its number in the sequence of all that the job says."""

    sequence: int
    routing_key: str
    body: dict[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """The state that decisions are made from; times in UTC, RAM in MB.

    `run` counts the requests (one and a retry make two), and every run up to `cancel_run` is to be cancelled. `fence`
    counts the claims: a worker writes only while the job still has the fence that it claimed it with. `version` counts
    the stored states, and `line` is the place in the package's line. `missed_at` is when it last missed its turn. A job
    that was cancelled before it was requested does not know what it was about. `traceparent` is where what it says
    continues its order's trace.
    """

    order_id: str
    state: State
    created_at: datetime
    updated_at: datetime
    user_id: str | None = None
    package: str | None = None
    package_id: str | None = None
    ram: int | None = None
    run: int = 1
    cancel_run: int = 0
    fence: int = 0
    version: int = 0
    line: int = 0
    step: Step = Step.LOCK
    due_at: datetime | None = None
    waiting_since: datetime | None = None
    missed_turns: int = 0
    missed_at: datetime | None = None
    buys: int = 0
    looks: int = 0
    purchase: Purchase | None = None
    ip: str | None = None
    wrong_ips: tuple[str, ...] = ()
    server: Server | None = None
    credentials: bytes | None = None
    failure_reason: str | None = None
    customer_reason: str | None = None
    retryable: bool = False
    attempts: tuple[Attempt, ...] = ()
    sequence: int = 0
    outbox: tuple[Notice, ...] = ()
    outbox_since: datetime | None = None
    traceparent: str | None = None

    @property
    def over(self) -> bool:
        """Whether nothing happens any more unless somebody asks for another run."""
        return self.state in OVER

    @property
    def cancel_requested(self) -> bool:
        """Whether this run is to stop before it buys."""
        return self.cancel_run >= self.run

    @property
    def lock_key(self) -> str | None:
        """The name under which its package is locked."""
        return None if self.package is None else package_key(self.package)

    @property
    def needs_lock(self) -> bool:
        """Whether what it does next may be done by the holder of the package's lock only."""
        return not self.over and self.ip is None
