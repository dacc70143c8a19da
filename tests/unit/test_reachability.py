"""Whether a server answers is known within seconds, also within an operation that may take long."""

import asyncio

import pymongo
import pytest

from operations.reading import reachability

NOWHERE = "127.0.0.1:1"


async def test_a_server_that_is_away_is_known_within_seconds_however_long_the_operation_may_take(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reachability, "TIMEOUT_SECONDS", 0.2)
    with pymongo.timeout(60):
        checked = asyncio.create_task(reachability.mongodb_missing(f"mongodb://{NOWHERE}/"))
    done, _ = await asyncio.wait({checked}, timeout=30)
    assert done
    reason = checked.result()
    assert reason is not None
    assert reason.startswith(f"does not answer: it refuses connections ({NOWHERE}: ")


async def test_a_broker_that_is_away_is_named() -> None:
    reason = await reachability.amqp_missing(f"amqp://guest:secret@{NOWHERE}/")
    assert reason is not None
    assert reason.startswith("does not answer: it refuses connections (")
    assert "secret" not in reason
