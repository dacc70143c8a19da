"""Partitioned inboxes in the topology: what is declared, who may read it, by what messages are divided."""

import re

import pytest
from aio_pika.exceptions import ChannelPreconditionFailed
from aiormq.exceptions import ConnectionCommandInvalid
from hypothesis import given
from hypothesis import strategies as st

from operations.dead_letters.letter import read_failure
from operations.doctor.broker import CONSUMERS, check_bindings, check_consumers
from operations.reading.broker import QueueLevel
from operations.upgrade.in_flight import read_listing
from shared import topology
from shared.broker_rights import RIGHTS, may_ask_for
from shared.bus import Delivery
from shared.bus.declaring import describe_missing, is_about_unknown_type
from shared.bus.partitions import Leftover, Trial
from shared.bus.publisher import envelope
from shared.clock import utc_now
from shared.contracts import ALL_MESSAGES, Message, OrderCreated, RefundPayment, ReleaseStock, ReturnStock, ShipStock
from shared.contracts.orders import Item, ReturnedItem
from shared.errors import StartError
from shared.services import CONSOLE, PROVISIONING, SERVICES
from shared.settings import ServiceSettings, load
from shared.topology import EXCHANGE, INBOX_EXCHANGE, INVENTORY_INBOX, ORDER_INBOX, PARTITIONED, WHOLE

NUMBERS = st.integers(2, topology.MOST_PARTITIONS)


def test_one_partition_is_the_topology_without_partitions() -> None:
    assert topology.queues(options=topology.TopologyOptions(partitions=WHOLE)) == topology.queues()
    assert topology.exchanges(options=topology.TopologyOptions(partitions=WHOLE)) == topology.exchanges()
    assert not any(topology.is_partition(queue.name) for queue in topology.queues())
    assert not any(exchange.bindings for exchange in topology.exchanges())


def test_all_inboxes_are_divided_but_those_that_gain_nothing() -> None:
    assert set(topology.INBOXES) - set(PARTITIONED) == {PROVISIONING.inbox, CONSOLE.inbox}


@given(NUMBERS)
def test_a_divided_inbox_gets_what_comes_by_its_name_and_its_partitions_the_rest(partitions: int) -> None:
    queues = {queue.name: queue for queue in topology.queues(options=topology.TopologyOptions(partitions=partitions))}
    exchanges = {
        exchange.name: exchange
        for exchange in topology.exchanges(options=topology.TopologyOptions(partitions=partitions))
    }
    undivided = {queue.name: queue for queue in topology.queues()}
    for inbox in PARTITIONED:
        assert queues[inbox].arguments == undivided[inbox].arguments
        assert queues[inbox].bindings == ((INBOX_EXCHANGE, inbox),)
        divided = exchanges[topology.partitions_exchange(inbox)]
        assert {*divided.bindings, (INBOX_EXCHANGE, inbox)} == set(undivided[inbox].bindings)
        parts = [queues[name] for name in topology.partitions_of(inbox, partitions)]
        assert len(parts) == partitions
        for part in parts:
            assert part.bindings == ((divided.name, "1"),)
            assert part.arguments == queues[inbox].arguments | {"x-single-active-consumer": True}
            assert topology.inbox_of(part.name) == inbox
    assert len(queues) == len(undivided) + partitions * len(PARTITIONED)
    assert {source for each in exchanges.values() for source, _ in each.bindings} == {EXCHANGE}


@pytest.mark.parametrize("name", ["order.inbox", "operations.inbox.1", "order.inbox.x", "order.inbox.", "order.1", ""])
def test_other_queues_are_no_partitions(name: str) -> None:
    assert topology.inbox_of(name) == name


def test_a_service_may_read_its_own_partitions_however_many() -> None:
    for service in SERVICES.values():
        rights = RIGHTS[service.user]
        for inbox in topology.INBOXES:
            own = inbox == service.inbox
            for number in ("1", "9", "10", "64"):
                may_read = bool(re.search(rights.read_pattern, f"{inbox}.{number}"))
                assert may_read is (own and inbox in PARTITIONED), (service.name, inbox)
                may_ask = inbox in PARTITIONED and (own or service is CONSOLE)
                assert may_ask_for(service.user, f"{inbox}.{number}") is may_ask
            for other in ("0", "01", "1x", "partitions", "1.2", ""):
                assert not re.search(rights.read_pattern, f"{inbox}.{other}")
                assert not re.search(rights.write_pattern, f"{inbox}.{other}")
    counted = RIGHTS["operations"].write_pattern
    assert all(re.search(counted, f"{inbox}.7") for inbox in PARTITIONED)


ITEMS = (Item(product_id="p1", quantity=2, price=100), Item(product_id="p2", quantity=1, price=100))


@pytest.mark.parametrize(
    ("message", "key"),
    [
        (OrderCreated(order_id="o1", user_id="u1", items=ITEMS, total_amount=300), "p1"),
        (ReleaseStock(order_id="o1", items=ITEMS), "p1"),
        (ReleaseStock(order_id="o1"), "o1"),
        (ShipStock(order_id="o1"), "o1"),
        (ReturnStock(order_id="o1", refund_id="r1", items=(ReturnedItem(product_id="p2", quantity=1),)), "p2"),
        (RefundPayment(order_id="o1"), None),
    ],
    ids=lambda value: value.routing_key if isinstance(value, Message) else str(value),
)
def test_the_key_of_a_message_is_its_first_product(message: Message, key: str | None) -> None:
    headers = {topology.PARTITION_KEY: key} if key else {}
    assert envelope(message).headers == headers
    assert envelope(message, {"traceparent": "t"}).headers == {"traceparent": "t", **headers}


