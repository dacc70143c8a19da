"""The life of a job: what is recorded and answered; pure, without I/O.

    (no job) ──requested──▶ FAILED, retryable: there is no provider to buy from
    (no job) ──cancelled──▶ FAILED, not retryable: the tombstone that a late request runs into

A job that has failed stays as it is, and repeats its answer whatever comes.
"""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from shared.contracts import CancelProvisioning, ProvisioningFailed, ProvisionServer

NO_PROVIDER = "No server provider is configured"
CANCELLED = "Cancelled"


class State(StrEnum):
    """Where a job is on its way."""

    FAILED = "FAILED"


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One order's server; a job that was cancelled before it was requested does not know what it was about."""

    order_id: str
    state: State
    failure_reason: str
    retryable: bool
    created_at: datetime
    updated_at: datetime
    user_id: str | None = None
    package: str | None = None
    package_id: str | None = None
    ram: int | None = None


def requested(message: ProvisionServer, now: datetime) -> Job:
    """Return the job of a request, refused: nobody sells us a server."""
    return Job(
        order_id=message.order_id,
        state=State.FAILED,
        failure_reason=NO_PROVIDER,
        retryable=True,
        created_at=now,
        updated_at=now,
        user_id=message.user_id,
        package=message.package,
        package_id=message.package_id,
        ram=message.ram,
    )


def cancelled(message: CancelProvisioning, now: datetime) -> Job:
    """Return the job of a cancellation that overtook its request."""
    return Job(
        order_id=message.order_id,
        state=State.FAILED,
        failure_reason=CANCELLED,
        retryable=False,
        created_at=now,
        updated_at=now,
    )


def answer(job: Job) -> ProvisioningFailed:
    """The answer that follows from the job."""
    return ProvisioningFailed(order_id=job.order_id, reason=job.failure_reason, retryable=job.retryable)
