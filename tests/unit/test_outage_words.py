"""People read why a server cannot be used in words; clients never get an address, a time-out or the name of a class."""

import httpx
import pytest
from aiormq.exceptions import AMQPConnectionError, ChannelAccessRefused
from pymongo.errors import AutoReconnect, NotPrimaryError, OperationFailure, ServerSelectionTimeoutError

from operations.errors import UnreachableError
from shared.bus.amqp.confirms import MessageRefusedError
from shared.errors import BusUnavailableError, StartError
from shared.outage_words import in_words, with_detail

REFUSED = "db-1.internal:27017: [Errno 111] Connection refused"
NO_ACCESS = "access to queue 'order.inbox' in vhost '/' refused for user 'order'"
FULL = "RabbitMQ refused a message (a queue is full or away)"
NO_MEMBERS = (
    f"{REFUSED} (configured timeouts: socketTimeoutMS: 20000.0ms, connectTimeoutMS: 20000.0ms), Timeout: 5.0s, "
    "Topology Description: <TopologyDescription id: 66, servers: [<ServerDescription ('db-1.internal', 27017)>]>"
)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ServerSelectionTimeoutError(NO_MEMBERS), "it refuses connections"),
        (
            ServerSelectionTimeoutError("No primary available for writes, Timeout: 3s"),
            "it has no primary at the moment",
        ),
        (NotPrimaryError("not primary, full error: {'ok': 0.0}"), "it has no primary at the moment"),
        (AutoReconnect("db-1.internal:27017: connection closed"), "it closed the connection"),
        (AutoReconnect("db-1.internal:27017: timed out (configured timeouts: x)"), "it does not answer in time"),
        (OperationFailure("Authentication failed.", 18), "it refuses the user or the password"),
        (OperationFailure("not authorized on shop to execute command { find: 'o' }", 13), "its user may not do that"),
        (ConnectionRefusedError(111, "Connect call failed ('10.0.0.7', 5672)"), "it refuses connections"),
        (AMQPConnectionError("ACCESS_REFUSED - Login was refused using PLAIN"), "it refuses the user or the password"),
        (ChannelAccessRefused(f"ACCESS_REFUSED - {NO_ACCESS}"), "its user may not do that"),
        ("NOT_ALLOWED - access to vhost '/' refused for user 'order'", "its user may not do that"),
        (
            f"this user may not declare the topology, which deployer may (ACCESS_REFUSED - {NO_ACCESS})",
            "this user may not declare the topology, which deployer may",
        ),
        (BusUnavailableError("RabbitMQ did not answer in 5 s for 3 of 3 confirms"), "it does not answer in time"),
        ("RabbitMQ did not answer in 10 s whether the topology is whole", "it does not answer in time"),
        (
            BusUnavailableError("AMQPConnectionError: [Errno -2] Name or service not known"),
            "its host name is not known",
        ),
        (BusUnavailableError("the node has said nothing for 4 s"), "it does not answer in time"),
        (httpx.ReadTimeout(""), "it does not answer in time"),
        (httpx.ConnectError("All connection attempts failed"), "it cannot be reached"),
        (TimeoutError(), "it does not answer in time"),
        (RuntimeError(), "it cannot be used"),
        ("RabbitMQ has blocked publishing: low on memory", "RabbitMQ has blocked publishing: low on memory"),
        ("the queue order.inbox does not exist", "the queue order.inbox does not exist"),
        (MessageRefusedError(FULL), FULL),
        ("MongoDB did not answer: the price is 'high'", "MongoDB did not answer: the price is 'high'"),
        ("SomeError('it is off (for now)')", "it is off (for now)"),
    ],
)
def test_the_cause_is_in_words(error: Exception | str, words: str) -> None:
    assert in_words(error) == words
    assert in_words(in_words(error)) == words
    assert in_words(UnreachableError(f"MongoDB does not answer: {with_detail(error)}")) == (
        f"MongoDB does not answer: {words}"
    )


def test_what_the_driver_of_mongodb_says_is_not_for_clients() -> None:
    said = "Executor error during find command: cannot sort { secret: 1 }"
    assert in_words(OperationFailure(said, 292)) == "it reports an error, which is in the log"
    assert with_detail(OperationFailure(said, 292)) == said


def test_only_text_of_a_driver_is_cut() -> None:
    told = f"RabbitMQ has a different declaration ({'x' * 300}): `ordersaga migrate` replaces the queue"
    for ours in (StartError(told), told):
        assert with_detail(ours) == told
    assert len(with_detail(RuntimeError(told))) == 200


def test_a_terminal_gets_the_words_first_and_then_what_the_driver_said() -> None:
    assert with_detail(ServerSelectionTimeoutError(NO_MEMBERS)) == f"it refuses connections ({REFUSED})"
    assert with_detail(TimeoutError()) == "it does not answer in time"
    said = with_detail(ConnectionError("amqp://ann:secret@broker/ Connection refused"))
    assert said == "it refuses connections (amqp://ann:***@broker/ Connection refused)"
    assert with_detail("it does not speak TLS on this port") == "it does not speak TLS on this port"
