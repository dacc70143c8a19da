"""Lets the simulation find the faults of this directory: `python -m tests.mutants [--seeds N] [NAME...]`."""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.mutants.copies import PATCHES, mutated


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
    failed = report["failed"]
    found = f"seed {failed[0]['seed']}: {failed[0]['violations'][0][:120]}" if failed else "NOT FOUND"
    print(f"{patch.stem:<32} {report['seeds']:>5} seeds {time.monotonic() - began:7.1f} s  {found}", flush=True)
    return bool(failed)


def _simulated(copy: Path, seeds: int, processes: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "operations.cli", "simulate", "--seeds", str(seeds), "--stop-after", "1"]
    done = subprocess.run(
        [*command, "--processes", str(processes), "--no-shrink", "--json"],
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
