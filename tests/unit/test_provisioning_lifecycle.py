"""The lifecycle of a job as tables and properties: every decision of the provisioning service, without I/O."""

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provisioning_service import lifecycle
from provisioning_service.__main__ import timeouts_from
from provisioning_service.job import Attempt, Job, OutboxMessage, Purchase, State, Step
from provisioning_service.lifecycle import SEARCH_INTERVAL, answers, in_words
from provisioning_service.provider import Access
from provisioning_service.settings import ProvisioningSettings
from shared.clock import utc_now
from shared.contracts import (
    BY_ROUTING_KEY,
    CancelProvisioning,
    Message,
    ProvisioningCompleted,
    ProvisioningFailed,
    ProvisioningProgress,
    ProvisionServer,
)
from shared.contracts.provisioning import Server
from tests.support.failure_codes import code_of

NOW = utc_now()
LATER = NOW + timedelta(minutes=10)
TIMEOUTS = timeouts_from(ProvisioningSettings())
"""The defaults of the settings."""
IP, OTHER_IP = "103.181.91.1", "103.181.91.2"
ACCESS = Access(IP, "root", "s3cret-Pa55", "Ubuntu 22.04", "2026-12-31")
SEALED = b"sealed"
SERVER = Server(ip=IP, username="root", os="Ubuntu 22.04", expires_at="2026-12-31")


def seconds(number: float) -> timedelta:
    return timedelta(seconds=number)


def request(run: int = 1, **changes: Any) -> ProvisionServer:
    fields: dict[str, Any] = {"order_id": "o1", "user_id": "u1", "package": "103.181.91", "ram": 2048, "run": run}
    return ProvisionServer(**(fields | changes))


def cancellation(run: int = 0) -> CancelProvisioning:
    return CancelProvisioning(order_id="o1", run=run)


def a_job(state: State = State.RUNNING, **changes: Any) -> Job:
    """Build a job in this state that has bought nothing yet."""
    ended: dict[str, Any] = {"due_at": None, "waiting_since": None} if state in (State.FAILED, State.COMPLETED) else {}
    if state is State.FAILED:
        ended |= {"failure_reason": "why", "retryable": True}
    if state is State.COMPLETED:
        ended |= {"ip": IP, "server": SERVER, "credentials": SEALED, "step": Step.STATUS}
    published: dict[str, Any] = {"outbox": (), "sequence": 1}  # the first progress message is published
    return replace(lifecycle.requested(request(), NOW, queue_position=7), state=state, **(published | ended | changes))


def a_purchase(**changes: Any) -> Purchase:
    fields: dict[str, Any] = {"asked": (IP,), "free_before": (IP, OTHER_IP), "started_at": NOW}
    fields["no_retry_before"] = NOW + seconds(240)  # the timeout, and the delay after it
    return Purchase(**(fields | changes))


def messages(job: Job) -> list[Message]:
    return [BY_ROUTING_KEY[notice.routing_key].model_validate(notice.body) for notice in job.outbox]


def failure(reason: str, *, retryable: bool = False, run: int = 1, bought: bool = False) -> ProvisioningFailed:
    code = code_of(reason)
    return ProvisioningFailed(order_id="o1", reason=reason, code=code, retryable=retryable, run=run, bought=bought)


def progress(step: str, attempt: int, words: str, sequence: int) -> ProvisioningProgress:
    return ProvisioningProgress(order_id="o1", step=step, attempt=attempt, message=words, sequence=sequence)


CANCELLED = failure("Cancelled")
OPENING = progress("requested", 0, "Your server is being provisioned", 1)


def has_ended_with(job: Job, message: Message) -> bool:
    """Return whether the job has ended in every respect, with this message as its last."""
    ended = job.ended and job.due_at is None and job.waiting_since is None
    return ended and messages(job)[-1] == message and answers(job) == (message,)


# --- Requests. ---


def test_the_timeouts_come_from_the_settings() -> None:
    assert (TIMEOUTS.buy_attempts, TIMEOUTS.buy_delays) == (3, (seconds(120), seconds(180)))
    assert (TIMEOUTS.status_attempts, TIMEOUTS.status_delays) == (3, (seconds(60), seconds(120)))
    assert (TIMEOUTS.buy_timeout, TIMEOUTS.lock_wait, TIMEOUTS.lease) == (seconds(120), seconds(30), seconds(120))
    assert TIMEOUTS.lock_attempts == 10


