"""The jobs, locks, addresses and packages collections over a real database, with both drivers."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import fields, replace
from datetime import timedelta
from typing import Any

import pytest

from provisioning_service import jobs as job_records
from provisioning_service import lifecycle
from provisioning_service import locks as lock_records
from provisioning_service import ownership as address_records
from provisioning_service import packages as package_records
from provisioning_service.job import Attempt, Job, OutboxMessage, Purchase, State, Step
from provisioning_service.jobs import MAX_ATTEMPTS, JobClaimLostError, Jobs
from provisioning_service.locks import Lock, Locks
from provisioning_service.ownership import Ownership
from provisioning_service.packages import Packages
from provisioning_service.provider import Package
from shared.clock import utc_now
from shared.contracts import PackageLowIps
from shared.contracts.provisioning import Server
from shared.database import Database
from shared.schema import prepare
from tests.support.builders import connected, new_id
from tests.support.provisioning_workers import DEFAULT_TIMEOUTS, request

NOW = utc_now()
LEASE = timedelta(seconds=120)
LATER = NOW + LEASE
INSTANT = timedelta(milliseconds=1)
KEY = "103.181.91"


@pytest.fixture
def database_prefix(emptied_prefix: str) -> str:
    return emptied_prefix


@pytest.fixture(params=["pymongo", "motor", "memory"])
async def db(request: pytest.FixtureRequest, mongodb_url: str, database_prefix: str) -> AsyncIterator[Database]:
    async with connected(mongodb_url, f"{database_prefix}_provisioning", request.param) as database:
        yield database


@pytest.fixture
async def jobs(db: Database) -> Jobs:
    await prepare(db, {job_records.COLLECTION: job_records.SCHEMA})
    return Jobs(db[job_records.COLLECTION])


@pytest.fixture
def locks(db: Database) -> Locks:
    return Locks(db[lock_records.COLLECTION])


@pytest.fixture
def ownership(db: Database) -> Ownership:
    return Ownership(db[address_records.COLLECTION])


@pytest.fixture
def packages(db: Database) -> Packages:
    return Packages(db[package_records.COLLECTION], low_threshold=5)


def a_job(line: int = 1, package: str = KEY, **changes: Any) -> Job:
    """Build a job that has been queued since NOW."""
    published: dict[str, Any] = {"outbox": (), "sequence": 1}  # the first progress message is published
    return replace(lifecycle.requested(request(package), NOW, line), **(published | changes))


FULL: dict[str, Any] = {
    "state": State.WAITING,
    "step": Step.BUY,
    "user_id": "u9",
    "package": "103.83.x",
    "package_id": "7",
    "ram": 2048,
    "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    "run": 3,
    "cancel_run": 2,
    "fence": 5,
    "queue_position": 1_800_000_000_000_000,
    "requested_at": NOW,
    "due_at": LATER,
    "waiting_since": NOW,
    "lock_timeouts": 2,
    "lock_timed_out_at": LATER,
    "buy_attempts": 1,
    "status_attempts": 2,
    "purchase": Purchase(
        asked=("103.83.1.1",),
        free_before=("103.83.1.1", "103.83.1.2"),
        started_at=NOW,
        no_retry_before=LATER,
        answered=True,
        failed=True,
        searched=True,
        error="buyvps: broke",
    ),
    "ip": "103.83.1.1",
    "wrong_ips": ("192.0.2.1", "192.0.2.2"),
    "server": Server(ip="103.83.1.1", username="root", os="Ubuntu", expires_at="2026-12-31"),
    "credentials": b"\x00sealed",
    "failure_reason": "why",
    "failure_code": "purchase_failed",
    "customer_reason": "what the customer reads",
    "retryable": True,
    "attempts": (Attempt(Step.CHECK, NOW, "ok", "2 free"), Attempt(Step.BUY, LATER, "failed", "broke")),
    "sequence": 8,
    "owner_id": "shop",
    "outbox": (OutboxMessage(8, "provisioning.progress", {"orderId": "o", "step": "buy"}),),
    "created_at": NOW,
    "updated_at": LATER,
}
EMPTY = Job(order_id="o", state=State.QUEUED, created_at=NOW - LEASE, updated_at=NOW - LEASE)


# --- Jobs: storing and reading. ---


async def test_every_field_of_a_job_is_read_as_it_was_stored(jobs: Jobs) -> None:
    assert FULL.keys() | {"order_id", "version", "outbox_since"} == {field.name for field in fields(Job)}
    job = Job(order_id=new_id(), **FULL)
    assert all(getattr(job, name) != getattr(EMPTY, name) for name in FULL), "each field differs from its default"
    await jobs.insert([job])
    assert await jobs.find(job.order_id) == replace(job, outbox_since=LATER)


async def test_a_job_with_few_fields_is_read_too(jobs: Jobs) -> None:
    job = replace(EMPTY, order_id=new_id())
    await jobs.insert([job])
    assert await jobs.find(job.order_id) == job


async def test_changing_and_clearing_any_field_is_stored(jobs: Jobs) -> None:
    for name in FULL.keys() - {"attempts", "outbox", "cancel_run"}:  # these only grow
        bare = replace(EMPTY, order_id=new_id())
        full = replace(bare, **{name: FULL[name]})
        await jobs.insert([bare])
        assert await jobs.change(bare, full)
        changed = await jobs.find(bare.order_id)
        assert changed == replace(full, version=1), name
        assert await jobs.change(changed, bare)
        assert await jobs.find(bare.order_id) == replace(bare, version=2), name


async def test_a_job_keeps_its_latest_attempts(jobs: Jobs) -> None:
    job = a_job()
    await jobs.insert([job])
    lines = [Attempt(Step.LOCK, NOW, "failed", f"wait {number}") for number in range(MAX_ATTEMPTS + 10)]
    first = replace(job, attempts=tuple(lines[:-1]))
    assert await jobs.change(job, first)
    assert await jobs.change(replace(first, version=1), replace(first, version=1, attempts=tuple(lines)))
    found = await jobs.find(job.order_id)
    assert found is not None
    assert found.attempts == tuple(lines[-MAX_ATTEMPTS:])


async def test_inserting_existing_jobs_leaves_them_unchanged(jobs: Jobs) -> None:
    first = a_job()
    other, another = a_job(), replace(first, queue_position=99)
    await jobs.insert([first])
    assert await jobs.insert([another, other]) == [first, other]
    assert await jobs.read([first.order_id, other.order_id, "unknown"]) == {
        first.order_id: first,
        other.order_id: other,
    }
    assert await jobs.insert([]) == []


async def test_the_jobs_are_paged_by_state_and_package(jobs: Jobs) -> None:
    opened = sorted(
        [a_job(state=State.FAILED), a_job(), a_job(package="10.0.0"), a_job()], key=lambda job: job.order_id
    )
    await jobs.insert(opened)

    async def ids(state: State | None = None, package: str | None = None, after: str | None = None) -> list[str]:
        return [job.order_id for job in await jobs.page(state, package, after=after, limit=3)]

    def those(**wanted: Any) -> list[str]:
        return [job.order_id for job in opened if all(getattr(job, name) == value for name, value in wanted.items())]

    assert await ids() == those()[:3]
    assert await ids(after=those()[2]) == those()[3:]
    assert await ids(State.FAILED) == those(state=State.FAILED)
    assert await ids(None, KEY) == those(package=KEY)
    assert await ids(State.QUEUED, "10.0.0") == those(package="10.0.0")


# --- Jobs: guards. ---


async def claimed(jobs: Jobs, job: Job) -> Job:
    await jobs.insert([job])
    held = await jobs.claim(job, NOW, LEASE)
    assert held is not None
    return held


async def test_of_twenty_workers_one_claims_the_job(jobs: Jobs) -> None:
    job = a_job()
    await jobs.insert([job])
    results = await asyncio.gather(*(jobs.claim(job, NOW, LEASE) for _ in range(20)))
    (winner,) = [held for held in results if held is not None]
    assert (winner.state, winner.fence, winner.version, winner.due_at) == (State.RUNNING, 1, 1, LATER)
    assert await jobs.find(job.order_id) == winner


async def test_a_job_is_claimed_only_when_due_and_unchanged_since_it_was_read(jobs: Jobs) -> None:
    job = a_job(due_at=LATER)
    await jobs.insert([job])
    assert await jobs.claim(job, LATER - INSTANT, LEASE) is None
    assert await jobs.claim(replace(job, version=1), LATER, LEASE) is None
    assert await jobs.claim(job, LATER, LEASE) is not None


async def test_an_expired_claim_can_be_taken_over_and_the_first_worker_finds_out(jobs: Jobs) -> None:
    first = await claimed(jobs, a_job())
    assert await jobs.claim(first, LATER - INSTANT, LEASE) is None
    second = await jobs.claim(first, LATER, LEASE)
    assert second is not None
    assert second.fence == first.fence + 1
    assert not await jobs.renew(first, LATER + LEASE)
    with pytest.raises(JobClaimLostError):
        await jobs.record(first, lifecycle.buy_started(first, f"{KEY}.1", [], LATER, DEFAULT_TIMEOUTS))
    assert await jobs.find(first.order_id) == second


async def test_a_claim_is_kept_by_renewing_it_and_ends_with_the_work(jobs: Jobs) -> None:
    held = await claimed(jobs, a_job())
    assert await jobs.renew(held, LATER + LEASE)
    assert await jobs.claim(held, LATER, LEASE) is None
    waiting = await jobs.record(held, lifecycle.check_failed(held, "x", NOW, DEFAULT_TIMEOUTS))
    assert not await jobs.renew(waiting, LATER + LEASE)
    assert waiting.due_at == NOW + timedelta(seconds=120)


async def test_a_step_is_recorded_once_however_often_the_call_is_repeated(jobs: Jobs) -> None:
    held = await claimed(jobs, a_job())
    after = lifecycle.check_failed(held, "ipstock: answered 500", NOW, DEFAULT_TIMEOUTS)
    recorded = await jobs.record(held, after)
    assert recorded == replace(after, version=held.version + 1, outbox_since=NOW)
    assert await jobs.record(held, after) == recorded
    assert await jobs.find(held.order_id) == recorded
    assert len(recorded.attempts) == len(recorded.outbox) == 1


async def test_an_old_step_is_not_mistaken_for_one_that_was_just_recorded(jobs: Jobs) -> None:
    held = await claimed(jobs, a_job())
    first = await jobs.record(held, lifecycle.buy_started(held, f"{KEY}.1", [], NOW, DEFAULT_TIMEOUTS))
    await jobs.record(first, lifecycle.no_address_received(first, "broke", NOW, answered=True))
    with pytest.raises(JobClaimLostError):
        await jobs.record(held, lifecycle.buy_started(held, f"{KEY}.1", [], NOW, DEFAULT_TIMEOUTS))


async def test_a_changed_job_is_not_overwritten_from_an_earlier_read(jobs: Jobs) -> None:
    job = a_job()
    held = await claimed(jobs, job)
    assert not await jobs.change(job, lifecycle.refused(job, NOW))
    assert await jobs.find(job.order_id) == held


async def test_a_cancellation_reaches_the_worker_with_its_next_step(jobs: Jobs) -> None:
    held = await claimed(jobs, a_job())
    assert await jobs.request_cancel(held.order_id, 1)
    recorded = await jobs.record(held, lifecycle.no_address_received(held, "x", NOW, answered=True))
    assert recorded.cancel_requested
    assert await jobs.request_cancel(held.order_id, 0)
    assert (await jobs.read([held.order_id]))[held.order_id].cancel_run == 1, "it is not withdrawn"


async def test_only_a_job_with_a_worker_is_asked_to_cancel(jobs: Jobs) -> None:
    job = a_job()
    await jobs.insert([job])
    assert not await jobs.request_cancel(job.order_id, 1)
    assert await jobs.find(job.order_id) == job


@pytest.mark.parametrize(("cancel_run", "stops"), [(None, False), (0, False), (1, True), (2, True)])
async def test_a_purchase_is_started_only_if_it_was_not_cancelled(
    jobs: Jobs, cancel_run: int | None, stops: bool
) -> None:
    held = await claimed(jobs, a_job())
    if cancel_run is not None:
        await jobs.request_cancel(held.order_id, cancel_run)
    recorded = await jobs.record(
        held, lifecycle.buy_started(held, f"{KEY}.1", [], NOW, DEFAULT_TIMEOUTS), unless_cancelled=True
    )
    assert (recorded.purchase is None) == stops
    assert (recorded.version == held.version) == stops
    assert recorded.cancel_requested == stops


# --- Jobs: queues. ---


async def heads(jobs: Jobs, now: Any = NOW, skipped: tuple[str, ...] = (), limit: int = 100) -> list[str]:
    return [job.order_id for job in await jobs.queue_heads(now, skipped, limit)]


async def test_every_package_serves_the_first_in_its_queue(jobs: Jobs) -> None:
    first, second = a_job(1), a_job(5)
    other, other_second = a_job(3, "10.0.0"), a_job(4, "10.0.0.x")
    await jobs.insert([second, other_second, first, other])
    assert await heads(jobs) == [first.order_id, other.order_id]
    assert await heads(jobs, skipped=(KEY,)) == [other.order_id]
    assert await heads(jobs, skipped=(KEY, "10.0.0")) == []


async def test_jobs_that_are_not_due_or_need_no_lock_are_skipped(jobs: Jobs) -> None:
    await jobs.insert(
        [
            a_job(1, state=State.WAITING, due_at=LATER),
            a_job(2, ip=f"{KEY}.1"),
            a_job(3, state=State.FAILED, due_at=None),
            a_job(4, state=State.COMPLETED, due_at=None, ip=f"{KEY}.2"),
        ]
    )
    waiting_first, last = a_job(5), a_job(6)
    await jobs.insert([last, waiting_first])
    assert await heads(jobs) == [waiting_first.order_id]
    assert len(await heads(jobs, LATER)) == 1


async def test_a_job_whose_worker_has_died_keeps_its_position(jobs: Jobs) -> None:
    held = await claimed(jobs, a_job(1))
    behind = a_job(2)
    await jobs.insert([behind])
    assert await heads(jobs) == [behind.order_id]
    assert await heads(jobs, LATER) == [held.order_id]


async def test_with_little_capacity_the_oldest_jobs_are_served_first(jobs: Jobs) -> None:
    standing = [a_job(number, f"10.0.{(number * 7) % 20}") for number in range(20)]
    await jobs.insert(standing[::-1])
    assert await heads(jobs, limit=3) == [job.order_id for job in standing[:3]]
    assert await heads(jobs, limit=0) == []


async def test_jobs_with_their_address_are_due_without_a_lock(jobs: Jobs) -> None:
    late = a_job(ip="1.1.1.1", state=State.WAITING, due_at=NOW)
    later = a_job(ip="1.1.1.2", state=State.WAITING, due_at=NOW - LEASE)
    await jobs.insert([late, later, a_job(), a_job(ip="1.1.1.3", due_at=LATER), a_job(state=State.FAILED, due_at=None)])
    assert await jobs.due_without_lock(NOW, 10) == [later, late]
    assert await jobs.due_without_lock(NOW, 1) == [later]


async def test_jobs_that_wait_too_long_are_found_in_the_order_of_the_queue(jobs: Jobs) -> None:
    second, first = a_job(2), a_job(1, state=State.WAITING)
    fresh, elsewhere = a_job(3, waiting_since=LATER), a_job(4, "10.0.0")
    working, with_address = a_job(5, state=State.RUNNING), a_job(6, ip=f"{KEY}.1")
    await jobs.insert([second, first, fresh, elsewhere, working, with_address])
    assert await jobs.waiting_in_queue(KEY, NOW, 10) == [first, second]
    assert await jobs.waiting_in_queue(KEY, NOW - INSTANT, 10) == []


async def test_addresses_that_other_jobs_may_be_buying_are_known(jobs: Jobs) -> None:
    def buying(ip: str, **changes: Any) -> Job:
        fields: dict[str, Any] = {"asked": (ip,), "free_before": (), "started_at": NOW, "no_retry_before": LATER}
        purchase = Purchase(**(fields | changes))
        return a_job(state=State.WAITING, purchase=purchase)

    mine, open_, failed_open = buying("1.1.1.1"), buying("1.1.1.2"), buying("1.1.1.3", failed=True)
    done = buying("1.1.1.4", answered=True)
    elsewhere = replace(buying("1.1.1.5"), package="10.0.0")
    over = replace(buying("1.1.1.6"), state=State.FAILED, due_at=None)
    await jobs.insert([mine, open_, failed_open, done, elsewhere, over, a_job()])
    still = {"1.1.1.2", "1.1.1.3", "1.1.1.5"}
    assert await jobs.asked_by_others(mine, LATER - INSTANT) == still | {"1.1.1.6"}
    assert await jobs.asked_by_others(mine, LATER) == still, "a failed job may still buy for a while"


async def test_a_requeued_job_is_due_at_its_position_after_any_last_write(jobs: Jobs) -> None:
    held = await claimed(jobs, a_job())
    written = await jobs.record(held, lifecycle.buy_started(held, f"{KEY}.1", [], NOW, DEFAULT_TIMEOUTS))
    await jobs.requeue(held, LATER)  # by a worker that does not know that its write was done
    found = await jobs.find(held.order_id)
    assert found == replace(
        written,
        state=State.QUEUED,
        due_at=LATER,
        waiting_since=LATER,
        updated_at=LATER,
        version=written.version + 1,
        fence=written.fence + 1,
    )
    with pytest.raises(JobClaimLostError):
        await jobs.record(written, lifecycle.stopped(written, LATER))


async def test_requeuing_late_does_not_undo_what_became_of_the_job(jobs: Jobs) -> None:
    held = await claimed(jobs, a_job())
    waiting = await jobs.record(held, lifecycle.check_failed(held, "x", NOW, DEFAULT_TIMEOUTS))
    await jobs.requeue(held, LATER)
    assert await jobs.find(held.order_id) == waiting


async def test_an_unreadable_job_blocks_no_other(jobs: Jobs, db: Database) -> None:
    good, bad = a_job(1, "10.0.1"), a_job(2, "10.0.2")
    await jobs.insert([good, bad])
    await db[job_records.COLLECTION].update_one({"_id": bad.order_id}, {"$set": {"step": "dance"}})
    assert [job.order_id for job in await jobs.queue_heads(NOW, [], 10)] == [good.order_id]


async def test_a_job_from_before_versions_were_counted_can_be_read_and_changed(jobs: Jobs, db: Database) -> None:
    old = a_job()
    await jobs.insert([old])
    await db[job_records.COLLECTION].update_one({"_id": old.order_id}, {"$unset": {"version": ""}})
    assert await jobs.find(old.order_id) == old
    assert await jobs.change(old, lifecycle.stopped(old, LATER))


# --- Jobs: unpublished messages. ---


async def test_unpublished_messages_are_found_until_they_are_published(jobs: Jobs) -> None:
    held = await claimed(jobs, a_job())
    waiting = await jobs.record(held, lifecycle.check_failed(held, "x", NOW, DEFAULT_TIMEOUTS))
    assert await jobs.unpublished(NOW - INSTANT, 10) == []
    assert await jobs.unpublished(NOW, 10) == [waiting]

    await jobs.mark_published([(waiting.order_id, waiting.outbox[-1].sequence), ("unknown", 1)])
    assert await jobs.unpublished(LATER, 10) == []
    assert await jobs.find(held.order_id) == replace(waiting, outbox=(), outbox_since=None)


async def test_a_message_added_during_publishing_stays_unpublished(jobs: Jobs) -> None:
    held = await claimed(jobs, a_job())
    first = await jobs.record(held, lifecycle.check_failed(held, "x", NOW, DEFAULT_TIMEOUTS))
    second = await jobs.record(first, lifecycle.check_failed(first, "y", LATER, DEFAULT_TIMEOUTS))
    assert len(second.outbox) == 2

    await jobs.mark_published([(held.order_id, first.outbox[-1].sequence)])
    (left,) = await jobs.unpublished(LATER, 10)
    assert left.outbox == second.outbox[1:]
    await jobs.mark_published([(held.order_id, first.outbox[-1].sequence)])
    assert (await jobs.find(held.order_id)) == left, "marking again changes nothing"


async def test_publishing_does_not_disturb_the_worker(jobs: Jobs) -> None:
    held = await claimed(jobs, a_job())
    first = await jobs.record(held, lifecycle.check_failed(held, "x", NOW, DEFAULT_TIMEOUTS))
    await jobs.mark_published([(held.order_id, first.outbox[-1].sequence)])
    second = await jobs.record(first, lifecycle.check_failed(first, "y", NOW, DEFAULT_TIMEOUTS))
    assert [notice.sequence for notice in second.outbox] == [first.sequence + 1]


# --- Locks. ---


async def acquired(locks: Locks, order_id: str = "o1", now: Any = NOW) -> Lock:
    lock = await locks.acquire(KEY, order_id, now, LEASE)
    assert lock is not None
    return lock


@pytest.mark.parametrize("before", ["never held", "released", "run out"])
async def test_of_twenty_orders_one_gets_the_lock(locks: Locks, before: str) -> None:
    if before != "never held":
        first = await acquired(locks, "before", NOW - LEASE)
        if before == "released":
            await locks.release(first)
    results = await asyncio.gather(*(locks.acquire(KEY, f"o{number}", NOW, LEASE) for number in range(20)))
    (winner,) = [lock for lock in results if lock is not None]
    assert winner == Lock(KEY, winner.order_id, 1 if before == "never held" else 2, NOW, LATER, NOW)
    assert await locks.held() == [winner]


async def test_a_lock_is_taken_over_only_once_its_lease_has_run_out(locks: Locks) -> None:
    first = await acquired(locks)
    assert await locks.acquire(KEY, "o1", NOW, LEASE) is None, "not even by the same order"
    assert await locks.acquire(KEY, "o2", LATER - INSTANT, LEASE) is None
    second = await acquired(locks, "o2", LATER)
    assert second.token == first.token + 1


async def test_a_former_holder_can_no_longer_change_the_lock(locks: Locks) -> None:
    first = await acquired(locks)
    second = await acquired(locks, "o2", LATER)
    assert not await locks.renew(first, LATER, LEASE, progress=True)
    await locks.release(first)
    assert await locks.held() == [second]


async def test_the_token_grows_with_every_holder_and_outlives_them(locks: Locks, db: Database) -> None:
    for number in range(1, 4):
        lock = await acquired(locks)
        assert lock.token == number
        await locks.release(lock)
    assert await db[lock_records.COLLECTION].find_one({"_id": KEY}) == {"_id": KEY, "token": 3}
    assert not await locks.renew(lock, NOW, LEASE), "a released lock cannot be renewed"


async def test_renewing_is_not_progress(locks: Locks) -> None:
    lock = await acquired(locks)
    moment = NOW + timedelta(seconds=40)
    assert await locks.renew(lock, moment, LEASE)
    (renewed,) = await locks.held()
    assert (renewed.expires_at, renewed.progress_at, renewed.acquired_at) == (moment + LEASE, NOW, NOW)
    assert await locks.renew(lock, moment, LEASE, progress=True)
    (progressed,) = await locks.held()
    assert progressed.progress_at == moment


async def test_an_operator_frees_a_lock_and_its_holder_finds_out(locks: Locks) -> None:
    first = await acquired(locks)
    assert await locks.clear(KEY) == first
    assert await locks.held() == []
    assert not await locks.renew(first, NOW, LEASE)
    second = await acquired(locks, "o2")
    await locks.release(first)
    assert await locks.held() == [second]
    assert second.token > first.token


async def test_a_lock_that_is_not_held_cannot_be_freed(locks: Locks) -> None:
    assert await locks.clear(KEY) is None
    await locks.release(await acquired(locks))
    assert await locks.clear(KEY) is None


async def test_the_locks_that_are_held_are_listed_by_package(locks: Locks) -> None:
    one, other = [await locks.acquire(key, "o", NOW, LEASE) for key in ("2.2.2", "1.1.1")]
    await locks.release(await acquired(locks))
    assert await locks.held() == [other, one]
    assert await locks.held(["2.2.2", KEY]) == [one]


# --- Addresses. ---


async def test_of_twenty_orders_one_gets_the_address(ownership: Ownership) -> None:
    owners = await asyncio.gather(*(ownership.claim("1.1.1.1", f"o{number}", NOW) for number in range(20)))
    assert len(set(owners)) == 1
    assert await ownership.owners(["1.1.1.1"]) == {"1.1.1.1": owners[0]}
    assert await ownership.claim("1.1.1.1", owners[0], LATER) == owners[0], "claiming again returns the owner"


async def test_a_wrong_address_is_recorded_and_given_to_no_order(ownership: Ownership, db: Database) -> None:
    await ownership.claim("1.1.1.1", "o1", NOW, wrong=True)
    assert await ownership.claim("1.1.1.1", "o2", NOW) == "o1"
    assert await db[address_records.COLLECTION].find_one({"_id": "1.1.1.1"}) == {
        "_id": "1.1.1.1",
        "orderId": "o1",
        "wrong": True,
        "at": NOW,
    }
    assert await ownership.owners(["1.1.1.1", "1.1.1.2"]) == {"1.1.1.1": "o1"}


# --- Packages. ---


def seen(free: int, package_id: str = "7") -> Package:
    return Package(package_id, "103.181.91.x", "active", free, tuple(f"{KEY}.{number}" for number in range(free)))


async def test_a_package_that_becomes_low_is_announced_once_per_crossing(packages: Packages) -> None:
    announced = []
    for free in (7, 6, 5, 4, 3, 5, 6, 9, 5, 5, 0, 12):
        if await packages.record(KEY, seen(free), NOW):
            (low,) = await packages.unannounced(NOW)
            await packages.mark_announced(low)
            announced.append(low.ipv4)
    assert announced == [5, 5]
    assert await packages.unannounced(LATER) == []


async def test_a_package_that_is_low_from_the_start_is_announced(packages: Packages, db: Database) -> None:
    assert await packages.record(KEY, seen(3), NOW)
    assert await packages.unannounced(NOW - INSTANT) == []
    assert await packages.unannounced(NOW) == [PackageLowIps(package=KEY, ipv4=3, at=NOW)]
    assert await db[package_records.COLLECTION].find_one({"_id": KEY}) == {
        "_id": KEY,
        "packageId": "7",
        "name": "103.181.91.x",
        "ipv4": 3,
        "low": True,
        "checkedAt": NOW,
        "unannounced": 3,
        "fellAt": NOW,
    }
    assert not await packages.record(KEY, seen(2), LATER)
    assert await packages.unannounced(NOW) == [PackageLowIps(package=KEY, ipv4=3, at=NOW)], (
        "however often it is recorded"
    )


async def test_a_concurrently_recorded_fall_counts_once(packages: Packages) -> None:
    for _ in range(2):
        assert not await packages.record(KEY, seen(6), NOW)
        results = await asyncio.gather(*(packages.record(KEY, seen(5 - number % 3), NOW) for number in range(20)))
        assert results.count(True) == 1


async def test_a_package_that_recovered_before_its_announcement_is_not_announced(packages: Packages) -> None:
    await packages.record(KEY, seen(5), NOW)
    assert not await packages.record(KEY, seen(6), NOW)
    assert await packages.unannounced(LATER) == []


async def test_the_latest_stock_is_recorded_while_a_package_stays_low(packages: Packages, db: Database) -> None:
    await packages.record(KEY, seen(5), NOW)
    await packages.record(KEY, seen(2, "8"), LATER)
    found = await db[package_records.COLLECTION].find_one({"_id": KEY})
    assert found is not None
    assert (found["ipv4"], found["packageId"], found["checkedAt"], found["unannounced"]) == (2, "8", LATER, 5)
