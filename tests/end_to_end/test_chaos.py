"""`ordersaga chaos`: some faults on a stack of its own, ended by ctrl-C, and some on a cluster."""

import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from operations.stack.processes import find_marked
from tests.support.eventually import eventually

ROOT = Path(__file__).parents[2]
WITHIN = 600
"""Seconds that a busy machine may take."""
CHEAP = "order-killed,queue-deleted,memory-alarm"
"""Kinds of faults that are over soon, as no server has to start again; a round has each of them once."""


class Run:
    """A run of chaos: what it prints goes to files."""

    def __init__(self, home: Path, *words: str) -> None:
        self.home = home
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("ORDERSAGA_")}
        # Settings of the user must not reach the stack: orders would fail with this one.
        settings = {"ORDERSAGA_MONGODB_URL": "mongodb://127.0.0.1:1/", "TMPDIR": str(home), "PYTHONPATH": str(ROOT)}
        with (home / "out").open("w") as out, (home / "err").open("w") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "operations.cli", "chaos", "--json", *words],
                env={**inherited, **settings},
                cwd=home,
                stdout=out,
                stderr=err,
                process_group=0,
            )

    @property
    def told(self) -> str:
        return (self.home / "err").read_text()

    @property
    def faults(self) -> list[str]:
        """The lines about the faults that have happened."""
        return re.findall(r"^\d+.*recovery.*$", self.told, re.MULTILINE)

    async def report(self) -> dict[str, Any]:
        """Wait for the end; return the report."""
        status = await asyncio.to_thread(self.process.wait, WITHIN)
        text = (self.home / "out").read_text()
        assert text, self.told
        report: dict[str, Any] = json.loads(text)
        assert (status == 0) is report["ok"], (status, self.told)
        return report

    def assert_gone(self) -> None:
        """Nothing is left of the stack."""
        (directory,) = re.findall(r"starting the stack in (\S+)", self.told)
        assert not Path(directory).exists()
        assert find_marked(Path(directory)) == []


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Run]]:
    """Start runs; one that a failed test leaves is interrupted, twice, as it would judge first."""
    started: list[Run] = []

    def begin(*words: str) -> Run:
        started.append(Run(tmp_path, *words))
        return started[-1]

    yield begin
    for run in started:
        for _ in range(2):
            with contextlib.suppress(ProcessLookupError):
                run.process.send_signal(signal.SIGINT)
        run.process.wait(120)


def assert_nothing_is_wrong(report: dict[str, Any], run: Run) -> None:
    wrong = ("findings", "notBack", "never", "audit")
    assert report["ok"], ({name: report[name] for name in wrong}, run.told)
    assert report["findings"] == []
    assert report["audited"] >= report["accepted"] > 0
    assert report["deadLetters"]["open"] == 0
    assert report["done"] == len(report["hits"]) == report["kinds"][-1]["hits"]


async def test_faults_on_single_servers_until_it_is_interrupted(start: Callable[..., Run]) -> None:
    run = start("--seed", "1", "--rate", "2", "--only", CHEAP)
    await eventually(lambda: len(run.faults) >= 3, WITHIN, "three faults")
    run.process.send_signal(signal.SIGINT)
    report = await run.report()
    assert_nothing_is_wrong(report, run)
    assert report["end"] == "interrupted"
    assert not report["cluster"]
    assert report["availability"]["requests"] >= report["accepted"]
    assert {hit["fault"] for hit in report["hits"]} == set(CHEAP.split(","))
    assert all((hit["measuredFrom"] == "repair") == (hit["lastedSeconds"] > 0) for hit in report["hits"])
    run.assert_gone()


@pytest.mark.extended
async def test_faults_on_a_cluster(start: Callable[..., Run]) -> None:
    run = start("--cluster", "--faults", "8", "--minutes", "30", "--seed", "1", "--rate", "3")
    report = await run.report()
    assert_nothing_is_wrong(report, run)
    assert report["cluster"]
    assert report["done"] == 8
    run.assert_gone()