def test_a_request_is_queued_at_once_and_reported_to_the_customer() -> None:
    job = lifecycle.requested(request(3, package_id="7"), NOW, queue_position=42)
    assert (job.state, job.step, job.due_at, job.waiting_since) == (State.QUEUED, Step.LOCK, NOW, NOW)
    assert (job.order_id, job.user_id, job.package, job.package_id, job.ram) == ("o1", "u1", "103.181.91", "7", 2048)
    assert (job.run, job.queue_position, job.lock_key, job.needs_lock) == (3, 42, "103.181.91", True)
    assert messages(job) == [OPENING]
    assert answers(job) == ()


@pytest.mark.parametrize("state", [state for state in State if state is not State.FAILED])
@pytest.mark.parametrize("run", [1, 2])
def test_a_request_for_a_job_that_has_not_failed_changes_nothing(state: State, run: int) -> None:
    job = a_job(state)
    assert lifecycle.requested_again(job, request(run), LATER, queue_position=9) is job


def test_a_repeated_request_of_a_failed_run_changes_nothing() -> None:
    job = a_job(State.FAILED, run=2)
    assert all(lifecycle.requested_again(job, request(run), LATER, queue_position=9) is job for run in (1, 2))


def test_a_retry_starts_again_at_the_end_of_the_queue_and_reports_it() -> None:
    failed = a_job(
        State.FAILED,
        buy_attempts=3,
        status_attempts=2,
        lock_timeouts=4,
        sequence=5,
        customer_reason="public",
        wrong_ips=("9.9.9.9",),
    )
    again = lifecycle.requested_again(failed, request(2, ram=4096), LATER, queue_position=9)
    assert (again.state, again.step, again.run, again.queue_position) == (State.QUEUED, Step.LOCK, 2, 9)
    assert (again.due_at, again.waiting_since, again.ram) == (LATER, LATER, 4096)
    assert (again.buy_attempts, again.status_attempts, again.lock_timeouts) == (0, 0, 0)
    assert (again.failure_reason, again.customer_reason, again.retryable) == (None, None, False)
    assert (again.created_at, again.attempts, again.wrong_ips) == (NOW, failed.attempts, ("9.9.9.9",))
    assert messages(again) == [progress("requested", 0, "Your server is being provisioned", 6)]


def test_a_retry_continues_with_a_server_that_was_bought() -> None:
    again = lifecycle.requested_again(
        a_job(State.FAILED, ip=IP, status_attempts=3), request(2), LATER, queue_position=9
    )
    assert (again.state, again.step, again.ip, again.needs_lock) == (State.QUEUED, Step.STATUS, IP, False)


@pytest.mark.parametrize("searched", [True, False])
def test_a_retry_remembers_a_purchase_but_not_addresses_that_others_may_have_bought(searched: bool) -> None:
    failed = a_job(State.FAILED, purchase=a_purchase(failed=True, searched=searched))
    again = lifecycle.requested_again(failed, request(2), LATER, queue_position=9)
    assert again.purchase is not None
    assert again.purchase.asked == (IP,)
    assert again.purchase.free_before == ((IP,) if searched else (IP, OTHER_IP))


def test_a_retry_after_an_unanswered_attempt_waits_as_long_as_another_attempt() -> None:
    failed = a_job(State.FAILED, purchase=a_purchase(failed=True, searched=True))
    soon = lifecycle.requested_again(failed, request(2), NOW + seconds(130), queue_position=9)
    assert (soon.state, soon.due_at) == (State.WAITING, NOW + seconds(240))
    assert lifecycle.requested_again(failed, request(2), NOW + seconds(240), queue_position=9).state is State.QUEUED
    answered = a_job(State.FAILED, purchase=a_purchase(failed=True, searched=True, answered=True))
    assert lifecycle.requested_again(answered, request(2), NOW + seconds(130), queue_position=9).state is State.QUEUED


def test_a_retry_that_was_cancelled_in_advance_ends_at_once() -> None:
    failed = lifecycle.cancellation_requested(a_job(State.FAILED), cancellation(2), NOW)
    assert answers(failed) == (failure("why", retryable=True),), "the earlier run is not cancelled"
    again = lifecycle.requested_again(failed, request(2), LATER, queue_position=9)
    assert has_ended_with(again, failure("Cancelled", run=2))
    assert lifecycle.requested_again(again, request(2), LATER, queue_position=9) is again


def test_a_cancelled_retry_keeps_a_server_that_was_bought() -> None:
    failed = lifecycle.cancellation_requested(a_job(State.FAILED, ip=IP), cancellation(2), NOW)
    assert lifecycle.requested_again(failed, request(2), LATER, queue_position=9).state is State.QUEUED


@pytest.mark.parametrize("run", [0, 1])
def test_a_cancellation_before_its_request_ends_the_request(run: int) -> None:
    found = lifecycle.tombstone(cancellation(run), NOW)
    assert has_ended_with(found, CANCELLED)
    assert (found.package, found.lock_key, found.needs_lock) == (None, None, False)
    assert lifecycle.requested_again(found, request(1), LATER, queue_position=9) is found


