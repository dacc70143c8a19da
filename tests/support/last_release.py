"""The code of the last release, for tests that run it beside the working tree.

`docs/api/released/commit.txt` names its commit. The tag alone would not do: a clone may have none. The release runs in
the virtual environment of the working tree, which has the libraries of both as long as no dependency was removed.
"""

import asyncio
import io
import subprocess
import sys
import tarfile
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]
COMMIT_FILE = ROOT / "docs/api/released/commit.txt"


class NoReleaseError(Exception):
    """The code of the last release is not in this clone."""


def released_commit() -> str:
    """Return the commit of the last release."""
    return COMMIT_FILE.read_text().strip()


def extract(directory: Path) -> Path:
    """Write the tree of the last release into the directory. Raises NoReleaseError with the reason if it cannot."""
    commit = released_commit()
    try:
        archive = subprocess.run(
            ["git", "-C", ROOT, "archive", "--format=tar", commit], check=True, capture_output=True, timeout=60
        ).stdout
    except FileNotFoundError:
        raise NoReleaseError("git is not installed") from None
    except subprocess.CalledProcessError as error:
        reason = error.stderr.decode(errors="replace").strip()
        raise NoReleaseError(
            f"the last release, commit {commit}, is not in this clone ({reason}): fetch the whole history"
        ) from None
    with tarfile.open(fileobj=io.BytesIO(archive)) as tree:
        tree.extractall(directory, filter="data")
    return directory


def is_used_in(tree: Path) -> bool:
    """Return whether processes that are started in the tree run its code, and not that of the working tree."""
    ask = [sys.executable, "-c", "import shared; print(shared.__file__)"]
    found = subprocess.run(ask, cwd=tree, env={"PYTHONPATH": str(tree)}, check=True, capture_output=True, timeout=60)
    return Path(found.stdout.decode().strip()) == tree / "shared/__init__.py"


class ReleasedProcess:
    """A program of an extracted release; what tests use of `warm_processes.WarmProcess`."""

    def __init__(self, process: asyncio.subprocess.Process, stdout: asyncio.StreamReader) -> None:
        self._process = process
        self.stdout = stdout
        self.pid = process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.returncode

    async def wait(self) -> int:
        return await self._process.wait()

    def send_signal(self, number: int) -> None:
        self._process.send_signal(number)

    def terminate(self) -> None:
        self._process.terminate()


async def start(tree: Path, module: str, environment: Mapping[str, str]) -> ReleasedProcess:
    """Run `python -m module` of the release in the tree, with both outputs in `stdout`."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        module,
        cwd=tree,
        env={**environment, "PYTHONPATH": str(tree)},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    assert process.stdout is not None
    return ReleasedProcess(process, process.stdout)
