"""What a look at servers and services means for incidents."""

import ast
import asyncio
import itertools
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from unittest.mock import Mock

import pytest

from operations.console import outages
from operations.console.incident_watch import _STATES, _of_check
from operations.console.outages import BREAKER, Check, StackChecks
from operations.console.upstream import Health

NOW = datetime(2026, 1, 31, 9, 30, tzinfo=UTC)
AWAY = [{}, {"MongoDB": "x"}, {"RabbitMQ": "x"}, {"MongoDB": "x", "RabbitMQ": "x"}]
PARTS = (BREAKER, "mongodb", "rabbitmq", "consumer", "outbox")


def healths() -> Iterator[Health]:
    """Everything that a service can say of itself, as far as it matters here."""
    yield Health("it refuses connections")
    for number in range(len(PARTS) + 1):
        for parts in itertools.combinations(PARTS, number):
            yield Health(None, dict.fromkeys(parts, "x"))


def test_every_runbook_of_an_outage_has_a_state() -> None:
    source = Path(outages.__file__)
    texts = {node.value for node in ast.walk(ast.parse(source.read_text())) if isinstance(node, ast.Constant)}
    runbooks = {path.stem for path in (source.parents[2] / "docs/runbooks").glob("*.md")}
    assert texts & runbooks == set(_STATES)


@pytest.mark.parametrize("away", AWAY, ids=" and ".join)
def test_an_open_breaker_is_a_subject_of_its_own(away: dict[str, str]) -> None:
    for health in healths():
        seen = {each.subject: each for each in _of_check(Check(away, {"payment": health}), NOW)}
        if health.why is None:
            assert seen["breaker/payment"].state == ("open" if BREAKER in health.down else "closed")
            without = Health(None, {part: why for part, why in health.down.items() if part != BREAKER})
            alone = {each.subject: each for each in _of_check(Check(away, {"payment": without}), NOW)}
            assert seen["service/payment"].state == alone["service/payment"].state
        else:
            assert seen["service/payment"].state == "down"


async def test_pages_and_incidents_share_a_check_and_two_looks_never_do(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = itertools.count(1)

    async def check(_: object) -> Check:
        await asyncio.sleep(0)
        return Check({}, {"order": Health(f"check {next(numbers)}")})

    monkeypatch.setattr(outages, "check", check)
    checks = StackChecks(Mock())
    first, same = await asyncio.gather(checks.latest(), checks.latest())
    assert first is same is await checks.latest()
    assert first.healths["order"].why == "check 1"
    second = await checks.latest(after=first.ended)
    assert second.healths["order"].why == "check 2"
    assert second.ended > first.ended
    monkeypatch.setattr(outages, "FRESH_SECONDS", -1.0)
    assert (await checks.latest()).healths["order"].why == "check 3"
