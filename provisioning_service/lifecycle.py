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
from shared.contracts.provisioning import Server

NO_PROVIDER = "No server provider is configured"
CANCELLED = "Cancelled"
OPENING = "Your server is being provisioned"
NO_ADDRESS = "Package has no available IPs"
BLOCKED = "PROVISIONING BLOCKED"

SEARCH_INTERVAL = timedelta(seconds=5)
"""Between two looks at an attempt to buy whose answer is lost and which the provider may still be at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """How often and after which pauses; the last of the delays stands for all that follow."""

    buy_attempts: int
    buy_delays: tuple[timedelta, ...]
    buy_timeout: timedelta
    status_attempts: int
    status_delays: tuple[timedelta, ...]
    lock_wait: timedelta
    lock_attempts: int
    lease: timedelta


# --- Requests and cancellations. ---


def requested(message: ProvisionServer, now: datetime, queue_position: int) -> Job:
    """Return the job of an order's first request."""
    job = Job(
        order_id=message.order_id,
        state=State.QUEUED,
        created_at=now,
        updated_at=now,
        user_id=message.user_id,
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
    """Begin another run of a failed job if the message asks for one; any other repetition changes nothing.

    It goes to the end of the line, and knows what the runs before have bought. What could be asked about all addresses
    right after an attempt, no longer can be now: in the meantime somebody else may have bought one by other ways. Where
    the last attempt has had no answer, the new run waits as long as another attempt would have.
    """
    if job.state is not State.FAILED or message.run <= job.run:
        return job
    purchase = job.purchase
    if purchase is not None and purchase.searched:
        purchase = replace(purchase, free_before=purchase.asked)
    again = replace(
        job,
        state=State.QUEUED,
        user_id=message.user_id,
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
        customer_reason=None,
        retryable=False,
        lock_timed_out_at=None,
        updated_at=now,
    )
    known = purchase is None or (purchase.answered and purchase.searched)
    if again.cancel_requested and again.ip is None and known:
        return _failed(again, CANCELLED, now)
    if purchase is not None and not purchase.answered and now < purchase.no_retry_before:
        again = _waiting(again, purchase.no_retry_before, now)
    return _with_progress(again, "requested", 0, OPENING)


def refused(job: Job, now: datetime) -> Job:
    """Return the job as it ends where nobody sells us servers."""
    return _failed(job, NO_PROVIDER, now, retryable=True)


def tombstone(message: CancelProvisioning, now: datetime) -> Job:
    """Return the job of a cancellation that overtook its request."""
    run = max(message.run, 1)
    job = Job(order_id=message.order_id, state=State.QUEUED, created_at=now, updated_at=now, run=run, cancel_run=run)
    return _failed(job, CANCELLED, now)


def cancellation_requested(job: Job, message: CancelProvisioning, now: datetime) -> Job:
    """Note that a run is not wanted any more; it ends at once where nobody works on it and nothing may be bought."""
    return cancellation_honoured(replace(job, cancel_run=max(job.cancel_run, message.run or job.run)), now)


def cancellation_honoured(job: Job, now: datetime) -> Job:
    """Do what a cancellation means for a job that nobody works on: end it, or look at once what it has bought."""
    if job.ended or not job.cancel_requested or job.state is State.RUNNING or job.ip is not None:
        return job
    if job.purchase is None:
        return _failed(job, CANCELLED, now)
    return replace(job, due_at=now, waiting_since=min(job.waiting_since or now, now), updated_at=now)


def answers(job: Job) -> tuple[Message, ...]:
    """What follows from the job for whoever asks (again); nothing while it is on its way."""
    match job.state:
        case State.FAILED:
            return (_failure(job),)
        case State.COMPLETED:
            return (_completion(job),)
        case _:
            return ()


# --- A worker's claim. ---


def claimed(job: Job, now: datetime, lease: timedelta) -> Job:
    """Take the job: what is written under an older fence is refused from now on."""
    return replace(job, state=State.RUNNING, fence=job.fence + 1, due_at=now + lease, updated_at=now)


def lock_wait_expired(job: Job, progress_at: datetime, now: datetime, timeouts: Timeouts) -> bool:
    """Whether a job in line has waited for too long since it came, since it last missed its turn, or since it moved."""
    since = [moment for moment in (job.waiting_since, job.lock_timed_out_at, progress_at) if moment is not None]
    return now - max(since) >= timeouts.lock_wait


def lock_wait_timed_out(job: Job, holder: str, progress_at: datetime, now: datetime, timeouts: Timeouts) -> Job:
    """Count a wait for the lock that was too long, `holder` having made no progress since that time."""
    seconds = f"{timeouts.lock_wait.total_seconds():g}"
    detail = (
        f"no turn within {seconds} s: order {holder} holds the package, without progress since {_clock(progress_at)}"
    )
    # Waits count together only while the package stands still.
    before = job.lock_timeouts if job.lock_timed_out_at and progress_at <= job.lock_timed_out_at else 0
    job = _logged(job, Step.LOCK, now, "failed", detail)
    job = replace(job, lock_timeouts=before + 1, lock_timed_out_at=now, updated_at=now)
    if job.lock_timeouts < timeouts.lock_attempts:
        return job
    return _failed(job, f"No turn for package {job.package} within {seconds} s", now, retryable=True)


# --- Check, buy, verify: under the package's lock. ---


def check_failed(job: Job, trouble: str, now: datetime, timeouts: Timeouts) -> Job:
    """Count an attempt that ended before it could buy: the provider did not say what there is.

    An attempt to buy that was looked for is the one that has failed, and is looked for again before the next one.
    """
    counted = job.purchase is not None and not job.purchase.failed and job.buy_attempts > 0
    purchase = replace(job.purchase, failed=True) if job.purchase else None
    job = replace(job, step=Step.CHECK, buy_attempts=job.buy_attempts + (not counted), purchase=purchase)
    job = _logged(job, Step.CHECK, now, "failed", trouble)
    if job.cancel_requested and purchase is None:
        return _failed(job, CANCELLED, now)
    return _after_failed_buy(job, trouble, now, timeouts)


def not_available(job: Job, why: str, now: datetime) -> Job:
    """End the run: there is nothing to buy."""
    return _failed(_logged(replace(job, step=Step.CHECK), Step.CHECK, now, "failed", why), why, now, retryable=True)


def buy_started(job: Job, ip: str, free: Collection[str], now: datetime, timeouts: Timeouts) -> Job:
    """Note, before the request leaves, what is asked for and what is free."""
    before = job.purchase
    asked = dict.fromkeys((*(before.asked if before else ()), ip))
    known = dict.fromkeys((*(before.free_before if before else ()), *free))
    no_retry_before = now + timeouts.buy_timeout + _delay(timeouts.buy_delays, job.buy_attempts + 1)
    purchase = Purchase(asked=tuple(asked), free_before=tuple(known), started_at=now, no_retry_before=no_retry_before)
    job = _logged(job, Step.CHECK, now, "ok", f"{len(free)} free, asking for {ip}")
    return replace(job, step=Step.BUY, buy_attempts=job.buy_attempts + 1, purchase=purchase, updated_at=now)


def buy_not_sent(job: Job, before: Job, now: datetime) -> Job:
    """Take back that an attempt began: its request has not left."""
    job = _logged(job, Step.BUY, now, "failed", "the lock was lost before the request left: nothing was bought")
    return replace(job, step=before.step, buy_attempts=before.buy_attempts, purchase=before.purchase, updated_at=now)


def no_address_received(job: Job, trouble: str, now: datetime, *, done: bool) -> Job:
    """Note what came instead of an address; `done` says that the provider is not at it any more."""
    if job.purchase is None:
        return job
    return replace(job, purchase=replace(job.purchase, answered=done, error=trouble), updated_at=now)


def possibly_bought(job: Job, free: Collection[str], others: Collection[str]) -> list[str]:
    """Return the addresses that an earlier attempt may have bought, likeliest first.

    Those of the package that were free when an attempt began, are not now, and belong to no other order. Under the
    package's lock nobody else buys from it.
    """
    if job.purchase is None or job.package is None:
        return []
    known = dict.fromkeys((*reversed(job.purchase.asked), *job.purchase.free_before))
    return [ip for ip in known if ip not in free and ip not in others and is_inside(job.package, ip)]


def nothing_bought(job: Job, now: datetime, timeouts: Timeouts) -> Job:
    """Decide about an attempt that has bought nothing that could be seen.

    While the provider may still be at it, the job waits and looks again; after that the attempt has failed. Where it
    counts as failed already, or was an earlier run's, the job goes on as it is.
    """
    purchase = job.purchase
    if purchase is None:
        return job
    over_at = purchase.started_at + timeouts.buy_timeout
    if not purchase.answered and now < over_at:
        return _waiting(job, min(now + SEARCH_INTERVAL, over_at), now)
    settled = replace(job, purchase=replace(purchase, failed=True, searched=True))
    return settled if purchase.failed or job.buy_attempts == 0 else _buy_failed(settled, now, timeouts)


def search_failed(job: Job, now: datetime, timeouts: Timeouts) -> Job:
    """Count an attempt as failed though nobody could look whether it has bought: that is done before the next one."""
    purchase = job.purchase
    if purchase is None:
        return job
    failed = _buy_failed(replace(job, purchase=replace(purchase, failed=True)), now, timeouts)
    over_at = purchase.started_at + timeouts.buy_timeout
    if failed.due_at is None or purchase.answered:
        return failed
    return _waiting(failed, max(failed.due_at, over_at), now)


def stopped(job: Job, now: datetime) -> Job:
    """End a run that is to be cancelled and has bought nothing."""
    return _failed(job, CANCELLED, now)


def bought(job: Job, ip: str, how: str, now: datetime) -> Job:
    """Note the verified address: it is the order's, and the lock is needed no longer.

    Where another address than those asked for comes back after an attempt without an answer, one of them may have been
    sold as well: the job's log says so to who has to settle that with the provider.
    """
    if job.purchase is not None and ip not in job.purchase.asked and job.buy_attempts > 1:
        doubt = f"asked for {', '.join(job.purchase.asked)} before: an earlier attempt may have bought that as well"
        job = _logged(job, Step.BUY, now, "unknown", doubt)
    job = _logged(_logged(job, Step.BUY, now, "ok", f"{how} {ip}"), Step.VERIFY, now, "ok", f"inside {job.package}")
    return replace(job, step=Step.STATUS, ip=ip, purchase=None, updated_at=now)


def wrong_address(job: Job, ip: str, now: datetime) -> Job:
    """End the run: the provider has assigned an address outside the package. Never retried, never given away."""
    reason = f"WRONG PACKAGE ASSIGNED: ordered {job.package}, provider assigned {ip}"
    return _blocked(job, ip, reason, "Wrong package assigned", now)


def duplicate_address(job: Job, ip: str, owner: str, now: datetime) -> Job:
    """End the run: the provider has assigned an address that it had assigned before."""
    reason = f"ADDRESS ASSIGNED TWICE: provider assigned {ip}, which belongs to order {owner}"
    return _blocked(job, ip, reason, "Address assigned twice", now)


# --- Status. ---


def status_failed(job: Job, trouble: str, now: datetime, timeouts: Timeouts) -> Job:
    """Count an attempt to get the credentials of the server that was bought."""
    status_attempts = job.status_attempts + 1
    job = _logged(
        replace(job, status_attempts=status_attempts),
        Step.STATUS,
        now,
        "failed",
        f"attempt {status_attempts} of {timeouts.status_attempts}: {trouble}",
    )
    if status_attempts >= timeouts.status_attempts:
        reason = f"The provider sold {job.ip} and did not say how to get into it: {trouble}"
        return _failed(job, reason, now, customer="The server was bought but is not ready yet", retryable=True)
    delay = _delay(timeouts.status_delays, status_attempts)
    job = _with_progress(
        job,
        Step.STATUS,
        status_attempts,
        f"Waiting {in_words(delay)} before attempt {status_attempts + 1} of {timeouts.status_attempts}",
    )
    return _waiting(job, now + delay, now)


def completed(job: Job, access: Access, credentials: bytes, now: datetime) -> Job:
    """End the job well: the server is there."""
    server = Server(ip=access.ip, username=access.username, os=access.os, expires_at=access.expires_at)
    job = _logged(replace(job, step=Step.STATUS), Step.STATUS, now, "ok", "the provider said how to get into it")
    job = _with_progress(job, Step.STATUS, job.status_attempts + 1, "Your server is ready")
    job = replace(job, state=State.COMPLETED, server=server, credentials=credentials, due_at=None, updated_at=now)
    return _with_message(job, _completion(job))


# --- What the decisions are made of. ---


def in_words(delay: timedelta) -> str:
    """Write a pause for a customer: "2 minutes", "90 seconds"."""
    seconds = delay.total_seconds()
    number, unit = (seconds / 60, "minute") if seconds >= 60 and seconds % 60 == 0 else (seconds, "second")
    return f"{number:g} {unit}{'' if number == 1 else 's'}"


def _buy_failed(job: Job, now: datetime, timeouts: Timeouts) -> Job:
    trouble = (job.purchase.error if job.purchase else None) or "interrupted: no answer is known"
    job = _logged(job, Step.BUY, now, "failed", f"attempt {job.buy_attempts} of {timeouts.buy_attempts}: {trouble}")
    if job.cancel_requested and job.purchase is not None and job.purchase.searched:
        return _failed(job, CANCELLED, now)
    return _after_failed_buy(job, trouble, now, timeouts)


def _after_failed_buy(job: Job, trouble: str, now: datetime, timeouts: Timeouts) -> Job:
    if job.buy_attempts >= timeouts.buy_attempts:
        customer = f"The server could not be bought in {job.buy_attempts} attempt{'' if job.buy_attempts == 1 else 's'}"
        return _failed(job, f"{customer}: {trouble}", now, customer=customer, retryable=True)
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
    return _failed(job, reason, now, customer=f"{BLOCKED}: {why}")


def _failed(job: Job, reason: str, now: datetime, *, customer: str | None = None, retryable: bool = False) -> Job:
    job = replace(
        job,
        state=State.FAILED,
        failure_reason=reason,
        customer_reason=customer,
        retryable=retryable,
        due_at=None,
        waiting_since=None,
        updated_at=now,
    )
    return _with_message(job, _failure(job))


def _failure(job: Job) -> ProvisioningFailed:
    reason = job.customer_reason or job.failure_reason or ""
    bought = job.ip is not None or job.step is Step.VERIFY  # verified, or not what it should be
    return ProvisioningFailed(order_id=job.order_id, reason=reason, retryable=job.retryable, run=job.run, bought=bought)


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


def _clock(moment: datetime) -> str:
    return moment.isoformat(timespec="seconds")
