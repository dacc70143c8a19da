"""The rights on the broker: one table, and what follows from it."""

import base64
import hashlib
import re
from pathlib import Path

import pytest

from operations.doctor.broker import check_version, compare_rights
from operations.reading.broker import EVERY_QUEUE
from operations.stack.broker_users import choose_virtual_host, definitions, load_users
from shared.broker_rights import DEPLOYER, RIGHTS, could_have_sent, may_ask_for, may_send_by_name, sent_by
from shared.contracts import ALL_MESSAGES, ConsumerPausesChanged, DeadLetterHandled
from shared.services import ANSWERING, SERVICES
from shared.topology import (
    DEAD_LETTERS,
    DEFAULT_OPTIONS,
    EVENTS,
    EXCHANGE,
    INBOX_EXCHANGE,
    INBOXES,
    all_queues,
    exchanges,
)

SERVICE_USERS = [service.user for service in SERVICES.values()]


def test_every_message_has_one_sender() -> None:
    of_several = {DeadLetterHandled: len(SERVICES), ConsumerPausesChanged: len(ANSWERING)}
    for message in ALL_MESSAGES:
        senders = [service.name for service in SERVICES.values() if message in sent_by(service)]
        assert len(senders) == of_several.get(message, 1), message


@pytest.mark.parametrize("user", SERVICE_USERS)
def test_the_patterns_of_a_service_match_its_own_names_only(user: str) -> None:
    rights = RIGHTS[user]
    assert rights.configure_pattern == ""
    for exchange in exchanges():
        retry = re.search(r"\.retry\." if user == "operations" else rf"^{user}\.retry\.", exchange.name)
        allowed = exchange.name in (EXCHANGE, DEAD_LETTERS) or bool(retry)
        assert bool(re.search(rights.write_pattern, exchange.name)) is allowed, exchange.name
    assert bool(re.search(rights.write_pattern, "amq.default")) is (user == "operations")
    for queue in all_queues(DEFAULT_OPTIONS):
        for_operations = queue.name in (DEAD_LETTERS, EVENTS)
        own = queue.name == f"{user}.inbox" or (for_operations and user == "operations")
        assert bool(re.search(rights.read_pattern, queue.name)) is own, queue.name
        allowed = user == "operations" or queue.name.startswith((f"{user}.retry.", DEAD_LETTERS))
        assert allowed or not re.search(rights.write_pattern, queue.name), queue.name
    for message in ALL_MESSAGES:
        assert bool(re.search(rights.topic_pattern, message.routing_key)) is (message.routing_key in rights.topics)
    for name in ("ordersagaX", "Xordersaga", "order-inbox", "orderXcreated", INBOX_EXCHANGE, "order.created.more"):
        for pattern in (rights.write_pattern, rights.read_pattern, rights.topic_pattern):
            assert not re.search(pattern, name), name


def test_only_the_deployer_may_declare() -> None:
    assert [user for user, rights in RIGHTS.items() if rights.configure_pattern] == [DEPLOYER]


@pytest.mark.parametrize(
    ("user", "routing_key", "inbox", "expected"),
    [
        ("order", "payment.refund", "payment.inbox", True),
        ("order", "order.created", "payment.inbox", True),
        ("order", "order.created", "order.inbox", True),
        ("order", "stock.release", "payment.inbox", False),
        ("payment", "payment.refund", "payment.inbox", True),
        ("payment", "anything", "payment.inbox", True),
        ("inventory", "payment.refund", "payment.inbox", False),
        ("inventory", "stock.reserved", "payment.inbox", False),
        ("inventory", "stock.reserved", "order.inbox", True),
        ("payment", "dead_letter.handled", "operations.inbox", True),
        ("operations", "payment.refund", "payment.inbox", True),
        (DEPLOYER, "payment.refund", "payment.inbox", True),
        ("guest", "payment.refund", "payment.inbox", False),
        ("inventory", "payment.refund", "", False),
        ("inventory", "payment.refund", DEAD_LETTERS, False),
    ],
)
def test_who_could_have_sent_a_message(user: str, routing_key: str, inbox: str, expected: bool) -> None:
    assert could_have_sent(user, routing_key, inbox) is expected


def test_only_operations_and_the_deployer_send_by_name_and_users_of_no_table_are_not_judged() -> None:
    assert [user for user in RIGHTS if may_send_by_name(user)] == ["operations", DEPLOYER]
    assert may_send_by_name(None)
    assert may_send_by_name("guest")


