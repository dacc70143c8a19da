"""What a provisioning job says in words. Pure."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from provisioning_service.job import State

Job = Mapping[str, Any]

STEPS: Mapping[str, str] = {
    "lock": "Wait for the package's lock",
    "check": "Check addresses",
    "buy": "Buy",
    "verify": "Verify the address",
    "status": "Get credentials",
}
"""Titles for the steps of a job."""


def attempts_in_words(job: Job) -> str:
    """Return how often the present run has asked the provider, such as "2 to buy, 1 for credentials"."""
    buys, looks = job.get("buys") or 0, job.get("looks") or 0
    parts = ([f"{buys} to buy"] if buys else []) + ([f"{looks} for credentials"] if looks else [])
    return ", ".join(parts) or "none"


def last_error(job: Job) -> str | None:
    """Return why the job failed, or what last went wrong while it is open; None if nothing did."""
    if job.get("state") == State.COMPLETED:
        return None
    if job.get("failureReason"):
        return str(job["failureReason"])
    begun = job.get("requestedAt") or job.get("createdAt")
    wrong = [a for a in job.get("attempts") or () if a.get("outcome") != "ok" and (begun is None or a["at"] >= begun)]
    if wrong:
        return f"{STEPS.get(wrong[-1]['step'], wrong[-1]['step'])}: {wrong[-1]['detail']}"
    trouble = (job.get("purchase") or {}).get("trouble")
    return f"{STEPS['buy']}: {trouble}" if trouble else None


def what_next(job: Job) -> str:
    """Return what happens next, without the time of the next attempt."""
    match job.get("state"):
        case State.QUEUED:
            return f"its turn for package {job.get('package') or 'unknown'}"
        case State.RUNNING:
            return f"now: {STEPS.get(str(job.get('step')), 'work')}"
        case State.WAITING:
            return "next attempt"
        case State.FAILED:
            return "a decision: retry or refund" if job.get("retryable") else "nothing by itself"
    return "nothing: it is done"


def next_attempt_at(job: Job) -> datetime | None:
    """Return when the next attempt is due, None unless the job waits for it."""
    due = job.get("dueAt") if job.get("state") == State.WAITING else None
    return due if isinstance(due, datetime) else None


def requested_at(job: Job) -> datetime | None:
    """Return when the present run was requested; jobs of earlier releases only say when the first one was."""
    at = job.get("requestedAt") or job.get("createdAt")
    return at if isinstance(at, datetime) else None
