"""The lifecycle of a job: the next state after each event. Pure: no I/O, no clock.

    requested ──▶ QUEUED ──its turn──▶ RUNNING: check ──▶ buy ──▶ verify ──▶ status ──▶ COMPLETED
                    ▲                     │                 ▲                   ▲
                    │                     └── an attempt failed, another is left: WAITING until it is due
                    └── retry ── FAILED ◀── the last attempt, no address, the wrong address, cancelled in time

An attempt to buy without an answer is neither repeated nor given up on a guess. Its `Purchase` stays in the job until
the free addresses show what happened: an address that was free before and is sold now is adopted (`possibly_bought`).
If there is none once the provider can no longer be processing the request, the attempt has failed (`nothing_bought`).
"""

from collections.abc import Collection
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from provisioning_service.addresses import is_inside
from provisioning_service.job import Attempt, Job, OutboxMessage, Purchase, State, Step
from provisioning_service.provider import Access
from shared.contracts import (
    CancelProvisioning,
    Message,
    ProvisioningCompleted,
    ProvisioningFailed,
    ProvisioningProgress,
    ProvisionServer,
)
from shared.contracts.failures import FailureCode
from shared.contracts.provisioning import Server

NO_PROVIDER = "No server provider is configured"
CANCELLED = "Cancelled"
OPENING = "Your server is being provisioned"
NO_ADDRESS = "Package has no available IPs"
BLOCKED = "PROVISIONING BLOCKED"

SEARCH_INTERVAL = timedelta(seconds=5)
"""The interval between searches for the result of a lost answer, while the provider may still be processing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """The numbers of attempts, the delays between them (the last one repeats), and the time limits."""

    buy_attempts: int
    buy_delays: tuple[timedelta, ...]
    buy_timeout: timedelta
    status_attempts: int
    status_delays: tuple[timedelta, ...]
    lock_wait: timedelta
    lock_attempts: int
    lease: timedelta


# --- Requests and cancellations. ---

Command = ProvisionServer | CancelProvisioning


def commanded(job: Job | None, command: Command, now: datetime, queue_position: int) -> Job:
    """Return the job after a command, with a provider and without a worker; None is an order that has no job yet."""
    if isinstance(command, CancelProvisioning):
        return tombstone(command, now) if job is None else cancellation_requested(job, command, now)
    if job is None:
        return requested(command, now, queue_position)
    return requested_again(job, command, now, queue_position)


def requested(message: ProvisionServer, now: datetime, queue_position: int) -> Job:
    """Create the job of an order's first request."""
    job = Job(
        order_id=message.order_id,
        state=State.QUEUED,
        created_at=now,
        updated_at=now,
        requested_at=now,
        user_id=message.user_id,
        owner_id=message.owner_id,
        package=message.package,
        package_id=message.package_id,
        ram=message.ram,
        run=message.run,
        queue_position=queue_position,
        due_at=now,
        waiting_since=now,
    )
    return _with_progress(job, "requested", 0, OPENING)


def requested_again(job: Job, message: ProvisionServer, now: datetime, queue_position: int) -> Job:
    """Start another run of a failed job if the message asks for one; any other repetition changes nothing.

    The run starts at the end of the queue and knows what earlier runs have bought. After a search, only the addresses
    that were asked for are remembered: others may have been sold to another customer since. If the last attempt is
    unanswered, the new run waits as long as another attempt would have.
    """
    if job.state is not State.FAILED or message.run <= job.run:
        return job
    purchase = job.purchase
    if purchase is not None and purchase.searched:
        purchase = replace(purchase, free_before=purchase.asked)
    again = replace(
        job,
        state=State.QUEUED,
        requested_at=now,
        user_id=message.user_id,
        owner_id=message.owner_id,
        package=message.package,
        package_id=message.package_id,
        ram=message.ram,
        run=message.run,
        step=Step.LOCK if job.ip is None else Step.STATUS,
        queue_position=queue_position,
        due_at=now,
        waiting_since=now,
        lock_timeouts=0,
        buy_attempts=0,
        status_attempts=0,
        purchase=purchase,
        failure_reason=None,
        failure_code=None,
        customer_reason=None,
        retryable=False,
        lock_timed_out_at=None,
        updated_at=now,
    )
    nothing_was_bought = purchase is None or (purchase.answered and purchase.searched)
    if again.cancel_requested and again.ip is None and nothing_was_bought:
        return _failed(again, CANCELLED, FailureCode.CANCELLED_BY_CLIENT, now)
    if purchase is not None and not purchase.answered and now < purchase.no_retry_before:
        again = _waiting(again, purchase.no_retry_before, now)
    return _with_progress(again, "requested", 0, OPENING)


