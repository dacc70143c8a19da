"""The top of the overview: what it says about each part of the stack, and how many parts do not work."""

from types import SimpleNamespace
from typing import Any

from operations.console.health import Part, _members, brokers_of, count_problems, members_of, services_of


def test_a_part_that_does_not_work_says_why_and_is_counted() -> None:
    groups = [
        services_of({"order": None, "payment": "the payment service did not answer in time"}),
        brokers_of(None, {"mq-1:5672": "up", "mq-2:5672": "away"}),
        members_of("MongoDB: it refuses connections", {}),
    ]
    assert count_problems(groups) == (3, 7)
    assert groups[0].parts[-1] == Part("console", "ready")
    assert groups[0].parts[1] == Part("payment", "not ready", "the payment service did not answer in time")
    assert groups[1].parts == [Part("broker", "ready"), Part("mq-1:5672", "ready"), Part("mq-2:5672", "away", "away")]
    assert groups[2].parts == [Part("database", "does not answer", "MongoDB: it refuses connections")]


def test_members_are_named_with_their_role_unless_there_is_only_one() -> None:
    def described(known: bool, writable: bool = False) -> SimpleNamespace:
        return SimpleNamespace(is_server_type_known=known, is_writable=writable)

    def client(**members: SimpleNamespace) -> Any:
        known = {(host, 27017): member for host, member in members.items()}
        return SimpleNamespace(topology_description=SimpleNamespace(server_descriptions=lambda: known))

    found = _members(client(b=described(known=True), a=described(known=True, writable=True), c=described(known=False)))
    assert found == {"a:27017": "primary", "b:27017": "secondary", "c:27017": "away"}
    assert members_of(None, found).parts[-1] == Part("c:27017", "away", "away")
    assert _members(client(a=described(known=True, writable=True))) == {}
