"""Runs the tests of the containers over combinations of versions: `make test-matrix`, matrix.toml.

Each combination runs the same files. It has passed if no test failed and none was skipped. The table at the end has the
versions that the images and Compose themselves name, and an image whose version is not that of its tag fails.
"""

import argparse
import dataclasses
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree as ET

from rich.console import Console
from rich.table import Table

from tests.compose.stack import BASE_IMAGE, ROOT
from tests.support.containers import engine_answers

FILE = Path(__file__).with_name("matrix.toml")
# Without those that take longest: a cluster, several processes of each service, and the pods of deploy/kubernetes,
# whose images are fixed.
TESTS = ("test_compose.py", "test_compose_tls.py", "test_containers.py")
COMPOSE = {"v1": "docker-compose", "v2": "docker compose"}
# What asks an image for its version.
ASKED = {
    "python": ("python", "--version"),
    "rabbitmq": ("rabbitmqctl", "version"),
    "mongo": ("mongod", "--version"),
}
# The first test of a file waits for the build of the image and for the first start of everything.
HANGS = "faulthandler_timeout=1800"
ENGINE_UNREACHABLE = 3
LOG_WIDTH = 140


class VersionError(Exception):
    """An image or a Compose cannot be used; the message says why, in one line."""


@dataclasses.dataclass(frozen=True)
class Combination:
    """One line of the matrix; the images have their public names."""

    name: str
    python: str
    rabbitmq: str
    mongo: str
    compose: str

    @property
    def compose_command(self) -> str:
        """The words of this Compose: those that ORDERSAGA_TEST_COMPOSE_V1 or _V2 names, or the usual ones."""
        return os.environ.get(f"ORDERSAGA_TEST_COMPOSE_{self.compose.upper()}", COMPOSE[self.compose])

    @property
    def environment(self) -> dict[str, str]:
        """What lets the tests use these versions."""
        return {
            BASE_IMAGE: self.python,
            "ORDERSAGA_RABBITMQ_IMAGE": self.rabbitmq,
            "ORDERSAGA_MONGO_IMAGE": self.mongo,
            "ORDERSAGA_TEST_COMPOSE": self.compose_command,
        }


@dataclasses.dataclass(frozen=True)
class Result:
    """How a combination ended: the versions that it had, the counts of tests or what kept them from running."""

    combination: Combination
    versions: tuple[str, ...]
    passed: bool
    what: str
    seconds: float


def combinations(text: str) -> dict[str, Combination]:
    """Return the combinations of matrix.toml by name. Raises TypeError or ValueError for one that is not complete."""
    read = {name: Combination(name, **values) for name, values in tomllib.loads(text).items()}
    for combination in read.values():
        if combination.compose not in COMPOSE:
            raise ValueError(f"{combination.name}: compose is {combination.compose}, not one of {', '.join(COMPOSE)}")
    return read


def version_in(said: str) -> str:
    """Return the first version in what a program says of itself. Raises VersionError."""
    if found := re.search(r"\d+\.\d+(\.\d+)?", said):
        return found[0]
    raise VersionError(f"no version in {said.strip()[:200]!r}")


def is_version_of(version: str, image: str) -> bool:
    """Return whether a version is the one that the tag of an image names, up to the part where the tag ends."""
    named = version_in(image.rpartition(":")[2]).split(".")
    return version.split(".")[: len(named)] == named


def versions_of(combination: Combination) -> tuple[str, ...]:
    """Return the versions of Python, RabbitMQ, MongoDB and Compose. Pulls missing images. Raises VersionError."""
    found = []
    for field, words in ASKED.items():
        image = getattr(combination, field)
        version = version_in(_output("docker", "run", "--rm", image, *words))
        if not is_version_of(version, image):
            raise VersionError(f"{image} has version {version}")
        found.append(version)
    return (*found, version_in(_output(*shlex.split(combination.compose_command), "version")))


def run(combination: Combination) -> Result:
    """Run the tests with these versions; what they print goes to the terminal."""
    began = time.monotonic()
    try:
        versions = versions_of(combination)
    except VersionError as error:
        return Result(combination, (), False, str(error), time.monotonic() - began)
    with tempfile.TemporaryDirectory() as directory:
        report = Path(directory) / "report.xml"
        tests = [str(FILE.with_name(name)) for name in TESTS]
        subprocess.run(
            [sys.executable, "-m", "pytest", "-rs", "-o", HANGS, f"--junit-xml={report}", *tests],
            cwd=ROOT,
            env=os.environ | combination.environment,
        )
        passed, what = verdict(report.read_text()) if report.exists() else (False, "pytest wrote no report")
    return Result(combination, versions, passed, what, time.monotonic() - began)


def verdict(report: str) -> tuple[bool, str]:
    """Return whether all tests of a report of pytest (JUnit's format) passed, and the counts."""
    suite = ET.fromstring(report)[0]
    tests, skipped = int(suite.attrib["tests"]), int(suite.attrib["skipped"])
    failed = int(suite.attrib["failures"]) + int(suite.attrib["errors"])
    passed = tests - failed - skipped
    return passed == tests > 0, f"{passed} passed, {failed} failed, {skipped} skipped"


def table(results: Sequence[Result]) -> Table:
    """The results, one combination a line."""
    columns = ("combination", "Python", "RabbitMQ", "MongoDB", "Compose", "result", "tests", "duration")
    shown = Table(*columns)
    for one in results:
        versions = one.versions or ("?",) * (len(ASKED) + 1)
        minutes, seconds = divmod(round(one.seconds), 60)
        result = "passed" if one.passed else "FAILED"
        shown.add_row(one.combination.name, *versions, result, one.what, f"{minutes}:{seconds:02}")
    return shown


def main() -> int:
    """Run the combinations that are named (all), and print a table; exit status 1 if one of them failed."""
    known = combinations(FILE.read_text())
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("names", nargs="*", metavar="combination", help=", ".join(known))
    names = parser.parse_args().names or list(known)
    if unknown := [name for name in names if name not in known]:
        parser.error(f"no combination {', '.join(unknown)}; there are {', '.join(known)}")
    if not engine_answers():
        sys.stderr.write("no Docker engine of this machine answers\n")
        return ENGINE_UNREACHABLE
    results = []
    for name in names:
        sys.stdout.write(f"\n{name}: {known[name].environment}\n")
        sys.stdout.flush()
        results.append(run(known[name]))
    Console(width=None if sys.stdout.isatty() else LOG_WIDTH).print(table(results))
    return 0 if all(result.passed for result in results) else 1


def _output(*words: str) -> str:
    try:
        done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=600)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise VersionError(f"{shlex.join(words)}: {error}") from error
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip().splitlines() or [f"exit status {done.returncode}"]
        raise VersionError(f"{shlex.join(words)}: {said[-1][:200]}")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
