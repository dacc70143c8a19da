"""What differs between a broker and this release, in words; and how moved messages are addressed."""

from collections.abc import Mapping
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from operations.commands.migrate import show
from operations.migration import Examination, MigrationReport, QueueState
from operations.migration.differences import Difference, Value, adopt, in_words, read
from operations.migration.moving import away, back
from operations.recovery import RecoveryReport
from shared import topology
from shared.bus import Delivery
from shared.topology import BY_QUEUE_NAME, DEAD_LETTERS, EXCHANGE, INBOX_EXCHANGE, ORDER_INBOX, Queue

INBOX, RETRY = (
    next(queue for queue in topology.queues() if queue.name == name)
    for name in (ORDER_INBOX, topology.retry_queues(ORDER_INBOX)[0])
)

REFUSALS = {
    "received '50' but current is '20'": ("x-a is 20, this release declares 50", 20),
    "received none but current is the value '20' of type 'byte'": ("x-a is 20, this release does not set it", 20),
    "received the value 'q' of type 'longstr' but current is none": ("x-a is not set, this release declares q", None),
    "received 'classic' but current is 'quorum'": ("x-a is quorum, this release declares classic", "quorum"),
    "received the value '1' of type 'long' but current is the value '7' of type 'longstr'": (
        "x-a is 7, this release declares 1",
        "7",
    ),
}
"""What RabbitMQ 3.10 says of an argument."""


def refusal(words: str, argument: str = "x-a") -> str:
    return f"PRECONDITION_FAILED - inequivalent arg '{argument}' for queue 'order.inbox' in vhost '/': {words}"


@pytest.mark.parametrize(("words", "expected"), REFUSALS.items())
def test_a_refusal_is_read(words: str, expected: tuple[str, Value]) -> None:
    found = read(refusal(words))
    assert found is not None
    assert (str(found), found.theirs) == expected
    assert type(found.theirs) is type(expected[1])


def test_another_refusal_is_shown_as_it_is() -> None:
    words = "PRECONDITION_FAILED - invalid arg 'x-delivery-limit' for queue 'a'"
    assert (read(words), in_words(words)) == (None, words)


VALUES = st.integers(-(2**63), 2**63 - 1) | st.text().filter(lambda text: "but current is" not in text)


@given(VALUES, VALUES)
def test_values_of_any_kind_are_read_back(ours: int | str, theirs: int | str) -> None:
    described = (f"the value '{each}' of type '{_type(each)}'" for each in (ours, theirs))
    assert read(refusal("received {} but current is {}".format(*described))) == Difference("x-a", ours, theirs)


def _type(value: int | str) -> str:
    return "long" if isinstance(value, int) else "longstr"


ARGUMENTS = st.dictionaries(st.sampled_from([f"x-{letter}" for letter in "abcde"]), st.integers(0, 3))


@given(ARGUMENTS, ARGUMENTS)
def test_adopting_each_difference_ends_with_the_arguments_of_the_broker(
    ours: dict[str, Value], theirs: dict[str, Value]
) -> None:
    queue: Queue | None = Queue("q", (), ours)
    names = sorted(name for name in {*ours, *theirs} if ours.get(name) != theirs.get(name))
    for name in names:
        assert queue is not None
        queue = adopt(queue, Difference(name, ours.get(name), theirs.get(name)))
    assert queue == Queue("q", (), theirs)


def test_what_is_no_argument_or_was_adopted_is_not_adopted() -> None:
    assert adopt(INBOX, Difference("durable", "true", "false")) is None
    assert adopt(INBOX, Difference("x-delivery-limit", 7, topology.DELIVERY_LIMIT)) is None


def delivery(
    exchange: str, routing_key: str, headers: Mapping[str, object], user: str | None = "operations"
) -> Delivery:
    return Delivery(b"{}", ORDER_INBOX, exchange, routing_key, "stock.reserved", "o1", "m1", True, headers, None, user)


@given(st.sampled_from([EXCHANGE, INBOX_EXCHANGE, ""]), st.sampled_from([INBOX, RETRY]), st.booleans())
def test_a_message_is_addressed_so_that_it_is_read_as_before(exchange: str, queue: Queue, has_copies: bool) -> None:
    by_name = exchange in BY_QUEUE_NAME and queue is INBOX
    routing_key = queue.name if by_name else "stock.reserved"
    headers: dict[str, object] = {"x-attempts": 2} | (
        {"CC": ["payment.inbox"], "x-delivery-count": 3} if has_copies else {}
    )

    there = away(delivery(exchange, routing_key, headers), queue)
    again = back(delivery(there.exchange, there.routing_key, there.headers), queue)

    assert there.exchange == topology.migration_exchange(queue).name
    assert again.exchange == (INBOX_EXCHANGE if by_name else there.exchange)
    assert (again.routing_key, again.type, again.message_id) == (routing_key, "stock.reserved", "m1")
    assert (again.headers, again.mandatory) == ({"x-attempts": 2}, True)


def test_a_message_that_its_sender_may_not_send_by_name_is_still_rejected_afterwards() -> None:
    there = away(delivery("", ORDER_INBOX, {}, user="payment"), INBOX)
    again = back(delivery(there.exchange, there.routing_key, {}), INBOX)
    assert again.exchange not in BY_QUEUE_NAME
    assert again.routing_key != "stock.reserved"


@pytest.mark.parametrize("queue", topology.queues(), ids=lambda queue: queue.name)
def test_a_migration_queue_gets_what_its_queue_gets_and_loses_nothing(queue: Queue) -> None:
    waiting = topology.migration_queue(queue)
    assert waiting.bindings == queue.bindings
    assert waiting.arguments["x-queue-type"] == "quorum"
    assert "x-message-ttl" not in waiting.arguments
    dead_letters = None if queue.name == DEAD_LETTERS else DEAD_LETTERS
    assert waiting.arguments.get("x-dead-letter-exchange") == dead_letters


def shown(report: MigrationReport, *, done: bool = True) -> str:
    console = Console(width=300)
    with console.capture() as capture:
        show(report, console, done=done)
    return capture.get()


def test_a_report_says_what_differs_what_was_done_and_what_is_left() -> None:
    found = Examination(queues=[QueueState(INBOX, ["x-delivery-limit is 20, this release declares 50"])])
    assert (
        shown(MigrationReport(found), done=False) == "order.inbox: x-delivery-limit is 20, this release declares 50\n"
    )
    assert "order.inbox: replaced, 1 message moved\n" in shown(MigrationReport(found, {ORDER_INBOX: 1}))
    again = MigrationReport(found, {ORDER_INBOX: 1}, {ORDER_INBOX: "x-delivery-limit is 20"})
    assert not again.ok
    assert "order.inbox: still declared by a running older release (x-delivery-limit is 20)" in shown(again)
    unsent = RecoveryReport(datetime.now(UTC), unsendable=["o1"])
    assert "some orders could not be sent again: `ordersaga recover` names them" in shown(
        MigrationReport(found, {ORDER_INBOX: 1}, recovery=unsent)
    )
    assert f"The {len(topology.queues())} queues are as this release declares them" in shown(
        MigrationReport(Examination())
    )
