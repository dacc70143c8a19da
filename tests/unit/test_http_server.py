"""Limits of connections per process, and the deadlines of a client, without a network."""

from collections.abc import Coroutine
from typing import Any
from unittest.mock import MagicMock

import pytest
from hypothesis import given
from hypothesis import strategies as st
from uvicorn import Config
from uvicorn.server import ServerState

from shared.http_protocol import BoundedProtocol, Limits, OpenConnections
from shared.http_server import OTHER_DESCRIPTORS, connection_limit
from tests.support.http_servers import refused

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


@given(wanted=st.integers(1, 100_000), descriptors=st.integers(2, 200_000))
def test_other_files_keep_their_descriptors(wanted: int, descriptors: int) -> None:
    limit = connection_limit(wanted, descriptors)
    assert 1 <= limit <= wanted
    assert descriptors - limit >= min(OTHER_DESCRIPTORS, descriptors // 2)


def test_the_wanted_connections_are_accepted_if_there_are_enough_descriptors() -> None:
    assert connection_limit(1000, 20_000) == 1000
    assert connection_limit(1000, -1) == 1000
    assert connection_limit(1000, 1024) == 768
    assert connection_limit(1000, 256) == 128


class Connection:
    """One connection of a server, over a transport that only records its calls, on a separate clock."""

    def __init__(self, **limits: Any) -> None:
        self.now = 0.0
        self.transport = MagicMock()
        self.transport.is_closing.side_effect = lambda: self.closed
        self.transport.get_write_buffer_size.return_value = 0
        loop = MagicMock()
        loop.time.side_effect = lambda: self.now
        loop.create_task.side_effect = _never_run
        self._protocol = BoundedProtocol(
            OpenConnections(Limits(connections=10, **limits)),
            config=Config(MagicMock(), lifespan="off", ws="none", log_config=None),
            server_state=ServerState(),
            app_state={},
            _loop=loop,
        )
        self._protocol.connection_made(self.transport)

    @property
    def closed(self) -> bool:
        return bool(self.transport.close.called or self.transport.abort.called)

    def receive(self, data: bytes) -> None:
        self._protocol.data_received(data)

    def answer(self) -> None:
        self._protocol.cycle.response_complete = True
        self._protocol.on_response_complete()

    def after(self, seconds: float) -> "Connection":
        """Let time pass and the server check its connections."""
        self.now += seconds
        self._protocol.close_if_overdue(self.now)
        return self


def _never_run(work: Coroutine[Any, Any, None]) -> MagicMock:
    work.close()
    return MagicMock()


@pytest.fixture
async def connection() -> Connection:
    return Connection(idle_seconds=75, head_seconds=10, body_seconds=30, read_seconds=30)


async def test_the_time_for_a_head_begins_with_each_request(connection: Connection) -> None:
    for _ in range(5):
        connection.receive(GET)
        connection.answer()
        assert not connection.after(74).closed
        connection.receive(GET[:5])
        assert not connection.after(9).closed
        connection.receive(GET[5:])
        assert not connection.after(100).closed
        connection.answer()
    connection.receive(GET[:5])
    assert connection.after(11).closed


async def test_a_connection_is_kept_longer_than_clients_keep_theirs(connection: Connection) -> None:
    before = refused("head_too_slow")
    connection.receive(GET)
    connection.answer()
    connection.receive(b"\r\n")
    assert not connection.after(74).closed
    assert connection.after(2).closed
    assert refused("head_too_slow") == before
    connection.transport.abort.assert_not_called()


async def test_a_connection_without_a_request_is_closed_earlier(connection: Connection) -> None:
    before = refused("head_too_slow")
    assert not connection.after(9).closed
    assert connection.after(2).closed
    assert refused("head_too_slow") == before + 1


async def test_bytes_that_trickle_in_do_not_extend_the_deadline(connection: Connection) -> None:
    for byte in GET[:10]:
        connection.receive(bytes([byte]))
        assert not connection.after(1).closed
    assert connection.after(1).closed


async def test_the_time_for_a_body_ends_with_it(connection: Connection) -> None:
    connection.receive(b"POST / HTTP/1.1\r\nContent-Length: 2\r\n\r\nx")
    assert not connection.after(29).closed
    connection.receive(b"y")
    assert not connection.after(100).closed


async def test_a_pause_in_reading_ends_when_the_client_reads_on(connection: Connection) -> None:
    connection.receive(GET)
    for _ in range(3):
        connection._protocol.pause_writing()
        assert not connection.after(29).closed
        connection._protocol.resume_writing()
    connection._protocol.pause_writing()
    connection.after(31)
    connection.transport.abort.assert_called_once()


async def test_a_client_that_reads_a_large_answer_slowly_gets_all_of_it(connection: Connection) -> None:
    connection.receive(GET)
    connection.transport.get_write_buffer_size.return_value = 1_000_000
    connection._protocol.pause_writing()
    for left in range(930_000, 0, -70_000):
        connection.transport.get_write_buffer_size.return_value = left
        assert not connection.after(29).closed
    # A few bytes now and then do not count.
    connection.transport.get_write_buffer_size.return_value -= 1000
    assert connection.after(31).closed


async def test_a_closed_connection_that_is_not_read_to_its_end_is_aborted(connection: Connection) -> None:
    connection.receive(GET)
    connection.answer()
    connection.transport.close()
    connection.after(0)
    connection.after(31)
    connection.transport.abort.assert_called_once()
