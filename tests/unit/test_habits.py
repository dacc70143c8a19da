"""Hosted CI, hooks and `.ci/run` run the same commands as a developer: they only call make targets."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
HOOKS = ROOT / ".pre-commit-config.yaml"
SCRIPT = ROOT / ".ci/run"


def steps() -> Iterator[dict[str, Any]]:
    """Every step of every job of every workflow."""
    for workflow in WORKFLOWS:
        for job in yaml.safe_load(workflow.read_text())["jobs"].values():
            yield from job["steps"]


def hooks() -> Iterator[dict[str, Any]]:
    for repository in yaml.safe_load(HOOKS.read_text())["repos"]:
        yield from repository["hooks"]


def commands() -> Iterator[str]:
    """Every command that CI or a hook calls."""
    for step in steps():
        yield from step.get("run", "").splitlines()
    yield from (hook["entry"] for hook in hooks())
    yield from re.findall(r"^(?!#|set |cd )\S.*", SCRIPT.read_text(), re.MULTILINE)


@pytest.mark.parametrize("command", sorted(set(commands())))
def test_a_command_is_a_make_target_that_exists(command: str) -> None:
    make, *targets = shlex.split(command)
    assert make == "make"
    assert targets
    assert set(targets) <= TARGETS


def test_ci_lints_and_runs_all_tests() -> None:
    assert {"make check", "make test", "make test-extended"} <= {step.get("run") for step in steps()}


def test_a_step_that_is_no_command_is_the_checkout() -> None:
    assert {step["uses"].partition("@")[0] for step in steps() if "run" not in step} == {"actions/checkout"}


def test_hooks_are_local() -> None:
    assert {repository["repo"] for repository in yaml.safe_load(HOOKS.read_text())["repos"]} == {"local"}
    assert all(hook["language"] == "system" for hook in hooks())