def test_a_later_run_is_not_stopped_by_the_cancellation_of_an_earlier_one() -> None:
    found = lifecycle.requested_again(lifecycle.tombstone(cancellation(1), NOW), request(2), LATER, queue_position=9)
    assert (found.state, found.package, found.cancel_requested) == (State.QUEUED, "103.181.91", False)


def test_a_job_without_a_provider_is_refused() -> None:
    found = lifecycle.refused(lifecycle.requested(request(), NOW, queue_position=1), NOW)
    assert has_ended_with(found, failure("No server provider is configured", retryable=True))


# --- Cancellations. ---

CANCELLATIONS: dict[tuple[State, str], str] = {
    # (state, what was bought): the effect of a cancellation
    (State.QUEUED, "nothing"): "ends",
    (State.QUEUED, "perhaps"): "searches",
    (State.QUEUED, "address"): "continues",
    (State.WAITING, "nothing"): "ends",
    (State.WAITING, "perhaps"): "searches",
    (State.WAITING, "address"): "continues",
    (State.RUNNING, "nothing"): "continues",
    (State.RUNNING, "perhaps"): "continues",
    (State.RUNNING, "address"): "continues",
    (State.FAILED, "nothing"): "continues",
    (State.FAILED, "perhaps"): "continues",
    (State.FAILED, "address"): "continues",
    (State.COMPLETED, "address"): "continues",
}
BOUGHT: dict[str, dict[str, Any]] = {"nothing": {}, "perhaps": {"purchase": a_purchase()}, "address": {"ip": IP}}


@pytest.mark.parametrize(("state", "what"), CANCELLATIONS)
@pytest.mark.parametrize("run", [0, 1])
def test_a_cancellation_ends_an_idle_job_that_has_bought_nothing(state: State, what: str, run: int) -> None:
    job = a_job(state, **BOUGHT[what])
    if state is State.WAITING:
        job = replace(job, due_at=LATER + seconds(60), waiting_since=LATER + seconds(60))
    found = lifecycle.cancellation_requested(job, cancellation(run), LATER)
    assert found.cancel_requested
    match CANCELLATIONS[state, what]:
        case "ends":
            assert has_ended_with(found, CANCELLED)
        case "searches":
            assert (found.state, found.due_at, found.purchase) == (state, LATER, job.purchase)
            assert found.waiting_since is not None
            assert found.waiting_since <= LATER, "it is in the queue from now on"
        case _:
            assert found == replace(job, cancel_run=1)


@pytest.mark.parametrize("state", [State.QUEUED, State.WAITING])
def test_a_cancellation_of_an_earlier_run_stops_nothing(state: State) -> None:
    found = lifecycle.cancellation_requested(a_job(state, run=2), cancellation(1), LATER)
    assert found == a_job(state, run=2, cancel_run=1)
    assert not found.cancel_requested


def test_a_cancellation_is_never_withdrawn() -> None:
    job = lifecycle.cancellation_requested(a_job(run=3), cancellation(3), NOW)
    assert lifecycle.cancellation_requested(job, cancellation(1), LATER).cancel_run == 3


# --- Claims and waits for the lock. ---


def test_a_claim_increments_the_fence_and_lasts_for_the_lease() -> None:
    found = lifecycle.claimed(a_job(State.QUEUED, fence=4), LATER, TIMEOUTS.lease)
    assert (found.state, found.fence, found.due_at) == (State.RUNNING, 5, LATER + seconds(120))


def miss(job: Job, now: Any, progress_at: Any = NOW, **timeouts: Any) -> Job:
    return lifecycle.lock_wait_timed_out(job, "o2", progress_at, now, replace(TIMEOUTS, **timeouts))


def test_a_wait_that_took_too_long_is_logged_with_the_reason_and_continues() -> None:
    moment = NOW + seconds(30)
    found = miss(a_job(State.QUEUED), moment)
    assert (found.state, found.lock_timeouts, found.lock_timed_out_at, found.due_at) == (State.QUEUED, 1, moment, NOW)
    assert found.waiting_since == NOW, "it has been in the queue since it came"
    (attempt,) = found.attempts
    assert (attempt.step, attempt.at, attempt.outcome) == (Step.LOCK, moment, "failed")
    assert attempt.detail == (
        f"no turn within 30 s: order o2 holds the package, without progress since {NOW.isoformat(timespec='seconds')}"
    )
    assert found.outbox == (), "the customer is not informed"