def test_whatever_is_divided_by_product_has_a_key() -> None:
    by_product = [inbox for inbox, arguments in PARTITIONED.items() if "hash-header" in arguments]
    assert by_product == [INVENTORY_INBOX]
    have_one = {message for message in ALL_MESSAGES if message.partition_key is not Message.partition_key}
    assert have_one == set(topology.INBOXES[INVENTORY_INBOX])


def test_a_dead_letter_of_a_partition_belongs_to_its_inbox() -> None:
    now = utc_now()
    death = {"reason": "delivery_limit", "queue": f"{ORDER_INBOX}.3", "count": 1, "exchange": EXCHANGE, "time": now}
    headers = {"x-death": [death]}
    dead = Delivery(b"{}", "", "ordersaga.dead-letters", "stock.reserved", None, "o1", "m1", False, headers, None)
    failure = read_failure(dead, now)
    assert (failure.queue, failure.service, failure.routing_key) == (ORDER_INBOX, "order", "stock.reserved")


def test_an_upgrade_sees_what_waits_in_partitions() -> None:
    assert read_listing("order.inbox.2\t3\norder.inboxes\t1\n") == {"order.inbox.2": 3}


def test_every_partition_needs_a_consumer() -> None:
    levels = {queue: QueueLevel(0, 1) for queue in CONSUMERS} | {"payment.inbox.2": QueueLevel(4, 0)}
    finding = check_consumers(levels, SERVICES)
    assert finding.outcome == "wrong"
    assert "payment.inbox.2 (4 waiting)" in finding.detail
    assert check_consumers(levels, SERVICES, {"payment"}).outcome == "ok"


def listing(partitions: int, *further: tuple[str, str, str]) -> str:
    queues, exchanges = (
        topology.all_queues(topology.TopologyOptions(partitions=partitions)),
        topology.exchanges(options=topology.TopologyOptions(partitions=partitions)),
    )
    declared = topology.all_bindings(queues, exchanges)
    rows = [(source, name, key) for name, pairs in declared.items() for source, key in pairs]
    return "\n".join("\t".join(row) for row in (*rows, *further))


def test_missing_bindings_of_partitions_are_named_and_so_are_those_that_double_messages() -> None:
    twice = (EXCHANGE, ORDER_INBOX, "stock.reserved")
    assert check_bindings(lambda *_, **__: listing(2), "/", topology.TopologyOptions(partitions=2)).outcome == "ok"
    found = check_bindings(lambda *_, **__: listing(1), "/", topology.TopologyOptions(partitions=2))
    assert f"{EXCHANGE} -> order.inbox.partitions (stock.reserved)" in found.detail
    found = check_bindings(lambda *_, **__: listing(2, twice), "/", topology.TopologyOptions(partitions=2))
    assert (found.outcome, found.detail) == (
        "wrong",
        f"messages arrive twice: {EXCHANGE} -> {ORDER_INBOX} (stock.reserved)",
    )
    assert check_bindings(lambda *_, **__: listing(1), "/").outcome == "ok"


def test_missing_partitions_are_named_like_all_that_is_missing() -> None:
    assert describe_missing(["queue order.inbox.2"]) == f"missing queue order.inbox.2: {topology.HOW_TO_APPLY}"


@pytest.mark.parametrize("value", ["0", "65", "-1", "many"])
def test_the_number_of_partitions_is_checked(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORDERSAGA_PARTITIONS", value)
    with pytest.raises(StartError, match=f"ORDERSAGA_PARTITIONS='{value}' is not valid"):
        load(ServiceSettings)


def test_nothing_is_concluded_from_zeros_that_the_leader_has_not_said() -> None:
    nothing = Leftover("order.inbox.1", 0, 0)
    assert Trial(False, nothing, is_certain=True).is_unused
    assert Trial(False, nothing, is_certain=True).has_no_other
    assert not Trial(False, nothing, is_certain=False).is_unused
    assert not Trial(False, nothing, is_certain=False).has_no_other
    assert Trial(True, nothing, is_certain=False).has_no_other


@pytest.mark.parametrize(
    "error",
    [
        ConnectionCommandInvalid("COMMAND_INVALID - unknown exchange type 'x-consistent-hash'"),
        ChannelPreconditionFailed("PRECONDITION_FAILED - unknown exchange type 'x-consistent-hash'"),
    ],
)
def test_a_missing_plugin_is_recognized_however_the_broker_says_so(
    error: ConnectionCommandInvalid | ChannelPreconditionFailed,
) -> None:
    assert is_about_unknown_type(error)


def test_another_declaration_is_no_missing_plugin() -> None:
    error = "PRECONDITION_FAILED - inequivalent arg 'type' for exchange 'ordersaga' in vhost '/'"
    assert not is_about_unknown_type(ChannelPreconditionFailed(error))