def test_operations_may_ask_for_every_queue_and_a_service_for_its_own() -> None:
    # What is said of the rights, and what the broker makes of the patterns.
    for queue in EVERY_QUEUE:
        for user in SERVICE_USERS:
            own = queue.startswith(f"{user}.") or queue == DEAD_LETTERS
            assert may_ask_for(user, queue) is (own or user == "operations"), (user, queue)
            patterns = (RIGHTS[user].read_pattern, RIGHTS[user].write_pattern)
            assert any(re.search(pattern, queue) for pattern in patterns) is may_ask_for(user, queue)
    assert may_ask_for(DEPLOYER, "order.inbox")
    assert may_ask_for("guest", "order.inbox")
    assert may_ask_for(None, "order.inbox")


def test_the_definitions_have_a_salted_hash_of_each_password() -> None:
    made = definitions("shop", {"order": "secret", "payment": "secret"})
    hashes = [base64.b64decode(user["password_hash"]) for user in made["users"]]
    for hashed in hashes:
        assert hashed[4:] == hashlib.sha256(hashed[:4] + b"secret").digest()
    assert hashes[0] != hashes[1]
    assert {permission["vhost"] for permission in made["permissions"] + made["topic_permissions"]} == {"shop"}


def test_the_definitions_have_each_exchange_on_whose_routing_keys_they_give_rights() -> None:
    made = definitions("shop", {"order": "secret"})
    needed = {(permission["vhost"], permission["exchange"]) for permission in made["topic_permissions"]}
    assert needed == {(exchange["vhost"], exchange["name"]) for exchange in made["exchanges"]} == {("shop", EXCHANGE)}


def test_a_data_directory_of_an_earlier_release_keeps_its_virtual_host(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    (old / "data" / "ordersaga-1@localhost").mkdir(parents=True)
    assert (choose_virtual_host(old), choose_virtual_host(new)) == ("/", "ordersaga")
    (new / "data" / "ordersaga-1@localhost").mkdir(parents=True)
    assert (choose_virtual_host(old), choose_virtual_host(new)) == ("/", "ordersaga")
    users = load_users(tmp_path / "secrets", "/")
    assert load_users(tmp_path / "secrets", "/") == users
    assert set(users.passwords) == set(RIGHTS)


def listed(**changes: str) -> str:
    rows = {
        user: f"{rights.configure_pattern}\t{rights.write_pattern}\t{rights.read_pattern}"
        for user, rights in RIGHTS.items()
    } | changes
    return "\n".join(f"{user}\t{patterns}" for user, patterns in rows.items() if patterns)


def listed_topics(**changes: str) -> str:
    rows = {user: rights.topic_pattern for user, rights in RIGHTS.items()} | changes
    return "\n".join(f"{user}\t{EXCHANGE}\t{pattern}\t" for user, pattern in rows.items() if pattern)


@pytest.mark.parametrize(
    ("permissions", "topics", "expected"),
    [
        (listed(), listed_topics(), []),
        (listed(warehouse="\t\t^(ordersaga\\.events)$"), listed_topics(), []),
        (listed(guest=".*\t.*\t.*"), listed_topics(), ["guest has rights, and should not exist"]),
        (listed(order=""), listed_topics(), ["order has no rights"]),
        (listed(order=".*\t.*\t.*"), listed_topics(), ["order has other rights than it should"]),
        (listed(), listed_topics(payment=""), ["payment has other rights than it should"]),
        (listed(), listed_topics(payment=".*"), ["payment has other rights than it should"]),
    ],
)
def test_rights_that_differ_are_named(permissions: str, topics: str, expected: list[str]) -> None:
    assert compare_rights(permissions, topics) == expected


def test_the_inbox_of_each_service_is_declared() -> None:
    assert {service.inbox for service in SERVICES.values()} == set(INBOXES)


@pytest.mark.parametrize(
    ("version", "problem"),
    [
        ("3.9.13", "too old"),
        ("3.10.8", None),
        ("4.0.5", None),
        ("4.2.6", "lets no user with the least rights look at its own queue"),
        ("4.3.0", "lets no user with the least rights look at its own queue"),
        ("4.3.6", None),
    ],
)
def test_doctor_names_versions_with_which_services_do_not_work(version: str, problem: str | None) -> None:
    found = check_version("RabbitMQ node", version)
    assert (problem or "answers") in found.detail
    assert (found.outcome == "ok") is (problem is None)
