"""Copies of the code with one fault each."""

import contextlib
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PATCHES = sorted(HERE.glob("*.patch"))
PACKAGES = (
    "operations",
    "simulation",
    "shared",
    "order_service",
    "inventory_service",
    "payment_service",
    "provisioning_service",
    "notification_service",
)


@contextlib.contextmanager
def mutated(patch: Path) -> Iterator[Path]:
    """Copy the packages into a temporary directory and apply a patch to them."""
    with tempfile.TemporaryDirectory(prefix="ordersaga-mutant-") as directory:
        copy = Path(directory)
        for package in PACKAGES:
            shutil.copytree(ROOT / package, copy / package, ignore=shutil.ignore_patterns("__pycache__"))
        apply(patch, copy)
        yield copy


def apply(patch: Path, directory: Path) -> None:
    """Apply a patch exactly as it is written: one that finds its place by guessing may put in another fault."""
    command = ["patch", "-p1", "--silent", "--fuzz=0", "--no-backup-if-mismatch", "-i", str(patch)]
    subprocess.run(command, cwd=directory, check=True)