def refused(job: Job, now: datetime) -> Job:
    """End the job because no provider is configured."""
    return _failed(job, NO_PROVIDER, FailureCode.PROVIDER_UNAVAILABLE, now, retryable=True)


def tombstone(message: CancelProvisioning, now: datetime) -> Job:
    """Create the job of a cancellation that overtook its request."""
    run = max(message.run, 1)
    job = Job(order_id=message.order_id, state=State.QUEUED, created_at=now, updated_at=now, run=run, cancel_run=run)
    return _failed(job, CANCELLED, FailureCode.CANCELLED_BY_CLIENT, now)


def cancellation_requested(job: Job, message: CancelProvisioning, now: datetime) -> Job:
    """Record the cancellation of a run, and honour it at once if no worker is running the job."""
    return cancellation_honoured(replace(job, cancel_run=max(job.cancel_run, message.run or job.run)), now)


def cancellation_honoured(job: Job, now: datetime) -> Job:
    """Honour a cancellation while no worker is running: end the job, or make it due to find out what it has bought."""
    if job.ended or not job.cancel_requested or job.state is State.RUNNING or job.ip is not None:
        return job
    if job.purchase is None:
        return _failed(job, CANCELLED, FailureCode.CANCELLED_BY_CLIENT, now)
    return replace(job, due_at=now, waiting_since=min(job.waiting_since or now, now), updated_at=now)


def answers(job: Job) -> tuple[Message, ...]:
    """Return the final message of an ended job, to answer a repeated command; nothing before its end."""
    match job.state:
        case State.FAILED:
            return (_failure(job),)
        case State.COMPLETED:
            return (_completion(job),)
        case _:
            return ()


def without_final_message(after: Job, before: Job | None = None) -> Job:
    """Keep the final message of an ended job out of its outbox: a command is answered with it."""
    if not after.ended:
        return after
    return replace(after, outbox=before.outbox if before else ())


# --- A worker's claim. ---


def claimed(job: Job, now: datetime, lease: timedelta) -> Job:
    """Claim the job: from now on, writes with an older fence are rejected."""
    return replace(job, state=State.RUNNING, fence=job.fence + 1, due_at=now + lease, updated_at=now)


def lock_wait_expired(job: Job, progress_at: datetime, now: datetime, timeouts: Timeouts) -> bool:
    """Return whether a queued job has waited too long since it came, last timed out, or the holder made progress."""
    since = [moment for moment in (job.waiting_since, job.lock_timed_out_at, progress_at) if moment is not None]
    return now - max(since) >= timeouts.lock_wait


def lock_wait_timed_out(job: Job, holder: str, progress_at: datetime, now: datetime, timeouts: Timeouts) -> Job:
    """Count a wait for the lock that took too long; `holder` has made no progress since `progress_at`."""
    seconds, since = f"{timeouts.lock_wait.total_seconds():g}", progress_at.isoformat(timespec="seconds")
    detail = f"no turn within {seconds} s: order {holder} holds the package, without progress since {since}"
    # Waits are added up only while the holder makes no progress.
    before = job.lock_timeouts if job.lock_timed_out_at and progress_at <= job.lock_timed_out_at else 0
    job = _logged(job, Step.LOCK, now, "failed", detail)
    job = replace(job, lock_timeouts=before + 1, lock_timed_out_at=now, updated_at=now)
    if job.lock_timeouts < timeouts.lock_attempts:
        return job
    reason = f"No turn for package {job.package} within {seconds} s"
    return _failed(job, reason, FailureCode.PROVISIONING_TIMED_OUT, now, retryable=True)


