"""Lets the simulation find the faults of this directory: `python -m tests.mutants [--seeds N] [NAME...]`."""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.mutants.copies import PATCHES, ROOT, mutated


def main() -> int:
    """Run seeds over a copy of the code for each patch until one fails; return 1 if a fault was not found."""
    options = argparse.ArgumentParser(description="Let the simulation find faults that are put in on purpose.")
    options.add_argument("--seeds", type=int, default=1000, help="how many seeds to try for each fault")
    options.add_argument("--processes", type=int, default=os.cpu_count(), help="how many of them at once")
    options.add_argument("names", nargs="*", help="the faults, by the names of their patches; all without any")
    given = options.parse_args()
    patches = [patch for patch in PATCHES if not given.names or patch.stem in given.names]
    unfound = [patch.stem for patch in patches if not _is_found(patch, given.seeds, given.processes)]
    print(f"{len(patches) - len(unfound)} of {len(patches)} faults found")
    return 1 if unfound else 0


def _is_found(patch: Path, seeds: int, processes: int) -> bool:
    began = time.monotonic()
    with mutated(patch) as copy:
        report = _simulated(copy, seeds, processes)
    is_found, verdict = judged(report["failed"], _fails_without_fault)
    print(f"{patch.stem:<32} {report['seeds']:>5} seeds {time.monotonic() - began:7.1f} s  {verdict}", flush=True)
    return is_found


def judged(failed: Sequence[Mapping[str, Any]], fails_without_fault: Callable[[int], bool]) -> tuple[bool, str]:
    """Return whether the fault was found, and what to say about it: a seed that fails on its own has found nothing."""
    if not failed:
        return False, "NOT FOUND"
    seed = failed[0]["seed"]
    if fails_without_fault(seed):
        return False, f"NOT FOUND: seed {seed} fails without the fault as well"
    return True, f"seed {seed}: {failed[0]['violations'][0][:120]}"


def _fails_without_fault(seed: int) -> bool:
    return bool(_simulated(ROOT, 1, 1, first=seed)["failed"])


def _simulated(copy: Path, seeds: int, processes: int, *, first: int = 0) -> dict[str, Any]:
    command = [sys.executable, "-m", "operations.cli", "simulate", "--seeds", str(seeds), "--first", str(first)]
    done = subprocess.run(
        [*command, "--stop-after", "1", "--processes", str(processes), "--no-shrink", "--json"],
        cwd=copy,
        env={**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    report: dict[str, Any] = json.loads(done.stdout)
    return report


if __name__ == "__main__":
    sys.exit(main())
