"""The audit's judgement of orders of servers: tolerated while in progress, and wrong from some time on."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from operations.audit import orders
from operations.audit.order_records import Document, OrderRecords
from operations.audit.orders import PROVISIONING, STALLED
from operations.audit.report import Violation
from operations.audit.servers import (
    ABANDONED,
    LONGEST_LEASE,
    OVERDUE,
    RULES,
    UNPUBLISHED,
    OwnedRecord,
    judge_address,
    judge_lock,
    lies_inside,
    shared_address,
    two_servers,
)

NOW = datetime(2026, 1, 31, 9, 30, tzinfo=UTC)
INSTANT = timedelta(milliseconds=1)
LONG_AGO = NOW - timedelta(days=1)


def an_order(status: str = "PROVISIONING", **changes: Any) -> Document:
    """An order of a server, without the fields that test_audit_orders.py covers."""
    over = {"COMPLETED": {"server": {"ip": "10.1.2.3"}}, "FAILED": {}}.get(status, {})
    order = {"_id": "o1", "status": status, "settled": status in ("COMPLETED", "CANCELLED"), "updatedAt": LONG_AGO}
    return order | {"provisioning": {"package": "10.1.2"}, "provisioningRun": 1} | over | changes


def a_job(state: str, **changes: Any) -> Document:
    working = {} if state in ("COMPLETED", "FAILED") else {"dueAt": NOW}
    ended = {"ip": "10.1.2.3"} if state == "COMPLETED" else {}
    job = {"_id": "o1", "state": state, "lockKey": "10.1.2", "run": 1, "updatedAt": LONG_AGO}
    return job | working | ended | changes


ADDRESS = {"_id": "10.1.2.3", "orderId": "o1", "wrong": False}


def kinds(order: Document, job: Document | None = None, **more: Any) -> list[str]:
    """The violations by the rules about servers."""
    records = OrderRecords("o1", order, job=job, **more)
    return [violation.kind for rule in RULES for violation in rule(records, order, NOW)]


# --- Addresses inside a package. ---


@pytest.mark.parametrize(
    ("package", "ip", "inside"),
    [
        ("103.181.91", "103.181.91.5", True),
        ("103.181.9", "103.181.91.5", False),
        ("103.181.9", "103.181.9.5", True),
        ("103.83.x", "103.83.4.5", True),
        ("103.83.*.*", "103.83.4.5", True),
        ("103.83.", "103.83.4.5", True),
        ("103.83", "103.84.4.5", False),
        ("103.83", "103.83.4", False),
        ("103.83", "103.83.4.5.6", False),
        ("103.83", "103.83.4.500", False),
        ("103.83", "103.83.4.5 ", False),
        ("103.83", "", False),
        ("", "103.83.4.5", False),
        ("x", "103.83.4.5", False),
        ("103.x.5", "103.83.4.5", False),
        ("10.1.2.3", "10.1.2.3", True),
    ],
)
def test_an_address_lies_inside_a_package_by_whole_octets(package: str, ip: str, inside: bool) -> None:
    assert lies_inside(package, ip) is inside


OCTETS = st.lists(st.integers(0, 255), min_size=4, max_size=4)


@given(OCTETS, OCTETS, st.integers(1, 4), st.sampled_from(["", ".", ".x", ".x.x", ".*"]))
def test_octets_decide_and_nothing_else(package: list[int], ip: list[int], named: int, rest: str) -> None:
    name = ".".join(map(str, package[:named])) + rest
    assert lies_inside(name, ".".join(map(str, ip))) is (ip[:named] == package[:named])
    assert lies_inside(name, ".".join(map(str, package[:named] + ip[named:])))


# --- An order and its job. ---


@pytest.mark.parametrize("state", ["QUEUED", "RUNNING", "WAITING", "COMPLETED", "FAILED", None])
def test_an_order_that_is_being_provisioned_may_have_any_job_or_none_yet(state: str | None) -> None:
    assert kinds(an_order(), a_job(state) if state else None) == []


@pytest.mark.parametrize(
    ("order", "allowed"),
    [
        (an_order("PENDING"), {None}),
        (an_order("CONFIRMED"), {None}),
        (an_order("COMPLETED"), {"COMPLETED"}),
        (an_order("FAILED"), {"FAILED", "COMPLETED"}),  # the order is about to be informed of the latter
        (an_order("FAILED", compensating=True), {None, "FAILED"}),
        (an_order("FAILED", compensating=True, settled=True), {None, "FAILED"}),
        (an_order("CANCELLED", settled=False), {None, "FAILED"}),
        (an_order("CANCELLED"), {None, "FAILED"}),
    ],
)
def test_the_jobs_that_match_an_order(order: Document, allowed: set[str | None]) -> None:
    for state in ("QUEUED", "RUNNING", "WAITING", "COMPLETED", "FAILED", None):
        found = kinds(order, a_job(state) if state else None, address=ADDRESS)
        assert (found == []) is (state in allowed), (state, found)


def test_a_completed_order_has_its_own_address_inside_its_package() -> None:
    job = a_job("COMPLETED")
    assert kinds(an_order("COMPLETED"), job, address=ADDRESS) == []
    assert kinds(an_order("COMPLETED"), job) == ["address"]
    assert kinds(an_order("COMPLETED"), job, address=ADDRESS | {"orderId": "o2"}) == ["address"]
    assert kinds(an_order("COMPLETED"), job, address=ADDRESS | {"wrong": True}) == ["address"]
    assert kinds(an_order("COMPLETED"), a_job("COMPLETED", ip="10.1.2.4"), address=ADDRESS) == ["job"]
    assert kinds(an_order("COMPLETED", provisioning={"package": "10.1.20"}), job, address=ADDRESS) == ["wrong package"]
    assert kinds(an_order("COMPLETED", provisioning=None), job, address=ADDRESS) == ["no package"]
    assert "no server" in kinds(an_order("COMPLETED", server=None), job, address=ADDRESS)


def test_jobs_of_the_first_release_are_judged_by_what_they_have() -> None:
    """They lack a run, a time and a package; all of them were refused."""
    old = {"_id": "o1", "state": "FAILED", "updatedAt": LONG_AGO}
    assert kinds(an_order("FAILED"), old) == []
    assert kinds(an_order("CANCELLED"), old) == []
    order = an_order()
    del order["provisioningRun"]
    assert orders.activity(OrderRecords("o1", order, job=old), NOW).stalled
    assert kinds(an_order(), {"_id": "o1"}) == ["job never due"]


# --- Time. ---


@pytest.mark.parametrize("state", ["RUNNING", "WAITING"])
def test_the_time_from_which_on_a_job_is_overdue(state: str) -> None:
    assert kinds(an_order(), a_job(state, dueAt=NOW - OVERDUE)) == []
    assert kinds(an_order(), a_job(state, dueAt=NOW - OVERDUE - INSTANT)) == ["job overdue"]
    assert kinds(an_order(), a_job(state, dueAt=None)) == ["job never due"]


def test_a_queued_job_is_overdue_only_if_the_queue_does_not_move() -> None:
    queued = a_job("QUEUED", dueAt=LONG_AGO)
    stuck = {"movedAt": NOW - OVERDUE - INSTANT}
    assert kinds(an_order(), queued, package=stuck | {"expiresAt": NOW}) == []
    assert kinds(an_order(), queued, package={"movedAt": NOW - OVERDUE}) == []
    assert kinds(an_order(), queued, package=stuck) == ["job overdue"]
    assert kinds(an_order(), queued, package=stuck | {"expiresAt": NOW - INSTANT}) == ["job overdue"]
    assert kinds(an_order(), queued) == ["job overdue"]
    assert kinds(an_order(), a_job("QUEUED", dueAt=NOW - OVERDUE)) == []


def test_a_job_with_an_address_is_in_no_queue() -> None:
    ready = a_job("QUEUED", ip="10.1.2.3", dueAt=NOW - OVERDUE)
    assert kinds(an_order(), ready) == []
    assert kinds(an_order(), ready | {"dueAt": NOW - OVERDUE - INSTANT}) == ["job overdue"]


@pytest.mark.parametrize("state", ["WAITING", "COMPLETED", "FAILED"])
def test_the_time_from_which_on_a_job_is_unpublished(state: str) -> None:
    assert kinds(an_order(), a_job(state, outboxSince=NOW - UNPUBLISHED)) == []
    assert kinds(an_order(), a_job(state, outboxSince=NOW - UNPUBLISHED - INSTANT)) == ["job unpublished"]


def test_an_order_is_stalled_only_without_an_active_job() -> None:
    def stalled(job: Document | None, **changes: Any) -> bool:
        return orders.activity(OrderRecords("o1", an_order(**changes), job=job), NOW).stalled

    assert stalled(None)
    assert not stalled(None, unpublished=True)
    assert not stalled(None, updatedAt=NOW - STALLED)
    for state in ("QUEUED", "RUNNING", "WAITING"):
        assert not stalled(a_job(state))
    for state in ("COMPLETED", "FAILED"):
        assert stalled(a_job(state))
        assert not stalled(a_job(state, updatedAt=NOW - STALLED))
        assert not stalled(a_job(state, outboxSince=NOW))
    assert stalled(a_job("FAILED"), provisioningRun=2)
    assert stalled(a_job("WAITING"), provisioningRun=2)


def test_a_held_order_is_stalled_if_it_was_never_informed_of_its_server() -> None:
    held = an_order("FAILED")
    assert not orders.activity(OrderRecords("o1", held, job=a_job("FAILED")), NOW).in_flight
    assert orders.activity(OrderRecords("o1", held, job=a_job("COMPLETED")), NOW).stalled
    assert not orders.activity(OrderRecords("o1", held, job=a_job("COMPLETED", updatedAt=NOW)), NOW).stalled


def test_the_time_that_an_order_may_be_without_a_job() -> None:
    def late(job: Document | None, since: datetime) -> bool:
        order = an_order(updatedAt=since, deadline=NOW)
        return "provisioning" in [v.kind for v in orders.judge(OrderRecords("o1", order, job=job), NOW)]

    assert not late(None, NOW - PROVISIONING)
    assert late(None, NOW - PROVISIONING - INSTANT)
    assert late(a_job("FAILED"), LONG_AGO)
    assert not late(a_job("FAILED", updatedAt=NOW), LONG_AGO)
    assert not late(a_job("WAITING"), LONG_AGO)


# --- Addresses and locks. ---


def test_an_address_belongs_to_an_order_that_exists() -> None:
    assert list(judge_address(OwnedRecord(ADDRESS, an_order(), None))) == []
    (violation,) = judge_address(OwnedRecord(ADDRESS, None, None))
    assert (violation.invariant, violation.subject, violation.id) == (6, "address", "10.1.2.3")


def test_a_shared_address_is_reported_with_its_orders() -> None:
    violation = shared_address("10.1.2.3", 3, ["o1", "o3"])
    assert (violation.subject, violation.id) == ("address", "10.1.2.3")
    assert "3 orders" in violation.found
    assert "o1 and o3" in violation.found
    assert two_servers("o1", 2, ["10.1.2.3", "10.1.2.4"]).as_json()["order"] == "o1"


def lock_kinds(job: Document | None, **changes: Any) -> list[str]:
    lock = {"_id": "10.1.2", "orderId": "o1", "expiresAt": NOW} | changes
    found: list[Violation] = list(judge_lock(OwnedRecord(lock, an_order(), job), NOW))
    assert all((violation.subject, violation.id) == ("lock", "10.1.2") for violation in found)
    return [violation.kind for violation in found]


def test_the_time_from_which_on_a_lock_is_abandoned() -> None:
    early, late = NOW - ABANDONED, NOW - ABANDONED - INSTANT
    for state in ("QUEUED", "RUNNING", "WAITING"):
        assert lock_kinds(a_job(state, dueAt=late), expiresAt=early) == []
        assert lock_kinds(a_job(state, dueAt=early), expiresAt=late) == []
        assert lock_kinds(a_job(state, dueAt=late), expiresAt=late) == ["abandoned lock"]
        assert lock_kinds(a_job(state, dueAt=late, ip="10.1.2.3"), expiresAt=late) == []


def test_a_lock_is_not_held_for_a_finished_or_missing_job() -> None:
    held, left = NOW + INSTANT, NOW - timedelta(days=1)
    for state in ("COMPLETED", "FAILED"):
        assert lock_kinds(a_job(state, updatedAt=NOW - LONGEST_LEASE), expiresAt=held) == []
        ended = a_job(state, updatedAt=NOW - LONGEST_LEASE - INSTANT)
        assert lock_kinds(ended, expiresAt=held) == ["lock of a finished job"]
        assert lock_kinds(ended, expiresAt=left) == []  # left by a crash, and free
    assert lock_kinds(a_job("RUNNING")) == []
    assert lock_kinds(None) == ["lock without job"]
    assert lock_kinds(a_job("RUNNING"), expiresAt=None) == ["lock without lease"]
