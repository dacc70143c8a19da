"""What doctor says of clusters that no test here can run: too small, half gone, badly spread."""

import json

import pytest

from operations.doctor.broker_cluster import check_leaders, check_members, check_nodes, check_settings, read_settings
from operations.doctor.replica_set import ReplicaSet, check_elections, check_number, check_states, check_writes
from operations.stack.queue_members import ClusterStatus, QueueMembers, spread_queues
from operations.stack.replica_set import ELECTION_SETTINGS
from shared.topology import DEAD_LETTERS, INBOXES

NODES = ("a@x", "b@x", "c@x")


def queue(name: str, *members: str, kind: str = "quorum") -> QueueMembers:
    return QueueMembers(name, kind, members[0], frozenset(members))


@pytest.mark.parametrize(
    ("status", "outcome", "detail"),
    [
        (ClusterStatus(NODES, NODES, False), "ok", "all 3 run"),
        (ClusterStatus(NODES, NODES[:2], False), "wrong", "c@x of 3 does not run"),
        (ClusterStatus(NODES, NODES, True), "wrong", "some do not see each other"),
        (ClusterStatus(NODES, NODES[:2], True), "wrong", "c@x and the others do not see each other"),
        (ClusterStatus(NODES[:2], NODES[:2], False), "wrong", "2: without either of them both pause"),
    ],
)
def test_a_cluster_needs_three_nodes_that_run_and_see_each_other(
    status: ClusterStatus, outcome: str, detail: str
) -> None:
    found = check_nodes(status)
    assert (found.outcome, found.detail) == (outcome, detail)


def test_queues_with_too_few_members_are_named() -> None:
    queues = [
        queue("one", "a@x"),
        queue("two", "a@x"),
        queue("events", "a@x", "b@x", kind="stream"),
        queue("ok", *NODES),
    ]
    found = check_members(queues, ClusterStatus(NODES, NODES, False))
    assert found.outcome == "wrong"
    assert found.detail == "3 of 4 have fewer than 3: one, two, events"


def test_a_queue_of_two_nodes_has_two_members() -> None:
    assert check_members([queue("one", *NODES[:2])], ClusterStatus(NODES[:2], NODES[:2], False)).outcome == "ok"


def test_leaders_count_only_of_queues_that_carry_the_load() -> None:
    loaded = [*INBOXES, DEAD_LETTERS]
    spread = [queue(name, NODES[place % 3]) for place, name in enumerate(loaded)]
    idle = [queue(f"{name}.retry", "a@x") for name in loaded * 3]
    assert check_leaders([*spread, *idle], NODES).outcome == "ok"
    assert check_leaders([queue(name, NODES[place % 2]) for place, name in enumerate(loaded)], NODES).outcome == "note"


def test_the_settings_of_every_node_are_read_also_while_one_changes() -> None:
    answer = """[{'a-1@localhost',8,{ok,pause_minority}},
 {b@localhost,{ongoing_change_to,60},{ok,{pause_if_all_down,[c@x],autoheal}}}]"""
    ticks, handling = read_settings(lambda *_: answer, ("a-1@localhost", "b@localhost"))
    assert ticks == {"a-1@localhost": 8, "b@localhost": 60}
    assert handling == {"a-1@localhost": "pause_minority", "b@localhost": "pause_if_all_down"}


def test_settings_that_make_the_loss_of_a_node_slow_or_dangerous_are_named() -> None:
    answer = "[{'a@x',60,{ok,ignore}},{'b@x',4,{ok,pause_minority}}]"
    tick, partitions = check_settings(lambda *_: answer, ("a@x", "b@x"))
    assert (tick.outcome, partitions.outcome) == ("note", "wrong")
    assert "after up to 75 s" in tick.detail
    assert partitions.detail.startswith("ignore on a@x: ")


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ({"lonely": "quorum"}, ["rabbitmq-queues grow b@x", "rabbitmq-queues grow c@x"]),
        ({"events": "stream"}, ["rabbitmq-streams add_replica b@x", "rabbitmq-streams add_replica c@x"]),
        ({}, []),
    ],
)
def test_a_start_adds_copies_on_the_nodes_without_one(members: dict[str, str], expected: list[str]) -> None:
    said: list[str] = []

    def control(*words: str, tool: str = "rabbitmqctl") -> str:
        if "cluster_status" in words:
            return json.dumps({"disk_nodes": NODES, "running_nodes": NODES, "partitions": {}})
        if "list_queues" in words:
            on_one_node = [
                {"name": name, "type": kind, "leader": "a@x", "members": ["a@x"]} for name, kind in members.items()
            ]
            return json.dumps([{"name": "ok", "type": "quorum", "leader": "a@x", "members": NODES}, *on_one_node])
        said.append(" ".join([tool, words[0], next(word for word in words if word in NODES)]))
        return ""

    spread_queues(control, "/")
    assert said == expected


def replica_set(with_data: int, arbiters: int = 0) -> ReplicaSet:
    members = [
        {"host": f"{'x' if number >= with_data else 'm'}{number}:1", "votes": 1, "arbiterOnly": number >= with_data}
        for number in range(with_data + arbiters)
    ]
    return ReplicaSet({"members": members}, {}, "majority")


@pytest.mark.parametrize(
    ("members", "is_own", "outcome"), [(1, True, "ok"), (1, False, "note"), (2, True, "wrong"), (3, False, "ok")]
)
def test_one_member_is_in_order_for_development_and_two_never(members: int, is_own: bool, outcome: str) -> None:
    assert check_number(replica_set(members), is_own).outcome == outcome


@pytest.mark.parametrize(
    ("with_data", "arbiters", "outcome"),
    [(1, 1, "wrong"), (2, 1, "wrong"), (3, 1, "wrong"), (3, 2, "wrong"), (4, 1, "ok")],
)
def test_an_arbiter_is_no_member_that_a_write_can_wait_for(with_data: int, arbiters: int, outcome: str) -> None:
    found = check_number(replica_set(with_data, arbiters), is_own=False)
    assert found.outcome == outcome
    assert f"{with_data} with data and the arbiter x{with_data}:1" in found.detail


def test_members_that_are_away_and_writes_that_may_be_lost_are_wrong() -> None:
    states = {"a:1": "PRIMARY", "b:1": "(not reachable/healthy)", "c:1": "ARBITER"}
    found = ReplicaSet({"writeConcernMajorityJournalDefault": False}, states, "majority")
    states_finding = check_states(found)
    assert states_finding is not None
    assert states_finding.detail == "b:1 is (not reachable/healthy)"
    assert check_writes(found).outcome == "wrong"
    assert check_writes(ReplicaSet({}, states, 1)).outcome == "note"


@pytest.mark.parametrize(
    ("settings", "outcome", "said"),
    [
        (ELECTION_SETTINGS, "ok", "after 3 s, or 3.2 s if only that one has its last writes"),
        ({"electionTimeoutMillis": 3000, "catchUpTimeoutMillis": 0}, "ok", "after 3 s"),
        ({"electionTimeoutMillis": 3000, "catchUpTimeoutMillis": 5000}, "note", "after 3 s, or 8 s if"),
        ({"electionTimeoutMillis": 3000, "catchUpTimeoutMillis": -1}, "note", "or whenever its successor gives up"),
        ({"electionTimeoutMillis": 10_000, "catchUpTimeoutMillis": 0}, "note", "after 10 s: until then"),
    ],
)
def test_an_election_that_takes_long_is_noted(settings: dict[str, int], outcome: str, said: str) -> None:
    finding = check_elections(settings)
    assert finding.outcome == outcome
    assert said in finding.detail
