"""People read why a server cannot be used in words; clients never get an address, a time-out or the name of a class."""

import httpx
import pytest
from aiormq.exceptions import AMQPConnectionError
from pymongo.errors import AutoReconnect, NotPrimaryError, OperationFailure, ServerSelectionTimeoutError

from operations.errors import UnreachableError
from shared.errors import BusUnavailableError
from shared.outage_words import in_words, with_detail

REFUSED = "db-1.internal:27017: [Errno 111] Connection refused"
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
        (ConnectionRefusedError(111, "Connect call failed ('10.0.0.7', 5672)"), "it refuses connections"),
        (AMQPConnectionError("ACCESS_REFUSED - Login was refused using PLAIN"), "it refuses the user or the password"),
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
    ],
)
def test_the_cause_is_in_words(error: Exception | str, words: str) -> None:
    assert in_words(error) == words
    assert in_words(in_words(error)) == words
    assert in_words(UnreachableError(f"MongoDB does not answer: {with_detail(error)}")) == (
        f"MongoDB does not answer: {words}"
    )


def test_a_terminal_gets_the_words_first_and_then_what_the_driver_said() -> None:
    assert with_detail(ServerSelectionTimeoutError(NO_MEMBERS)) == f"it refuses connections ({REFUSED})"
    assert with_detail(TimeoutError()) == "it does not answer in time"
    said = with_detail(ConnectionError("amqp://ann:secret@broker/ Connection refused"))
    assert said == "it refuses connections (amqp://ann:***@broker/ Connection refused)"
    assert with_detail("it does not speak TLS on this port") == "it does not speak TLS on this port"
