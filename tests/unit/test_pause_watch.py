"""A process follows the pauses of its inbox, also without its database and without the broker."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest
from pymongo.errors import ServerSelectionTimeoutError

from operations.commands.stack_display import print_processes
from operations.commands.terminal import open_console
from operations.stack.services import read_pause
from operations.stack.state import ProcessState
from operations.stack.status import ProcessStatus
from shared.bus.metrics import CONSUMER_PAUSED
from shared.bus.publisher import Publisher
from shared.contracts import ConsumerPausesChanged, Message
from shared.pausing.pause import Pause
from shared.pausing.records import PauseRecord, PauseRecords
from shared.pausing.watch import PauseWatch
from shared.services import NOTIFICATION, PAYMENT, Service

NOW = datetime(2026, 1, 31, 9, 30, tzinfo=UTC)
PAUSED = PauseRecord("payment", NOW, (Pause(NOW),))


class Stored:
    """The records of one service; None while the database is away."""

    def __init__(self) -> None:
        self.record: PauseRecord | None = None
        self.is_away = False

    async def find(self, _service: str) -> PauseRecord | None:
        if self.is_away:
            raise ServerSelectionTimeoutError("away")
        return self.record

    async def note_announced(self, record: PauseRecord, now: datetime) -> None:
        if self.record is not None and self.record.changed_at == record.changed_at:
            self.record = replace(record, announced_at=now)


class Sent:
    def __init__(self) -> None:
        self.messages: list[ConsumerPausesChanged] = []
        self.can_publish = True
        self.broker = asyncio.Event()
        self.broker.set()

    async def send(self, messages: Sequence[Message]) -> None:
        await self.broker.wait()
        self.messages += cast("list[ConsumerPausesChanged]", messages)


class Watched:
    """One process."""

    def __init__(self, service: Service = PAYMENT) -> None:
        self.stored, self.sent, self.set = Stored(), Sent(), list[bool]()
        self.broker = self.sent.broker
        self.now = NOW
        self.watch = PauseWatch(
            service,
            cast("PauseRecords", self.stored),
            self._set_paused,
            cast("Publisher", self.sent),
            lambda: self.now,
        )

    async def _set_paused(self, paused: bool) -> None:
        await self.broker.wait()
        self.set.append(paused)

    async def look(self) -> None:
        """Look once, and wait for what follows from it."""
        await self.watch.look()
        await asyncio.gather(*self.watch._tasks.values())

    @property
    def gauge(self) -> Any:
        return CONSUMER_PAUSED.labels(PAYMENT.inbox)._value.get()


@pytest.fixture
def watched() -> Watched:
    return Watched()


async def test_a_process_that_starts_in_a_pause_knows_it_before_it_consumes(watched: Watched) -> None:
    watched.stored.record = PAUSED
    assert not watched.watch.known.is_set()
    await watched.look()
    assert watched.watch.known.is_set()
    assert watched.set == [True]
    assert watched.gauge == 1


async def test_without_its_database_a_process_keeps_its_state(watched: Watched) -> None:
    watched.stored.record = PAUSED
    await watched.look()
    watched.stored.is_away = True
    with pytest.raises(ServerSelectionTimeoutError):
        await watched.look()
    assert watched.watch.shown == (NOW, None)
    assert watched.set == [True]
    watched.stored.is_away, watched.stored.record = False, PauseRecord("payment", NOW, (Pause(NOW, ended_at=NOW),))
    await watched.look()
    assert watched.set == [True, False]
    assert watched.gauge == 0


async def test_the_planned_end_needs_nobody(watched: Watched) -> None:
    watched.stored.record = PauseRecord("payment", NOW, (Pause(NOW, until=NOW + timedelta(seconds=60)),))
    await watched.look()
    watched.now += timedelta(seconds=60)
    await watched.look()
    assert watched.set == [True, False]
    assert watched.watch.shown is None


async def test_a_change_is_told_once_the_broker_takes_it(watched: Watched) -> None:
    watched.stored.record, watched.sent.can_publish = PAUSED, False
    await watched.look()
    assert watched.sent.messages == []
    watched.sent.can_publish = True
    await watched.look()
    await watched.look()
    (told,) = watched.sent.messages
    assert (told.service, [pause.since for pause in told.pauses]) == ("payment", [NOW])


async def test_a_broker_that_does_not_answer_delays_neither_what_is_shown_nor_the_next_look(watched: Watched) -> None:
    watched.broker.clear()
    watched.stored.record = PAUSED
    await watched.watch.look()
    assert watched.watch.shown == (NOW, None)
    assert watched.gauge == 1
    assert not watched.watch.known.is_set(), "it may not consume yet"
    later = NOW + timedelta(seconds=1)
    watched.stored.record = PauseRecord("payment", later, (Pause(NOW, ended_at=NOW),))
    await watched.watch.look()
    assert watched.watch.shown is None
    assert watched.set == []
    watched.broker.set()
    await watched.look()
    await watched.look()
    assert watched.set[-1] is False
    assert len(watched.sent.messages) == 2


async def test_services_that_no_order_waits_for_tell_nobody() -> None:
    watched = Watched(NOTIFICATION)
    watched.stored.record = replace(PAUSED, service="notification")
    await watched.look()
    assert watched.set == [True]
    assert watched.sent.messages == []


@pytest.mark.parametrize(
    ("until", "words"), [(None, "until it is resumed"), ("2026-01-31T10:00:00.000Z", "until 2026-01-31T10:00:00.000Z")]
)
def test_status_names_what_is_paused(until: str | None, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    told = json.dumps({"status": "ready", "paused": {"since": "2026-01-31T09:30:00.000Z", "until": until}})
    paused = read_pause(told.encode())
    assert paused == f"since 2026-01-31T09:30:00.000Z, {words}"
    print_processes(open_console(), [ProcessStatus(ProcessState("payment", "http://x"), None, None, paused)])
    assert f"the consumption of payment is paused {paused}; `ordersaga pauses` says why" in capsys.readouterr().out
    for other in (b'{"status": "ready"}', b"not JSON", b"[]"):
        assert read_pause(other) is None
