"""How a service stops: whatever is in progress has the same time, however quickly the rest ends."""

import asyncio
from typing import Any

import pytest
import structlog

from shared import service
from shared.service import Parts, _RunningService


class Stopping:
    """Something that takes a while to stop."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.within = 0.0
        self.has_stopped = False
        self.should_exit = False

    async def stop(self, within: float) -> None:
        self.within = within
        await asyncio.sleep(self._seconds)
        self.has_stopped = True

    async def close(self) -> None:
        pass


async def shut_down(other: Stopping, consumer: Stopping) -> list[str]:
    """Stop a service that consists of these; return the tasks that were abandoned."""
    running: Any = object.__new__(_RunningService)
    running._parts = Parts({}, None, {})  # type: ignore[arg-type]
    running._other, running._consumer, running._bus = other, consumer, Stopping(0)
    running._prepared, running._stopping, running._close_database = True, asyncio.Event(), Stopping(0).close
    http, ended = Stopping(0), asyncio.create_task(asyncio.sleep(0))
    with structlog.testing.capture_logs() as logs:
        await running._shut_down(http, ended, ended)
    assert http.should_exit
    return [line["task"] for line in logs if "abandoned" in line["event"]]


async def test_an_idle_consumer_leaves_requests_their_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "GRACE_SECONDS", 60.0)
    other = Stopping(seconds=2 * service.ABANDON_SECONDS)
    assert await shut_down(other, Stopping(0)) == []
    assert other.has_stopped
    assert other.within == 60.0


async def test_what_does_not_end_is_abandoned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "GRACE_SECONDS", 0.05)
    monkeypatch.setattr(service, "ABANDON_SECONDS", 0.05)
    assert sorted(await shut_down(Stopping(3600), Stopping(3600))) == ["consumer", "other server"]
