"""The topology: every message has a reader where one must be, and everything is legal on RabbitMQ 3.10 and 4.x."""

import pytest

from shared.contracts import ALL_MESSAGES, BY_ROUTING_KEY, OrderCreated
from shared.topology import (
    DEAD_LETTERS,
    EVENT_TYPES,
    EVENTS_OFF,
    EXCHANGE,
    FORMER_RETRY_QUEUES,
    INBOX_EXCHANGE,
    INBOXES,
    NOTIFICATION_INBOX,
    RETRY_LADDER,
    TopologyOptions,
    all_queues,
    event_stream,
    exchanges,
    inbox_of_retry,
    queues,
)

ALLOWED_ARGUMENTS = {
    "x-queue-type",
    "x-delivery-limit",
    "x-dead-letter-exchange",
    "x-dead-letter-routing-key",
    "x-dead-letter-strategy",
    "x-overflow",
    "x-message-ttl",
}


def test_every_mandatory_message_reaches_an_inbox_and_the_others_reach_that_of_webhooks() -> None:
    read = {message for inbox, messages in INBOXES.items() if inbox != NOTIFICATION_INBOX for message in messages}
    assert read == {message for message in ALL_MESSAGES if message.mandatory}
    others = {message for message in ALL_MESSAGES if not message.mandatory}
    assert set(INBOXES[NOTIFICATION_INBOX]) == {OrderCreated} | others


def test_routing_keys_name_their_message_without_wildcards() -> None:
    for key in BY_ROUTING_KEY:
        subject, _, what = key.partition(".")
        assert subject.replace("_", "").isalpha()
        assert what.replace("_", "").isalpha()


def test_names_are_those_of_the_contract() -> None:
    assert EXCHANGE == "ordersaga"
    assert DEAD_LETTERS == "ordersaga.dead-letters"
    services = ("order", "inventory", "payment", "provisioning", "notification", "operations")
    assert set(INBOXES) == {f"{service}.inbox" for service in services}


def test_names_are_declared_once_and_bindings_lead_to_what_is_declared() -> None:
    names = [queue.name for queue in queues()]
    assert len(names) == len(set(names))
    declared = {exchange.name for exchange in exchanges()}
    assert len(declared) == len(exchanges())
    assert {exchange for queue in queues() for exchange, _ in queue.bindings} == declared


def test_every_queue_is_a_quorum_queue_with_nothing_that_either_version_refuses() -> None:
    for queue in queues():
        assert queue.arguments["x-queue-type"] == "quorum"
        assert queue.arguments.keys() <= ALLOWED_ARGUMENTS


def test_at_least_once_dead_lettering_has_the_arguments_it_requires() -> None:
    for queue in queues():
        if "x-dead-letter-exchange" in queue.arguments:
            assert queue.arguments["x-dead-letter-strategy"] == "at-least-once"
            assert queue.arguments["x-overflow"] == "reject-publish"


def test_a_crash_loop_ends_among_the_dead_letters_and_a_retry_in_its_inbox() -> None:
    by_name = {queue.name: queue for queue in queues()}
    for inbox in INBOXES:
        assert by_name[inbox].arguments["x-dead-letter-exchange"] == DEAD_LETTERS
        assert 0 < by_name[inbox].arguments["x-delivery-limit"] < 1000
    for inbox in INBOXES:
        for delay in RETRY_LADDER:
            arguments = by_name[delay.queue_of(inbox)].arguments
            assert arguments["x-dead-letter-exchange"] == INBOX_EXCHANGE
            assert arguments["x-dead-letter-routing-key"] == inbox
            assert arguments["x-message-ttl"] == delay.milliseconds
            assert inbox_of_retry(delay.queue_of(inbox)) == inbox
    assert "x-dead-letter-exchange" not in by_name[DEAD_LETTERS].arguments
    # Without an explicit limit, the queue has one of 20 on RabbitMQ 4, and drops messages beyond it.
    assert by_name[DEAD_LETTERS].arguments["x-delivery-limit"] >= 1_000_000


def test_a_retry_finds_every_inbox_by_its_name_and_is_otherwise_dead_lettered() -> None:
    (returning,) = [exchange for exchange in exchanges() if exchange.name == INBOX_EXCHANGE]
    assert (returning.kind, returning.arguments) == ("direct", {"alternate-exchange": DEAD_LETTERS})
    bound = {(queue.name, key) for queue in queues() for exchange, key in queue.bindings if exchange == INBOX_EXCHANGE}
    assert bound == {(inbox, inbox) for inbox in INBOXES}


def test_the_stream_keeps_by_age_what_is_about_orders_and_packages_and_is_left_out_if_it_is_off() -> None:
    stream = event_stream("12h")
    assert stream.arguments["x-queue-type"] == "stream"
    assert stream.arguments["x-max-age"] == "12h"
    assert {key for _, key in stream.bindings} == set(EVENT_TYPES)
    assert {key for key in BY_ROUTING_KEY if key.split(".")[0] in ("order", "package")} == set(EVENT_TYPES)
    assert all_queues(TopologyOptions("12h")) == (*queues(), stream)
    assert all_queues(TopologyOptions(EVENTS_OFF)) == queues()


def test_queues_with_new_arguments_have_new_names() -> None:
    assert not {queue.name for queue in queues()} & set(FORMER_RETRY_QUEUES)


def test_each_service_has_its_own_retry_exchanges_and_what_they_cannot_route_is_dead_lettered() -> None:
    retries = {exchange.name: exchange for exchange in exchanges() if inbox_of_retry(exchange.name)}
    assert set(retries) == {delay.queue_of(inbox) for inbox in INBOXES for delay in RETRY_LADDER}
    for exchange in retries.values():
        assert (exchange.kind, exchange.arguments) == ("fanout", {"alternate-exchange": DEAD_LETTERS})


@pytest.mark.parametrize("name", ["order.inbox", "ordersaga.retry.1s", "ordersaga.retry.v2.1s", "mine.retry.1s", ""])
def test_other_names_are_no_retry_queues(name: str) -> None:
    assert inbox_of_retry(name) is None


def test_the_retry_levels_are_those_documented() -> None:
    assert [delay.milliseconds for delay in RETRY_LADDER] == [1_000, 5_000, 30_000, 120_000]