# --- Check, buy, verify: with the package's lock. ---


def check_failed(job: Job, error: str, now: datetime, timeouts: Timeouts) -> Job:
    """Count an attempt that ended before it could buy, because the provider did not list its packages.

    If an earlier attempt to buy was being searched for, that one counts as failed; the next attempt searches again.
    """
    already_counted = job.purchase is not None and not job.purchase.failed and job.buy_attempts > 0
    purchase = replace(job.purchase, failed=True) if job.purchase else None
    job = replace(job, step=Step.CHECK, buy_attempts=job.buy_attempts + (not already_counted), purchase=purchase)
    job = _logged(job, Step.CHECK, now, "failed", error)
    if job.cancel_requested and purchase is None:
        return _failed(job, CANCELLED, FailureCode.CANCELLED_BY_CLIENT, now)
    return _after_failed_buy(job, error, now, timeouts)


def not_available(job: Job, why: str, now: datetime) -> Job:
    """End the run, because there is nothing to buy."""
    job = _logged(replace(job, step=Step.CHECK), Step.CHECK, now, "failed", why)
    return _failed(job, why, FailureCode.PACKAGE_UNAVAILABLE, now, retryable=True)


def buy_started(job: Job, ip: str, free: Collection[str], now: datetime, timeouts: Timeouts) -> Job:
    """Record, before the request is sent, what is asked for and what is free."""
    before = job.purchase
    asked = dict.fromkeys((*(before.asked if before else ()), ip))
    known = dict.fromkeys((*(before.free_before if before else ()), *free))
    no_retry_before = now + timeouts.buy_timeout + _delay(timeouts.buy_delays, job.buy_attempts + 1)
    purchase = Purchase(asked=tuple(asked), free_before=tuple(known), started_at=now, no_retry_before=no_retry_before)
    job = _logged(job, Step.CHECK, now, "ok", f"{len(free)} free, asking for {ip}")
    return replace(job, step=Step.BUY, buy_attempts=job.buy_attempts + 1, purchase=purchase, updated_at=now)


def buy_not_sent(job: Job, before: Job, now: datetime) -> Job:
    """Undo the start of an attempt whose request was not sent."""
    job = _logged(job, Step.BUY, now, "failed", "the lock was lost before the request left: nothing was bought")
    return replace(job, step=before.step, buy_attempts=before.buy_attempts, purchase=before.purchase, updated_at=now)


def no_address_received(job: Job, error: str, now: datetime, *, answered: bool) -> Job:
    """Record the error of an attempt; `answered` is true if the provider has finished processing it."""
    if job.purchase is None:
        return job
    return replace(job, purchase=replace(job.purchase, answered=answered, error=error), updated_at=now)


def possibly_bought(job: Job, free: Collection[str], others: Collection[str]) -> list[str]:
    """Return the addresses that an earlier attempt may have bought, most likely first.

    They are those of the package that were free when an attempt began, are no longer free, and belong to no other
    order. No other job buys from the package while its lock is held.
    """
    if job.purchase is None or job.package is None:
        return []
    known = dict.fromkeys((*reversed(job.purchase.asked), *job.purchase.free_before))
    return [ip for ip in known if ip not in free and ip not in others and is_inside(job.package, ip)]


def nothing_bought(job: Job, now: datetime, timeouts: Timeouts) -> Job:
    """Decide about an attempt for which the search has found nothing.

    While the provider may still be processing it, the job waits and searches again; after that the attempt has failed.
    If it already counts as failed, or belongs to an earlier run, the job continues.
    """
    purchase = job.purchase
    if purchase is None:
        return job
    over_at = purchase.started_at + timeouts.buy_timeout
    if not purchase.answered and now < over_at:
        return _waiting(job, min(now + SEARCH_INTERVAL, over_at), now)
    searched = replace(job, purchase=replace(purchase, failed=True, searched=True))
    return searched if purchase.failed or job.buy_attempts == 0 else _buy_failed(searched, now, timeouts)


