"""What a release can carry on: orders, dead letters, messages, processes and collections of other releases."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from operations.doctor.finding import Finding
from operations.upgrade.decision import (
    THIS_RELEASE,
    FilledQueue,
    InFlight,
    OpenLetters,
    OpenOrders,
    Release,
    RunningProcess,
    SchemaDifference,
    judge,
    work_side_by_side,
)
from operations.upgrade.in_flight import read_listing
from order_service.order import Status

RELEASE = Release(
    version="1.3.0",
    saga_versions=range(2, 4),
    statuses=frozenset({"PENDING", "CANCELLED"}),
    types=frozenset({"order.created"}),
    queues=frozenset({"order.inbox", "order.retry.2m"}),
)
COUNTS = st.integers(1, 9)
ORDERS = st.builds(OpenOrders, st.integers(1, 5), st.sampled_from(["PENDING", "CANCELLED", "PARKED"]), COUNTS)
LETTERS = st.builds(OpenLetters, st.sampled_from(["order.created", "order.new", ""]), COUNTS)
QUEUES = st.builds(FilledQueue, st.sampled_from(["order.inbox", "order.retry.2m", "courier.inbox"]), COUNTS)
VERSIONS = st.sampled_from(["1.3.0", "1.2.9", "1.4.0", "1.5.0", "0.9.1", "2.0.0", "2.1.0", "new", "1"])
PROCESSES = st.builds(RunningProcess, st.just("order"), st.none() | VERSIONS)
DIFFERENCES = st.builds(
    SchemaDifference, st.just("orders"), st.just("index due: missing"), st.sampled_from(["", "drop"])
)
IN_FLIGHT = st.builds(
    InFlight,
    orders=st.lists(ORDERS, max_size=4),
    letters=st.lists(LETTERS, max_size=3),
    queues=st.lists(QUEUES, max_size=3),
    processes=st.lists(PROCESSES, max_size=3),
    schema=st.lists(DIFFERENCES, max_size=3),
)


def wrong(in_flight: InFlight, release: Release = RELEASE) -> list[Finding]:
    return [finding for finding in judge(in_flight, release) if finding.outcome == "wrong"]


def test_nothing_in_flight_can_be_carried_on() -> None:
    assert {finding.outcome for finding in judge(InFlight())} == {"ok"}


@given(IN_FLIGHT)
def test_a_release_carries_on_what_it_knows_and_nothing_else(in_flight: InFlight) -> None:
    obstacles = [
        *(
            o
            for o in in_flight.orders
            if o.saga_version not in RELEASE.saga_versions or o.status not in RELEASE.statuses
        ),
        *(q for q in in_flight.queues if q.name not in RELEASE.queues),
        *(p for p in in_flight.processes if p.version not in (None, "1.3.0", "1.2.9", "1.4.0", "2.0.0")),
        *(d for d in in_flight.schema if d.fix),
    ]
    assert len(wrong(in_flight)) == len(obstacles)


@given(IN_FLIGHT, IN_FLIGHT)
def test_more_in_flight_never_makes_it_easier(some: InFlight, more: InFlight) -> None:
    fields = ("orders", "letters", "queues", "processes", "schema")
    both = InFlight(**{name: [*getattr(some, name), *getattr(more, name)] for name in fields})
    assert len(wrong(both)) == len(wrong(some)) + len(wrong(more))


@given(IN_FLIGHT)
def test_every_reason_says_what_to_do(in_flight: InFlight) -> None:
    assert all(finding.fix and finding.detail for finding in wrong(in_flight))


@given(IN_FLIGHT)
def test_a_release_that_knows_more_has_no_more_reasons(in_flight: InFlight) -> None:
    wider = replace(RELEASE, saga_versions=range(1, 9), statuses={"PENDING", "CANCELLED", "PARKED"})
    assert len(wrong(in_flight, wider)) <= len(wrong(in_flight))


@given(VERSIONS, VERSIONS)
def test_side_by_side_is_mutual(one: str, other: str) -> None:
    assert work_side_by_side(one, other) == work_side_by_side(other, one)


@pytest.mark.parametrize(
    ("one", "other", "together"),
    [
        ("0.1.0", "0.1.0", True),
        ("0.1.0", "0.1.7", True),
        ("0.1.0", "0.2.0", True),
        ("0.9.0", "0.10.0", True),
        ("0.1.0", "0.3.0", False),
        ("0.9.3", "1.0.0", True),
        ("0.9.3", "1.1.0", False),
        ("1.0.0", "3.0.0", False),
        ("0.2.0rc1", "0.1.0", True),
        ("", "0.1.0", False),
        ("unknown", "unknown", False),
    ],
)
def test_versions_side_by_side(one: str, other: str, together: bool) -> None:
    assert work_side_by_side(one, other) is together


def only_reason(**in_flight: Any) -> str:
    (finding,) = wrong(InFlight(**in_flight))
    return f"{finding.subject}: {finding.detail}; {finding.fix}"


def test_the_reasons_are_sentences() -> None:
    assert only_reason(orders=[OpenOrders(4, "PENDING", 12)]) == (
        "orders in flight: 12 unsettled orders (PENDING) began under version 4 of the saga, this release knows "
        "versions up to 3 and leaves them alone; "
        "let the release that they began under settle them before its last process stops"
    )
    assert only_reason(orders=[OpenOrders(1, "PENDING", 1)]) == (
        "orders in flight: 1 unsettled order (PENDING) began under version 1 of the saga, this release knows versions "
        "from 2 on; let the release that runs settle them first, or upgrade to one in between"
    )
    assert only_reason(queues=[FilledQueue("ordersaga.migration.order.inbox", 2)]) == (
        "queues: ordersaga.migration.order.inbox has 2 messages of an interrupted migration; "
        "run `ordersaga migrate` again"
    )
    assert only_reason(queues=[FilledQueue("courier.inbox", 1)]) == (
        "queues: courier.inbox has 1 message, and no service of this release takes them; "
        "let the release that declared it empty it before its last process stops"
    )
    assert only_reason(processes=[RunningProcess("order", "1.1.0")]) == (
        "order process: runs 1.1.0, which was never tried beside 1.3.0; "
        "go step by step: one minor version at a time, docs/upgrading.md"
    )


def test_this_release_knows_its_own() -> None:
    orders = [OpenOrders(version, status, 1) for version in THIS_RELEASE.saga_versions for status in Status]
    queues = [FilledQueue(name, 1) for name in THIS_RELEASE.queues]
    in_flight = InFlight(orders, (), queues, [RunningProcess("order", THIS_RELEASE.version)])
    assert wrong(in_flight, THIS_RELEASE) == []


def test_a_listing_has_only_the_queues_of_the_product() -> None:
    listing = "order.inbox\t3\ncourier.retry.2m\t1\nshop.events\t7\ncourier.inbox\t2\nodd\nname\tmessages\n"
    assert read_listing(listing) == {"order.inbox": 3, "courier.retry.2m": 1, "courier.inbox": 2}
