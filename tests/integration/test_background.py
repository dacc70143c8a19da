"""A loop logs a missing permission once, although MongoDB never gives the same answer twice."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from shared.background import run_periodically
from shared.database import Database
from tests.support.builders import connected
from tests.support.eventually import eventually
from tests.support.guarded_mongodb import guarded_mongodb, user_with
from tests.support.tasks import end_tasks

NAME = "ordersaga_records"


@pytest.fixture
async def administered(tmp_path: Path) -> AsyncIterator[tuple[Database, Database]]:
    """A database with an administrator's rights, and the same with read-only rights."""
    async with guarded_mongodb(tmp_path) as url_for, connected(url_for("root"), NAME) as ours:
        user = await user_with("read", ours)
        async with connected(url_for(user), NAME) as theirs:
            yield ours, theirs


async def test_a_missing_permission_is_logged_once_with_its_traceback_and_again_when_it_changes(
    administered: tuple[Database, Database],
) -> None:
    ours, theirs = administered
    runs = 0

    async def insert() -> None:
        await theirs["records"].insert_one({"run": runs})

    async def update() -> None:
        await theirs["records"].update_one({"run": runs}, {"$set": {"seen": True}})

    write: Callable[[], Awaitable[None]] = insert

    async def work() -> None:
        nonlocal runs
        runs += 1
        await write()

    async def run_three_times(then: Callable[[], Awaitable[None]]) -> None:
        nonlocal write
        write, goal = then, runs + 3
        await eventually(lambda: runs >= goal, within=60)

    with capture_logs() as logs:
        loop = asyncio.create_task(run_periodically(work, every=0.01, name="records"))
        await run_three_times(insert)
        (log,) = logs
        assert (log["log_level"], log["work"]) == ("error", "records")
        assert 'not authorized on ordersaga_records to execute command { insert: "records"' in log["error"]
        assert "Traceback" in log["exception"]

        await run_three_times(update)
        assert [log["log_level"] for log in logs] == ["error", "error"]
        assert '{ update: "records"' in logs[1]["error"]

        await ours.client.admin.command("grantRolesToUser", f"u{NAME}", roles=[{"role": "readWrite", "db": NAME}])
        await eventually(lambda: len(logs) == 3, within=60)
        assert logs[2]["log_level"] == "info"
        await run_three_times(insert)
        assert len(logs) == 3
        await end_tasks(loop)