def search_failed(job: Job, now: datetime, timeouts: Timeouts) -> Job:
    """Count an attempt as failed although the search was impossible; it is repeated before the next attempt."""
    purchase = job.purchase
    if purchase is None:
        return job
    failed = _buy_failed(replace(job, purchase=replace(purchase, failed=True)), now, timeouts)
    over_at = purchase.started_at + timeouts.buy_timeout
    if failed.due_at is None or purchase.answered:
        return failed
    return _waiting(failed, max(failed.due_at, over_at), now)


def stopped(job: Job, now: datetime) -> Job:
    """End a cancelled run that has bought nothing."""
    return _failed(job, CANCELLED, FailureCode.CANCELLED_BY_CLIENT, now)


def bought(job: Job, ip: str, how: str, now: datetime) -> Job:
    """Record the verified address, which belongs to the order; the lock is no longer needed.

    If an unanswered attempt was followed by an address that was not asked for, one of those asked for may have been
    sold as well. The job's log says so, for the operator who settles it with the provider.
    """
    if job.purchase is not None and ip not in job.purchase.asked and job.buy_attempts > 1:
        doubt = f"asked for {', '.join(job.purchase.asked)} before: an earlier attempt may have bought that as well"
        job = _logged(job, Step.BUY, now, "unknown", doubt)
    job = _logged(_logged(job, Step.BUY, now, "ok", f"{how} {ip}"), Step.VERIFY, now, "ok", f"inside {job.package}")
    return replace(job, step=Step.STATUS, ip=ip, purchase=None, updated_at=now)


def wrong_address(job: Job, ip: str, now: datetime) -> Job:
    """End the run: the provider has assigned an address outside the package, which is never given to any order."""
    reason = f"WRONG PACKAGE ASSIGNED: ordered {job.package}, provider assigned {ip}"
    return _blocked(job, ip, reason, "Wrong package assigned", now)


def duplicate_address(job: Job, ip: str, owner: str, now: datetime) -> Job:
    """End the run: the provider has assigned an address that belongs to another order."""
    reason = f"ADDRESS ASSIGNED TWICE: provider assigned {ip}, which belongs to order {owner}"
    return _blocked(job, ip, reason, "Address assigned twice", now)


# --- Status. ---


def status_failed(job: Job, error: str, now: datetime, timeouts: Timeouts) -> Job:
    """Count a failed attempt to get the credentials of the bought server."""
    status_attempts = job.status_attempts + 1
    job = _logged(
        replace(job, status_attempts=status_attempts),
        Step.STATUS,
        now,
        "failed",
        f"attempt {status_attempts} of {timeouts.status_attempts}: {error}",
    )
    if status_attempts >= timeouts.status_attempts:
        reason = f"The provider sold {job.ip} and did not say how to get into it: {error}"
        customer = "The server was bought but is not ready yet"
        return _failed(job, reason, FailureCode.SERVER_NOT_READY, now, customer=customer, retryable=True)
    delay = _delay(timeouts.status_delays, status_attempts)
    job = _with_progress(
        job,
        Step.STATUS,
        status_attempts,
        f"Waiting {in_words(delay)} before attempt {status_attempts + 1} of {timeouts.status_attempts}",
    )
    return _waiting(job, now + delay, now)


def completed(job: Job, access: Access, credentials: bytes, now: datetime) -> Job:
    """Complete the job: the server is ready."""
    server = Server(ip=access.ip, username=access.username, os=access.os, expires_at=access.expires_at)
    job = _logged(replace(job, step=Step.STATUS), Step.STATUS, now, "ok", "the provider said how to get into it")
    job = _with_progress(job, Step.STATUS, job.status_attempts + 1, "Your server is ready")
    job = replace(job, state=State.COMPLETED, server=server, credentials=credentials, due_at=None, updated_at=now)
    return _with_message(job, _completion(job))


# --- Building blocks. ---


def in_words(delay: timedelta) -> str:
    """Format a duration for a customer: "2 minutes", "90 seconds"."""
    seconds = delay.total_seconds()
    number, unit = (seconds / 60, "minute") if seconds >= 60 and seconds % 60 == 0 else (seconds, "second")
    return f"{number:g} {unit}{'' if number == 1 else 's'}"


