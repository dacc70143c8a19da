"""Every kind of violation says how to fix it."""

import ast
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer.main
from typer._click.exceptions import UsageError
from typer.core import TyperGroup

from operations.audit.remedies import _UNKNOWN, REMEDIES, RUNBOOK, remedy_of
from operations.audit.report import Violation
from operations.cli import build_application
from operations.reading.participant_records import PARTICIPANT_RECORDS

ROOT = Path(__file__).parents[2]
AUDIT = ROOT / "operations/audit"
MAKERS = {"violation", "_violation", "Violation", "_entry", "_lock", "_report", "Break"}
SUBJECTS_OF = {
    "orders.py": ("order",),
    "refunds.py": ("order",),
    "servers.py": ("order", "address", "lock"),
    "stock.py": ("product", "slot"),
    "slots.py": ("order", "slot", "assignment"),
    "holds.py": ("hold",),
    "funds.py": ("account", "entry", "payment", "transfer", "order"),
    "audit_chain.py": ("action",),
}
COMPUTED = {
    "f'{row.noun} without order'": [f"{row.noun} without order" for row in PARTICIPANT_RECORDS],
    "f'{name} amount'": ["payment amount", "charge amount"],
    "row.participant.name": [row.participant.name for row in PARTICIPANT_RECORDS],
    "f'{row.participant.name} held'": [f"{row.participant.name} held" for row in PARTICIPANT_RECORDS],
    "f'transfer {done} twice'": ["transfer made twice", "transfer cancelled twice"],
    # Functions that pass a kind on, and names that are bound to constants in the same function.
    "kind": ["overpaid invoice", "negative balance", "compensation", "shipping", "capture"],
    "broken.kind": [],
}


def kinds_in(file: Path) -> set[str]:
    """The kinds of violations that a module makes: the first text among the first arguments of each call."""
    found: set[str] = set()
    for call in (node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call)):
        name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        if name not in MAKERS:
            continue
        place = _place_of_kind(name, call)
        text = ast.unparse(call.args[place])
        kind = ast.literal_eval(text) if isinstance(call.args[place], ast.Constant) else None
        found.update([kind] if kind is not None else COMPUTED[text])
    return found


def _place_of_kind(name: str, call: ast.Call) -> int:
    if name == "violation":
        return len(call.args) - 3  # with or without the invariant in front
    return {"_violation": 0}.get(name, 1)


CASES = [
    (file.name, kind)
    for file in (
        *sorted(AUDIT / name for name in SUBJECTS_OF if name != "audit_chain.py"),
        ROOT / "shared/audit_chain.py",
    )
    for kind in sorted(kinds_in(file))
]


def test_the_kinds_are_found() -> None:
    assert len(CASES) > 90
    assert {("orders.py", "message lost"), ("orders.py", "stock held"), ("servers.py", "abandoned lock")} <= set(CASES)


@pytest.mark.parametrize(("file", "kind"), CASES)
def test_every_kind_of_violation_has_a_fix(file: str, kind: str) -> None:
    fixes = [remedy_of(kind, subject) for subject in SUBJECTS_OF[file]]
    assert any(fix is not _UNKNOWN for fix in fixes), kind


def test_every_fix_is_used_and_names_what_exists() -> None:
    made = {kind for _, kind in CASES}
    for remedy in REMEDIES:
        assert set(remedy.kinds) <= made, set(remedy.kinds) - made
        assert (ROOT / remedy.page).is_file()
        assert re.fullmatch(r"[A-Z].*\.", remedy.text, re.DOTALL), remedy.text
        if remedy.command:
            program, *words = shlex.split(remedy.command_for("o1") or "")
            assert program == "ordersaga"
            parse(words)
    assert (ROOT / f"docs/runbooks/{RUNBOOK}.md").is_file()


def parse(words: list[str]) -> None:
    """Parse the words of a command line without running it. Raises UsageError if they do not fit."""
    command: Any = typer.main.get_command(build_application(words))
    name: str | None = "ordersaga"
    context = None
    while True:
        context = command.make_context(name, words, parent=context)
        if not isinstance(command, TyperGroup):
            return
        name, found, words = command.resolve_command(context, [*context._protected_args, *context.args])
        assert found is not None
        command = found


@pytest.mark.parametrize("line", ["orders nudge --wrong o1", "orders nothing o1", "nothing o1"])
def test_a_command_that_does_not_exist_is_found(line: str) -> None:
    with pytest.raises(UsageError):
        parse(line.split())


def test_an_id_cannot_add_to_the_command() -> None:
    violation = Violation(7, "message lost", "order", "o1; rm -rf /", "found", "expected")
    assert violation.command == "ordersaga orders nudge 'o1; rm -rf /' --why 'the audit found it stuck'"


def test_a_violation_shows_its_fix_in_json() -> None:
    lock = Violation(6, "abandoned lock", "lock", "103.83", "found", "expected").as_json()
    assert lock["fix"]["command"] is None
    assert lock["fix"]["text"].startswith("Clear the lock")
    assert Violation(1, "of another release", "order", "o1", "", "").as_json()["fix"]["text"]
