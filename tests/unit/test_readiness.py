"""A server counts as away after repeated failures; slow or failed checks are bounded and do not end the checks.

A service that was ready is degraded for a while before it is unready.
"""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.readiness import CHECK_INTERVAL_SECONDS, FAILED_CHECKS, OUTDATED_AFTER_SECONDS, Readiness, ServerCheck
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


GRACE = 15.0


class Answering:
    """A database that always answers, so that the readiness depends on what the test sets."""

    async def command(self, _: str) -> None:
        """Answer a ping."""


class Service:
    """The readiness of a service with three parts; the clock stands still until a test moves it."""

    def __init__(self, name: str) -> None:
        self.now = 1000.0
        self.wrong: dict[str, str | None] = {"rabbitmq": "not connected", "consumer": None, "process": None}
        self.wrong["breaker"] = None
        database: Any = Answering()
        self.readiness = Readiness(
            name,
            database,
            {part: lambda part=part: self.wrong[part] for part in self.wrong},  # type: ignore[misc]
            grace=GRACE,
            final={"process"},
            tolerated={"breaker"},
            clock=lambda: self.now,
        )

    async def unready(self, after: float = 0) -> dict[str, str]:
        self.now += after
        return await self.readiness.unready()


@pytest.fixture
def service(unique_id: str) -> Service:
    return Service(unique_id)


async def test_a_service_that_was_never_ready_is_unready_from_the_first_moment(service: Service) -> None:
    assert await service.unready() == {"rabbitmq": "not connected"}
    assert await service.unready(after=GRACE) == {"rabbitmq": "not connected"}


async def test_a_service_that_was_ready_is_degraded_until_an_outage_lasts(service: Service) -> None:
    service.wrong["rabbitmq"] = None
    assert await service.unready() == {}
    assert not service.readiness.outages()
    service.wrong["rabbitmq"] = "not connected"
    assert await service.unready() == {}
    began = service.readiness.outages()["rabbitmq"].since
    service.wrong["rabbitmq"] = "connection refused"
    service.wrong["consumer"] = "waiting"
    assert await service.unready(after=GRACE - 1) == {}
    outages = service.readiness.outages()
    assert (outages["rabbitmq"].why, outages["rabbitmq"].since) == ("connection refused", began)
    assert await service.unready(after=1) == {"rabbitmq": "connection refused", "consumer": "waiting"}


async def test_what_does_not_pass_by_itself_has_no_grace(service: Service) -> None:
    service.wrong["rabbitmq"] = None
    assert await service.unready() == {}
    service.wrong["process"] = "it is stopping"
    assert await service.unready() == {"process": "it is stopping"}


async def test_an_open_breaker_degrades_a_service_and_never_makes_it_unready(service: Service) -> None:
    service.wrong |= {"rabbitmq": None, "breaker": "open"}
    assert await service.unready() == {}, "it has not been ready before"
    assert await service.unready(after=100 * GRACE) == {}
    assert service.readiness.outages().keys() == {"breaker"}


async def test_an_outage_that_ended_does_not_count_for_the_next_one(service: Service) -> None:
    service.wrong["rabbitmq"] = None
    await service.unready()
    for _ in range(3):
        service.wrong["rabbitmq"] = "not connected"
        assert await service.unready(after=GRACE) == {}
        assert service.readiness.outages()
        service.wrong["rabbitmq"] = None
        assert await service.unready(after=GRACE) == {}
        assert not service.readiness.outages()