@pytest.mark.parametrize(
    ("since_it_came", "since_it_missed", "since_progress", "missed"),
    [(30, None, 30, True), (29, None, 30, False), (300, 30, 300, True), (300, 29, 300, False), (300, 300, 29, False)],
)
def test_a_wait_takes_too_long_when_nothing_has_moved(
    since_it_came: float, since_it_missed: float | None, since_progress: float, missed: bool
) -> None:
    lock_timed_out_at = None if since_it_missed is None else NOW - seconds(since_it_missed)
    job = a_job(State.QUEUED, waiting_since=NOW - seconds(since_it_came), lock_timed_out_at=lock_timed_out_at)
    assert lifecycle.lock_wait_expired(job, NOW - seconds(since_progress), NOW, TIMEOUTS) == missed


def test_the_tenth_wait_that_takes_too_long_fails_the_job() -> None:
    job = a_job(State.QUEUED, purchase=a_purchase())
    for number in range(1, 11):
        assert not job.ended
        job = miss(job, NOW + seconds(30 * number))
    assert has_ended_with(job, failure("No turn for package 103.181.91 within 30 s", retryable=True))
    assert len(job.attempts) == 10
    assert job.purchase == a_purchase(), "the next run finds out what was bought"


def test_waits_add_up_only_while_the_holder_makes_no_progress() -> None:
    job = a_job(State.QUEUED)
    for number in range(1, 10):
        job = miss(job, NOW + seconds(30 * number))
    assert job.lock_timeouts == 9
    progressed_at = NOW + seconds(280)
    job = miss(job, progressed_at + seconds(40), progressed_at)
    assert (job.lock_timeouts, job.ended) == (1, False)


def test_with_one_lock_attempt_the_first_wait_fails_the_job() -> None:
    job = miss(a_job(State.QUEUED), NOW + seconds(30), lock_attempts=1)
    assert has_ended_with(job, failure("No turn for package 103.181.91 within 30 s", retryable=True))


# --- Before the purchase. ---


def check_fails(job: Job, now: Any = NOW) -> Job:
    return lifecycle.check_failed(job, "ipstock: answered 500", now, TIMEOUTS)


def test_a_failed_check_is_repeated_after_two_and_three_minutes() -> None:
    first = check_fails(a_job())
    assert (first.state, first.step, first.due_at, first.waiting_since) == (
        State.WAITING,
        Step.CHECK,
        NOW + seconds(120),
        NOW + seconds(120),
    )
    assert first.attempts == (Attempt(Step.CHECK, NOW, "failed", "ipstock: answered 500"),)
    assert messages(first) == [progress("buy", 1, "Waiting 2 minutes before attempt 2 of 3", 2)]

    second = check_fails(replace(first, state=State.RUNNING, outbox=()))
    assert second.due_at == NOW + seconds(180)
    assert messages(second) == [progress("buy", 2, "Waiting 3 minutes before attempt 3 of 3", 3)]

    third = check_fails(replace(second, state=State.RUNNING, outbox=()))
    assert has_ended_with(third, failure("The server could not be bought in 3 attempts", retryable=True))
    assert third.failure_reason == "The server could not be bought in 3 attempts: ipstock: answered 500"


def test_a_cancelled_job_does_not_wait_for_another_check() -> None:
    assert has_ended_with(check_fails(a_job(cancel_run=1)), CANCELLED)


def test_a_cancelled_job_that_may_have_bought_is_checked_again() -> None:
    found = check_fails(a_job(cancel_run=1, buy_attempts=1, purchase=a_purchase()))
    assert (found.state, found.purchase) == (State.WAITING, a_purchase(failed=True))


def test_nothing_to_buy_ends_the_run_and_allows_a_retry() -> None:
    found = lifecycle.not_available(a_job(), "Package has no available IPs: it is disabled", NOW)
    assert has_ended_with(found, failure("Package has no available IPs: it is disabled", retryable=True))
    assert found.attempts[-1].detail == found.failure_reason


def test_the_asked_and_the_free_addresses_are_recorded_before_the_request_is_sent() -> None:
    first = lifecycle.buy_started(a_job(), IP, [IP, OTHER_IP], NOW, TIMEOUTS)
    assert (first.step, first.state, first.buy_attempts) == (Step.BUY, State.RUNNING, 1)
    assert first.purchase == a_purchase()
    assert first.attempts[-1] == Attempt(Step.CHECK, NOW, "ok", f"2 free, asking for {IP}")