def _buy_failed(job: Job, now: datetime, timeouts: Timeouts) -> Job:
    error = (job.purchase.error if job.purchase else None) or "interrupted: no answer is known"
    job = _logged(job, Step.BUY, now, "failed", f"attempt {job.buy_attempts} of {timeouts.buy_attempts}: {error}")
    if job.cancel_requested and job.purchase is not None and job.purchase.searched:
        return _failed(job, CANCELLED, FailureCode.CANCELLED_BY_CLIENT, now)
    return _after_failed_buy(job, error, now, timeouts)


def _after_failed_buy(job: Job, error: str, now: datetime, timeouts: Timeouts) -> Job:
    if job.buy_attempts >= timeouts.buy_attempts:
        customer = f"The server could not be bought in {job.buy_attempts} attempt{'' if job.buy_attempts == 1 else 's'}"
        reason = f"{customer}: {error}"
        return _failed(job, reason, FailureCode.PURCHASE_FAILED, now, customer=customer, retryable=True)
    delay = _delay(timeouts.buy_delays, job.buy_attempts)
    words = f"Waiting {in_words(delay)} before attempt {job.buy_attempts + 1} of {timeouts.buy_attempts}"
    return _waiting(_with_progress(job, Step.BUY, job.buy_attempts, words), now + delay, now)


def _delay(delays: tuple[timedelta, ...], failed: int) -> timedelta:
    return delays[min(failed, len(delays)) - 1]


def _waiting(job: Job, until: datetime, now: datetime) -> Job:
    return replace(job, state=State.WAITING, due_at=until, waiting_since=until, updated_at=now)


def _blocked(job: Job, ip: str, reason: str, why: str, now: datetime) -> Job:
    job = _logged(job, Step.BUY, now, "ok", f"the provider assigned {ip}")
    job = _logged(replace(job, step=Step.VERIFY, purchase=None), Step.VERIFY, now, "failed", reason)
    job = replace(job, wrong_ips=tuple(dict.fromkeys((*job.wrong_ips, ip))))
    return _failed(job, reason, FailureCode.WRONG_ADDRESS, now, customer=f"{BLOCKED}: {why}")


def _failed(
    job: Job, reason: str, code: FailureCode, now: datetime, *, customer: str | None = None, retryable: bool = False
) -> Job:
    job = replace(
        job,
        state=State.FAILED,
        failure_reason=reason,
        failure_code=code,
        customer_reason=customer,
        retryable=retryable,
        due_at=None,
        waiting_since=None,
        updated_at=now,
    )
    return _with_message(job, _failure(job))


def _failure(job: Job) -> ProvisioningFailed:
    reason = job.customer_reason or job.failure_reason or ""
    bought = job.ip is not None or job.step is Step.VERIFY  # a verified address or a wrong one
    return ProvisioningFailed(
        order_id=job.order_id, reason=reason, code=job.failure_code, retryable=job.retryable, run=job.run, bought=bought
    )


def _completion(job: Job) -> ProvisioningCompleted:
    if job.server is None:
        raise ValueError(f"job of order {job.order_id} is {job.state} without a server")
    return ProvisioningCompleted(order_id=job.order_id, server=job.server)


def _logged(job: Job, step: Step, now: datetime, outcome: str, detail: str) -> Job:
    return replace(job, attempts=(*job.attempts, Attempt(step, now, outcome, detail)))


def _with_progress(job: Job, step: str, attempt: int, words: str) -> Job:
    sequence = job.sequence + 1
    return _with_message(
        job, ProvisioningProgress(order_id=job.order_id, step=step, attempt=attempt, message=words, sequence=sequence)
    )


def _with_message(job: Job, message: Message) -> Job:
    sequence = job.sequence + 1
    body = message.model_dump(mode="json", by_alias=True, exclude_none=True)
    return replace(job, sequence=sequence, outbox=(*job.outbox, OutboxMessage(sequence, message.routing_key, body)))
