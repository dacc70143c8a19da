"""A server counts as away after repeated failures; slow or failed checks are bounded and do not end the checks."""

import asyncio
from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from shared.readiness import CHECK_INTERVAL_SECONDS, FAILED_CHECKS, OUTDATED_AFTER_SECONDS, ServerCheck
from tests.support.eventually import eventually


class Server:
    """Answers pings or fails on request; the clock stands still until a test moves it."""

    def __init__(self) -> None:
        self.failure: BaseException | None = None
        self.hangs = False
        self.pings = 0
        self.now = 1000.0
        self.check = ServerCheck("server", self._ping, interval=0, timeout=0.01, clock=lambda: self.now)

    async def _ping(self) -> None:
        self.pings += 1
        if self.hangs:
            await asyncio.Event().wait()
        if self.failure is not None:
            raise self.failure


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 2 * OUTDATED_AFTER_SECONDS)), min_size=1, max_size=12))
def test_a_server_is_away_after_failed_checks_in_a_row_until_it_answers_or_the_last_is_outdated(
    steps: list[tuple[bool, float]],
) -> None:
    async def play() -> None:
        server, failed = Server(), 0
        for answers, seconds in steps:
            server.failure = None if answers else OSError("refused")
            await server.check.check()
            failed = 0 if answers else failed + 1
            assert (server.check.unhealthy_reason() is None) is answers
            assert server.check.is_away() is (failed >= FAILED_CHECKS)
            checked_at = server.now
            server.now += seconds
            outdated = server.now - checked_at > OUTDATED_AFTER_SECONDS
            assert server.check.is_away() is (failed >= FAILED_CHECKS and not outdated)

    asyncio.run(play())


async def test_a_server_that_was_never_checked_is_not_reported_as_answering() -> None:
    server = Server()
    assert server.check.unhealthy_reason()
    assert not server.check.is_away()
    await server.check.refresh()
    assert server.check.unhealthy_reason() is None


async def test_a_server_is_checked_again_only_when_the_last_result_is_outdated() -> None:
    server = Server()
    await server.check.check()
    server.now += CHECK_INTERVAL_SECONDS
    await server.check.refresh()
    assert server.pings == 1
    server.now += OUTDATED_AFTER_SECONDS
    await server.check.refresh()
    assert server.pings == 2


async def test_a_check_that_hangs_is_bounded() -> None:
    server = Server()
    server.hangs = True
    await asyncio.wait_for(server.check.check(), 30)
    assert server.check.unhealthy_reason() == "no answer within 0.01 s"


def _more_pings_than(server: Server, number: int) -> Callable[[], bool]:
    return lambda: server.pings > number


async def test_checks_survive_any_error_of_a_driver() -> None:
    server = Server()
    running = asyncio.create_task(server.check.run())
    for failure in (OSError("refused"), asyncio.CancelledError(), ValueError("closed")):
        server.failure = failure
        await eventually(_more_pings_than(server, server.pings + 1), 30)
        assert server.check.is_away()
    server.failure = None
    await eventually(lambda: server.check.unhealthy_reason() is None, 30)
    running.cancel()
    await asyncio.wait({running})
    assert running.cancelled()