def test_a_further_attempt_keeps_what_the_earlier_ones_asked_for() -> None:
    earlier = a_purchase(answered=True, failed=True, searched=True, error="broke")
    second = lifecycle.buy_started(
        a_job(buy_attempts=1, purchase=earlier), OTHER_IP, [OTHER_IP, "103.181.91.3"], LATER, TIMEOUTS
    )
    assert second.purchase == Purchase(
        asked=(IP, OTHER_IP),
        free_before=(IP, OTHER_IP, "103.181.91.3"),
        started_at=LATER,
        no_retry_before=LATER + seconds(300),
    )
    assert second.buy_attempts == 2


def test_an_attempt_whose_request_was_not_sent_does_not_count() -> None:
    before = a_job(step=Step.CHECK, buy_attempts=1, purchase=a_purchase(failed=True))
    found = lifecycle.buy_not_sent(lifecycle.buy_started(before, OTHER_IP, [OTHER_IP], NOW, TIMEOUTS), before, LATER)
    assert (found.step, found.buy_attempts, found.purchase) == (Step.CHECK, 1, before.purchase)
    assert found.attempts[-1].outcome == "failed"


# --- An attempt without an answer. ---


@pytest.mark.parametrize("answered", [True, False])
def test_an_error_instead_of_an_address_is_recorded(answered: bool) -> None:
    found = lifecycle.no_address_received(a_job(purchase=a_purchase()), "buyvps: broke", LATER, answered=answered)
    assert found.purchase == a_purchase(answered=answered, error="buyvps: broke")
    assert lifecycle.no_address_received(a_job(), "buyvps: broke", LATER, answered=answered) == a_job()


def test_an_attempt_may_have_bought_what_was_free_and_belongs_to_no_order() -> None:
    known = [f"103.181.91.{number}" for number in range(1, 7)]
    purchase = a_purchase(asked=(known[2], known[4]), free_before=(*known, "103.181.9.1", "103.18.91.1"))
    job = a_job(purchase=purchase)
    assert lifecycle.possibly_bought(job, free=[], others=[]) == [
        known[4],
        known[2],
        known[0],
        known[1],
        known[3],
        known[5],
    ]
    assert lifecycle.possibly_bought(job, free=known[:3], others=[known[5]]) == [known[4], known[3]]
    assert lifecycle.possibly_bought(job, free=known, others=[]) == []


def test_a_job_without_a_purchase_has_bought_nothing() -> None:
    assert lifecycle.possibly_bought(a_job(), free=[], others=[]) == []
    assert lifecycle.nothing_bought(a_job(), NOW, TIMEOUTS) == a_job()
    assert lifecycle.search_failed(a_job(), NOW, TIMEOUTS) == a_job()


OPEN_UNTIL = NOW + TIMEOUTS.buy_timeout


@pytest.mark.parametrize(
    ("after", "until"), [(0, 5), (5, 10), (114, 119), (116, 120), (119.999, 120)], ids=lambda value: f"{value}s"
)
def test_while_the_provider_may_still_be_processing_the_job_searches_every_five_seconds(
    after: float, until: float
) -> None:
    found = lifecycle.nothing_bought(a_job(buy_attempts=1, purchase=a_purchase()), NOW + seconds(after), TIMEOUTS)
    assert (found.state, found.due_at, found.buy_attempts) == (State.WAITING, NOW + seconds(until), 1)
    assert (found.purchase, found.outbox, found.attempts) == (a_purchase(), (), ())
    assert seconds(5) == SEARCH_INTERVAL


@pytest.mark.parametrize(("answered", "now"), [(True, NOW), (False, OPEN_UNTIL)])
def test_after_that_the_attempt_has_failed(answered: bool, now: Any) -> None:
    job = a_job(buy_attempts=1, purchase=a_purchase(answered=answered, error="buyvps: answered 500"))
    found = lifecycle.nothing_bought(job, now, TIMEOUTS)
    assert (found.state, found.due_at) == (State.WAITING, now + seconds(120))
    assert found.purchase == a_purchase(answered=answered, failed=True, searched=True, error="buyvps: answered 500")
    assert found.attempts[-1] == Attempt(Step.BUY, now, "failed", "attempt 1 of 3: buyvps: answered 500")
    assert messages(found) == [progress("buy", 1, "Waiting 2 minutes before attempt 2 of 3", 2)]


def test_an_interrupted_attempt_says_so() -> None:
    found = lifecycle.nothing_bought(a_job(buy_attempts=1, purchase=a_purchase()), OPEN_UNTIL, TIMEOUTS)
    assert found.attempts[-1].detail == "attempt 1 of 3: interrupted: no answer is known"


