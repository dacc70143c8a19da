"""Report the known vulnerabilities of the packages in a lock file; pip-audit looks them up.

    python scripts/audit_dependencies.py PIP_AUDIT LOCK_FILE

Exit status: 0 if there are none, 1 if there are some, or if some packages could not be looked up. If the data cannot be
reached at all, one line says so, and the status is 0, or 3 where AUDIT_REQUIRED is set.
"""

import json
import os
import subprocess
import sys
from typing import Any

NOTHING_CHECKED = 3
TIMEOUT_SECONDS = 600.0


def main(pip_audit: str, lock_file: str) -> int:
    """Audit the file, print the findings and return the exit status."""
    command = [pip_audit, "--requirement", lock_file, "--disable-pip", "--no-deps", "--progress-spinner", "off"]
    try:
        done = subprocess.run(  # noqa: S603 - a pinned tool
            [*command, "--format", "json"], capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return _nothing_checked(str(error))
    try:
        found: list[dict[str, Any]] = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        lines = done.stderr.strip().splitlines() or [f"pip-audit ended with exit status {done.returncode}"]
        return _nothing_checked(lines[-1])
    return report(found, lock_file)


def report(dependencies: list[dict[str, Any]], lock_file: str) -> int:
    """Print what was found about the dependencies, as pip-audit describes them; return the exit status."""
    skipped = [one for one in dependencies if "skip_reason" in one]
    if len(skipped) == len(dependencies):
        return _nothing_checked(str(skipped[0]["skip_reason"]) if skipped else "the lock file is empty")
    vulnerable = [one for one in dependencies if one.get("vulns")]
    for one in vulnerable:
        for vulnerability in one["vulns"]:
            fixed = ", ".join(vulnerability.get("fix_versions", [])) or "no version"
            _print(f"{one['name']} {one['version']}: {vulnerability['id']}, fixed in {fixed}")
    for one in skipped:
        _print(f"{one['name']}: not checked: {one['skip_reason']}")
    checked = len(dependencies) - len(skipped)
    _print(f"{checked} packages of {lock_file} checked, {len(vulnerable)} with known vulnerabilities")
    return 1 if vulnerable or skipped else 0


def _nothing_checked(reason: str) -> int:
    _print(f"no package was checked, because the data about vulnerabilities cannot be reached: {reason[:200]}")
    return NOTHING_CHECKED if os.environ.get("AUDIT_REQUIRED") else 0


def _print(line: str) -> None:
    sys.stdout.write(f"{line}\n")


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:3]))
