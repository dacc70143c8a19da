"""How long a publisher waits for its channel: as long as the broker decides, and then for its patience."""

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from shared.bus.amqp.confirms import ConfirmTimes, Pending
from shared.bus.amqp.publications import MOST_UNDECIDED, Publications
from shared.bus.amqp.wire import TappedTransport
from shared.errors import BusUnavailableError
from tests.support.virtual_time import run_in_virtual_time

PATIENCE = 5.0
LONG = 60.0


class Wire:
    """What a channel writes to; the number of publications that were written."""

    def __init__(self) -> None:
        self.written = 0
        self.has_room = asyncio.Event()
        self.has_room.set()

    def tap(self, number: int, tap: object) -> None:
        """Accept the channel."""

    def write(self, frames: bytes) -> bool:
        self.written += len(frames)  # a publication is one byte here
        return True

    async def drain(self) -> None:
        """Wait while the socket is full."""
        await self.has_room.wait()


def channel() -> tuple[Publications, Wire]:
    underlying: Any = SimpleNamespace(
        number=1, connection=SimpleNamespace(connection_tune=SimpleNamespace(frame_max=0))
    )
    wire = Wire()
    return Publications(cast("Any", None), underlying, cast("TappedTransport", wire), ConfirmTimes()), wire


def begin(publications: Publications, count: int, patience: float = LONG) -> tuple[Pending, asyncio.Task[None]]:
    pending = Pending([str(number) for number in range(count)])
    return pending, asyncio.create_task(publications.publish([b"."] * count, pending, patience))


async def until_written(wire: Wire, count: int) -> None:
    async with asyncio.timeout(LONG):
        while wire.written < count:
            await asyncio.sleep(0)


def test_no_more_are_written_than_the_broker_may_be_behind_and_the_rest_follows_its_confirms() -> None:
    async def work() -> None:
        publications, wire = channel()
        _, publishing = begin(publications, 2 * MOST_UNDECIDED + 1)
        await until_written(wire, MOST_UNDECIDED)
        for _ in range(100):
            await asyncio.sleep(0)
        assert wire.written == MOST_UNDECIDED
        publications.confirmed(MOST_UNDECIDED, all_up_to=True)
        await until_written(wire, 2 * MOST_UNDECIDED)
        publications.confirmed(2 * MOST_UNDECIDED, all_up_to=True)
        await until_written(wire, 2 * MOST_UNDECIDED + 1)
        publications.confirmed(2 * MOST_UNDECIDED + 1, all_up_to=True)
        await publishing

    run_in_virtual_time(work())


def test_a_slow_broker_has_the_time_that_many_publications_need() -> None:
    async def work() -> None:
        publications, wire = channel()
        loop = asyncio.get_running_loop()
        began = loop.time()
        _, publishing = begin(publications, 10 * MOST_UNDECIDED, PATIENCE)
        for window in range(1, 11):
            await until_written(wire, window * MOST_UNDECIDED)
            await asyncio.sleep(PATIENCE - 1)
            publications.confirmed(window * MOST_UNDECIDED, all_up_to=True)
        await publishing
        assert loop.time() - began > 2 * PATIENCE  # else the test shows nothing

    run_in_virtual_time(work())


def test_a_channel_that_works_too_long_on_each_publication_is_given_up() -> None:
    async def work() -> None:
        publications, wire = channel()
        loop = asyncio.get_running_loop()
        began = loop.time()
        _, publishing = begin(publications, MOST_UNDECIDED, PATIENCE)
        await until_written(wire, MOST_UNDECIDED)
        tag = 0
        while not publishing.done():
            await asyncio.sleep(PATIENCE / 4)
            tag += 1
            publications.confirmed(tag, all_up_to=False)
        with pytest.raises(TimeoutError):
            await publishing
        assert loop.time() - began < 2 * PATIENCE

    run_in_virtual_time(work())


def test_confirms_of_others_do_not_keep_a_publisher_waiting_whose_queue_is_silent() -> None:
    async def work() -> None:
        publications, wire = channel()
        silent, publishing = begin(publications, 1, PATIENCE)
        await until_written(wire, 1)
        tag = 1
        while not publishing.done():
            _, other = begin(publications, 1)
            tag += 1
            await until_written(wire, tag)
            await asyncio.sleep(PATIENCE / 10)
            publications.confirmed(tag, all_up_to=False)
            await other
        with pytest.raises(TimeoutError):
            await publishing
        assert silent.undecided == 1

    run_in_virtual_time(work())


def test_who_waits_to_be_written_gives_up_a_silent_channel_too() -> None:
    async def work() -> None:
        publications, wire = channel()
        _, first = begin(publications, MOST_UNDECIDED)
        await until_written(wire, MOST_UNDECIDED)
        _, publishing = begin(publications, 1, PATIENCE)
        with pytest.raises(TimeoutError):
            await publishing
        assert wire.written == MOST_UNDECIDED
        first.cancel()

    run_in_virtual_time(work())


def test_a_full_socket_keeps_nobody_waiting_for_ever() -> None:
    async def work() -> None:
        publications, wire = channel()
        wire.has_room.clear()
        _, first = begin(publications, MOST_UNDECIDED, PATIENCE)
        await until_written(wire, 1)
        publications.lost("gone")  # so nothing is undecided any more
        _, second = begin(publications, 1, PATIENCE)
        for publishing in (first, second):
            with pytest.raises((TimeoutError, BusUnavailableError)):
                await publishing

    run_in_virtual_time(work())


def test_a_publisher_that_is_cancelled_leaves_nothing_behind(caplog: pytest.LogCaptureFixture) -> None:
    async def work() -> None:
        publications, wire = channel()
        _, first = begin(publications, 2 * MOST_UNDECIDED)
        _, second = begin(publications, 1)
        await until_written(wire, MOST_UNDECIDED)
        for publishing in (second, first):
            publishing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await publishing
        publications.lost("gone")
        async with asyncio.timeout(LONG / 2):
            await publications.finish(LONG)

    run_in_virtual_time(work())
    assert not caplog.records  # such as an exception of a future that was never retrieved


def test_a_lost_channel_ends_all_who_wait() -> None:
    async def work() -> None:
        publications, wire = channel()
        _, first = begin(publications, 2 * MOST_UNDECIDED)
        _, second = begin(publications, 1)
        await until_written(wire, MOST_UNDECIDED)
        publications.lost("gone")
        for publishing in (first, second):
            with pytest.raises(BusUnavailableError, match="gone"):
                await publishing

    run_in_virtual_time(work())