def test_the_last_attempt_ends_the_run_and_an_operator_decides() -> None:
    job = a_job(buy_attempts=3, purchase=a_purchase(answered=True, error="buyvps: answered 500"))
    found = lifecycle.nothing_bought(job, NOW, TIMEOUTS)
    assert has_ended_with(found, failure("The server could not be bought in 3 attempts", retryable=True))
    assert found.failure_reason == "The server could not be bought in 3 attempts: buyvps: answered 500"
    assert found.purchase is not None
    only = lifecycle.nothing_bought(replace(job, buy_attempts=1), NOW, replace(TIMEOUTS, buy_attempts=1))
    assert has_ended_with(only, failure("The server could not be bought in 1 attempt", retryable=True))


def test_a_failed_attempt_that_bought_nothing_ends_a_cancelled_run() -> None:
    found = lifecycle.nothing_bought(
        a_job(buy_attempts=1, cancel_run=1, purchase=a_purchase(answered=True)), NOW, TIMEOUTS
    )
    assert has_ended_with(found, CANCELLED)
    assert found.attempts[-1].step is Step.BUY


def test_even_a_cancelled_run_waits_for_an_attempt_that_may_still_buy() -> None:
    found = lifecycle.nothing_bought(a_job(buy_attempts=1, cancel_run=1, purchase=a_purchase()), NOW, TIMEOUTS)
    assert (found.state, found.due_at) == (State.WAITING, NOW + seconds(5))


@pytest.mark.parametrize(
    "job",
    [
        a_job(buy_attempts=1, purchase=a_purchase(answered=True, failed=True)),
        a_job(buy_attempts=0, purchase=a_purchase(answered=True)),
    ],
    ids=["already counted", "of an earlier run"],
)
def test_a_job_continues_after_an_attempt_that_is_not_counted_again(job: Job) -> None:
    found = lifecycle.nothing_bought(job, LATER, TIMEOUTS)
    assert found == replace(job, purchase=a_purchase(answered=True, failed=True, searched=True))


def test_without_a_search_the_attempt_fails_and_is_searched_for_before_the_next() -> None:
    moment = NOW + seconds(100)
    answered = a_job(buy_attempts=1, purchase=a_purchase(answered=True, error="answered 500"))
    found = lifecycle.search_failed(answered, moment, TIMEOUTS)
    assert (found.state, found.due_at) == (State.WAITING, moment + seconds(120))
    assert found.purchase == a_purchase(answered=True, failed=True, error="answered 500")


def test_without_a_search_the_next_attempt_waits_for_the_end_of_this_one() -> None:
    hasty = replace(TIMEOUTS, buy_delays=(seconds(1),))
    job = a_job(buy_attempts=1, purchase=a_purchase())
    assert lifecycle.search_failed(job, NOW + seconds(10), hasty).due_at == OPEN_UNTIL
    assert lifecycle.search_failed(job, NOW + seconds(119.5), hasty).due_at == NOW + seconds(120.5)
    answered = replace(job, purchase=a_purchase(answered=True))
    assert lifecycle.search_failed(answered, NOW + seconds(10), hasty).due_at == NOW + seconds(11)


def test_without_a_search_the_last_attempt_fails_the_run_and_the_purchase_is_remembered() -> None:
    found = lifecycle.search_failed(a_job(buy_attempts=3, purchase=a_purchase()), NOW, TIMEOUTS)
    assert has_ended_with(found, failure("The server could not be bought in 3 attempts", retryable=True))
    assert found.purchase == a_purchase(failed=True)


def test_without_a_search_a_cancellation_waits_for_one() -> None:
    found = lifecycle.search_failed(
        a_job(buy_attempts=1, cancel_run=1, purchase=a_purchase(answered=True)), NOW, TIMEOUTS
    )
    assert (found.state, found.purchase) == (State.WAITING, a_purchase(answered=True, failed=True))


def test_a_run_that_is_stopped_is_cancelled() -> None:
    assert has_ended_with(lifecycle.stopped(a_job(cancel_run=1), NOW), CANCELLED)


# --- The address. ---


def test_a_verified_address_ends_the_search_and_the_need_for_the_lock() -> None:
    found = lifecycle.bought(a_job(buy_attempts=1, purchase=a_purchase()), IP, "the provider assigned", NOW)
    assert (found.ip, found.purchase, found.step, found.state) == (IP, None, Step.STATUS, State.RUNNING)
    assert not found.needs_lock
    assert [(attempt.step, attempt.outcome, attempt.detail) for attempt in found.attempts] == [
        (Step.BUY, "ok", f"the provider assigned {IP}"),
        (Step.VERIFY, "ok", "inside 103.181.91"),
    ]


