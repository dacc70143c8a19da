"""The top of the overview: what it says about each part of the stack, and how many parts do not work."""

from types import SimpleNamespace
from typing import Any

import pytest
from pymongo.server_type import SERVER_TYPE

from operations.console.health import (
    _ROLES,
    Part,
    Problems,
    _members,
    _role,
    brokers_of,
    count_problems,
    members_of,
    services_of,
)
from operations.console.upstream import Health


def test_a_part_that_does_not_work_says_why_and_is_counted() -> None:
    groups = [
        services_of({"order": Health(None), "payment": Health("the payment service did not answer in time")}),
        brokers_of(None, {"mq-1:5672": "up", "mq-2:5672": "away"}),
        members_of("MongoDB: it refuses connections", {}),
    ]
    assert count_problems(groups) == Problems(3, 0, 7)
    assert groups[0].parts[-1] == Part("console", "ready")
    assert groups[0].parts[1] == Part("payment", "not ready", "the payment service did not answer in time")
    assert groups[1].parts == [Part("broker", "ready"), Part("mq-1:5672", "ready"), Part("mq-2:5672", "away", "away")]
    assert groups[2].parts == [Part("database", "does not answer", "MongoDB: it refuses connections")]


def test_a_degraded_service_works_and_is_not_counted_with_those_that_do_not() -> None:
    degraded = Health(None, {"rabbitmq": "it refuses connections"})
    group = services_of({"order": degraded, "payment": degraded._replace(ready=False)})
    assert group.parts[0] == Part("order", "degraded", "rabbitmq: it refuses connections", degraded=True)
    assert group.parts[1] == Part("payment", "not ready", "rabbitmq: it refuses connections")
    assert count_problems([group]) == Problems(1, 1, 3)


@pytest.mark.parametrize(
    ("server_type", "role", "works"),
    [
        ("RSArbiter", "arbiter", True),
        ("Mongos", "router", True),
        ("RSOther", "not serving", False),
        ("RSGhost", "in no set", False),
        ("Unknown", "away", False),
        ("Another", "away", False),
    ],
)
def test_a_member_that_serves_nothing_is_a_problem(server_type: str, role: str, works: bool) -> None:
    part = members_of(None, {"a:27017": _role(SimpleNamespace(server_type_name=server_type))}).parts[-1]
    assert (part.state, part.problem is None) == (role, works)


def test_every_type_of_the_driver_has_a_word() -> None:
    assert {name for name in SERVER_TYPE._fields if name not in _ROLES} == {"Unknown"}


def test_members_are_named_with_their_role_unless_there_is_only_one() -> None:
    def described(server_type: str) -> SimpleNamespace:
        return SimpleNamespace(server_type_name=server_type)

    def client(**members: SimpleNamespace) -> Any:
        known = {(host, 27017): member for host, member in members.items()}
        return SimpleNamespace(topology_description=SimpleNamespace(server_descriptions=lambda: known))

    found = _members(client(b=described("RSSecondary"), a=described("RSPrimary"), c=described("Unknown")))
    assert found == {"a:27017": "primary", "b:27017": "secondary", "c:27017": "away"}
    assert members_of(None, found).parts[-1] == Part("c:27017", "away", "away")
    assert _members(client(a=described("RSPrimary"))) == {}