@pytest.mark.parametrize(
    ("blocked", "reason", "customer"),
    [
        (
            lambda job: lifecycle.wrong_address(job, "198.51.100.4", NOW),
            "WRONG PACKAGE ASSIGNED: ordered 103.181.91, provider assigned 198.51.100.4",
            "PROVISIONING BLOCKED: Wrong package assigned",
        ),
        (
            lambda job: lifecycle.duplicate_address(job, "198.51.100.4", "o2", NOW),
            "ADDRESS ASSIGNED TWICE: provider assigned 198.51.100.4, which belongs to order o2",
            "PROVISIONING BLOCKED: Address assigned twice",
        ),
    ],
    ids=["wrong package", "assigned twice"],
)
def test_a_wrong_address_blocks_the_order(blocked: Callable[[Job], Job], reason: str, customer: str) -> None:
    found = blocked(a_job(buy_attempts=1, purchase=a_purchase(), wrong_ips=("192.0.2.1",)))
    assert has_ended_with(found, failure(customer, bought=True))
    assert (found.failure_reason, found.retryable, found.ip, found.purchase) == (reason, False, None, None)
    assert found.wrong_ips == ("192.0.2.1", "198.51.100.4")
    assert found.attempts[-1] == Attempt(Step.VERIFY, NOW, "failed", reason)
    assert blocked(found).wrong_ips == found.wrong_ips, "each is listed once"


# --- Status. ---


def test_a_failed_status_is_repeated_after_one_and_two_minutes_and_then_fails_the_run() -> None:
    def fails(job: Job) -> Job:
        return lifecycle.status_failed(replace(job, state=State.RUNNING, outbox=()), "answered 500", NOW, TIMEOUTS)

    first = fails(a_job(ip=IP, step=Step.STATUS))
    assert (first.state, first.due_at, first.ip) == (State.WAITING, NOW + seconds(60), IP)
    assert messages(first) == [progress("status", 1, "Waiting 1 minute before attempt 2 of 3", 2)]
    assert first.attempts[-1] == Attempt(Step.STATUS, NOW, "failed", "attempt 1 of 3: answered 500")

    second = fails(first)
    assert second.due_at == NOW + seconds(120)
    assert messages(second) == [progress("status", 2, "Waiting 2 minutes before attempt 3 of 3", 3)]

    third = fails(second)
    assert has_ended_with(third, failure("The server was bought but is not ready yet", retryable=True, bought=True))
    assert third.failure_reason == f"The provider sold {IP} and did not say how to get into it: answered 500"
    assert third.ip == IP


def test_a_cancellation_does_not_end_a_job_that_has_its_server() -> None:
    job = a_job(ip=IP, step=Step.STATUS, cancel_run=1)
    assert lifecycle.status_failed(job, "answered 500", NOW, TIMEOUTS).state is State.WAITING
    assert lifecycle.completed(job, ACCESS, SEALED, NOW).state is State.COMPLETED


def test_a_completed_job_is_reported_to_the_customer_and_to_the_order() -> None:
    found = lifecycle.completed(a_job(ip=IP, status_attempts=1), ACCESS, SEALED, NOW)
    assert (found.state, found.server, found.credentials, found.due_at) == (State.COMPLETED, SERVER, SEALED, None)
    completion = ProvisioningCompleted(order_id="o1", server=SERVER)
    assert messages(found) == [progress("status", 2, "Your server is ready", 2), completion]
    assert answers(found) == (completion,)
    assert found.attempts[-1].outcome == "ok"


def test_a_completed_job_without_its_server_is_an_error() -> None:
    with pytest.raises(ValueError, match="without a server"):
        answers(a_job(State.COMPLETED, server=None))


@pytest.mark.parametrize(
    ("pause", "words"),
    [(60, "1 minute"), (120, "2 minutes"), (90, "90 seconds"), (1, "1 second"), (0.5, "0.5 seconds"), (0, "0 seconds")],
)
def test_durations_are_formatted_for_people(pause: float, words: str) -> None:
    assert in_words(seconds(pause)) == words


@pytest.mark.parametrize(("attempts", "last"), [(5, 180), (2, 120)])
def test_the_last_delay_repeats(attempts: int, last: int) -> None:
    timeouts = replace(TIMEOUTS, buy_attempts=attempts)
    job = lifecycle.check_failed(a_job(buy_attempts=attempts - 2), "x", NOW, timeouts)
    assert job.due_at == NOW + seconds(last)


# --- Any events in any order. ---


class History:
    """A job with the events that a worker and the handlers allow, and the messages that it has published."""

    def __init__(self) -> None:
        self.now = NOW
        self.published: list[OutboxMessage] = []
        self.run = 1
        self.job = lifecycle.requested(request(), self.now, queue_position=1)

    def apply(self, event: str, timeouts: lifecycle.Timeouts) -> None:
        self.now += seconds(7)
        before = self.job
        after = self._after(event, timeouts)
        assert after.attempts[: len(before.attempts)] == before.attempts
        self.published += after.outbox
        self.check(before, after, timeouts)
        self.job = replace(after, outbox=())

    def _after(self, event: str, timeouts: lifecycle.Timeouts) -> Job:
        job, now = self.job, self.now
        match event:
            case "retry":
                self.run = job.run + 1
                return lifecycle.requested_again(job, request(self.run), now, queue_position=2)
            case "request":
                return lifecycle.requested_again(job, request(job.run), now, queue_position=2)
            case "cancel" | "cancel next":
                return lifecycle.cancellation_requested(job, cancellation(job.run + (event == "cancel next")), now)
            case "miss" if job.needs_lock and job.state is not State.RUNNING:
                return lifecycle.lock_wait_timed_out(job, "o2", NOW, now, timeouts)
            case "work" if not job.ended and job.state is not State.RUNNING:
                return lifecycle.claimed(job, now, timeouts.lease)
        if job.state is not State.RUNNING:
            return job
        return self._with_address(event, timeouts) if job.ip else self._without_address(event, timeouts)

    def _with_address(self, event: str, timeouts: lifecycle.Timeouts) -> Job:
        if event == "succeed":
            return lifecycle.completed(self.job, ACCESS, SEALED, self.now)
        return lifecycle.status_failed(self.job, "answered 500", self.now, timeouts)

    def _without_address(self, event: str, timeouts: lifecycle.Timeouts) -> Job:
        """Do what a worker does with the lock; a purchase is searched for before another one starts."""
        job, now = self.job, self.now
        if event == "check fails":
            return lifecycle.check_failed(job, "answered 500", now, timeouts)
        if job.purchase is not None and not job.purchase.searched:
            match event:
                case "succeed":
                    return lifecycle.bought(job, IP, "the provider assigned", now)
                case "wrong":
                    return lifecycle.wrong_address(job, "192.0.2.1", now)
                case "search fails" if not job.purchase.failed:
                    job = lifecycle.no_address_received(job, "broke", now, answered=False)
                    return lifecycle.search_failed(job, now, timeouts)
                case _:
                    return lifecycle.nothing_bought(job, now, timeouts)
        if job.cancel_requested:
            return lifecycle.stopped(job, now)
        if event == "sold out":
            return lifecycle.not_available(job, lifecycle.NO_ADDRESS, now)
        return lifecycle.buy_started(job, IP, [IP, OTHER_IP], now, timeouts)

    def check(self, before: Job, after: Job, timeouts: lifecycle.Timeouts) -> None:
        """Check what holds after every event."""
        assert after.ended == (after.due_at is None), "either ended or due, never both"
        assert (after.state is State.COMPLETED) == (after.server is not None and after.ip is not None and after.ended)
        sequences = [notice.sequence for notice in self.published]
        assert all(one < other for one, other in pairwise(sequences))
        assert all(sequence <= after.sequence for sequence in sequences)
        if after.ended and not before.ended:
            assert messages(after)[-1] == answers(after)[0], "the end is reported, and last"
        if after.run == before.run:
            assert after.buy_attempts <= timeouts.buy_attempts
            assert after.status_attempts <= timeouts.status_attempts
        if before.purchase is not None and after.purchase is None:
            assert after.ip is not None or after.wrong_ips, "a purchase is kept until it has given an address"
        if before.ip is not None:
            assert after.ip == before.ip


EVENTS = (
    *("work", "work", "work", "buy", "buy", "succeed", "look", "check fails", "search fails", "wrong", "sold out"),
    *("cancel", "cancel next", "retry", "request", "miss"),
)


@given(
    st.lists(st.sampled_from(EVENTS), max_size=60),
    st.integers(1, 4),
    st.integers(1, 3),
    st.sampled_from([1, 10]),
    st.sampled_from([1, 120]),
)
def test_a_job_stays_consistent_after_any_events(
    events: list[str], buy_attempts: int, status_attempts: int, lock_attempts: int, timeout: int
) -> None:
    timeouts = replace(
        TIMEOUTS,
        buy_attempts=buy_attempts,
        status_attempts=status_attempts,
        lock_attempts=lock_attempts,
        buy_timeout=seconds(timeout),
    )
    history = History()
    for event in events:
        history.apply(event, timeouts)


@given(st.lists(st.sampled_from(EVENTS), max_size=60))
def test_the_password_is_only_in_the_encrypted_credentials(events: list[str]) -> None:
    history = History()
    seen = []
    for event in (*events, "work", "buy", "succeed", "succeed"):
        history.apply(event, TIMEOUTS)
        seen.append(repr(history.job))
    assert ACCESS.password not in repr(history.published) + "".join(seen)
