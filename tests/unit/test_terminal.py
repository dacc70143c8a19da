"""Output of commands: text from outside cannot control a terminal, and output for programs is complete."""

import ast
import io
import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from rich.table import Table
from rich.text import Text
from typer.main import get_command
from typer.testing import CliRunner

import operations
from operations import cli
from operations.accounts.statements import AccountOverview, Movement, Statement
from operations.audit.report import INVARIANTS, Report, Violation
from operations.commands.accounts_display import show_overview, show_statement
from operations.commands.audit_display import show as show_audit
from operations.commands.dead_letters.display import show_groups, show_letter, show_page
from operations.commands.order_display import show as show_trace
from operations.commands.terminal import as_ascii_json, counted, foreign, open_console
from operations.dead_letters.groups import Group, HistogramBin
from operations.dead_letters.records import LetterPage
from operations.impact.impact import Impact, impact_of
from operations.impact.ranking import RankedGroup, RankedPage
from operations.reading.balances import Balance
from operations.timeline.timeline import TimelineRecords, TimelineStep
from shared.printable import printable

NOW = datetime(2026, 1, 31, 9, 30, tzinfo=UTC)
HOSTILE = (
    "\x1b]0;PWNED\x07",
    "\x1b[2J",
    "\x9b31m",
    "\u202egnp.exe",
    "\u2066x\u2069",
    "zero\u200bwidth\ufeff",
    "line\u2028separator",
    "back\x08\rspace",
    "\x7f",
    "half \ud800",
    "[bold]markup[/bold] [link=http://evil]x[/link] :warning:",
    "forged\nline",
)
texts = st.one_of(st.sampled_from(HOSTILE), st.text(st.characters(codec=None), min_size=1, max_size=40))


def printed(show: Callable[[Console], None], **options: Any) -> str:
    file = io.StringIO()
    show(open_console(file=file, **options))
    return file.getvalue()


def unprintable(text: str) -> list[str]:
    return [c for c in text if not c.isprintable() and c != "\n"]


@given(texts)
def test_printable_text_is_one_printable_line_and_keeps_what_is_printable(text: str) -> None:
    assert printable(text).isprintable()
    assert printable(printable(text)) == printable(text)
    assert unprintable(printable(text, keep_lines=True)) == []
    assert printable(text, keep_lines=True).count("\n") == text.count("\n")
    if text.isprintable():
        assert printable(text) == text


def test_escapes_say_what_was_there() -> None:
    assert printable("\x1b]0;PWNED\x07") == r"\x1b]0;PWNED\x07"
    assert printable("\x9b31m \u202e \u2028 \u200b") == r"\x9b31m \u202e \u2028 \u200b"
    assert printable("Żółć €5 東京") == "Żółć €5 東京"


@pytest.mark.parametrize("terminal", [False, True])
@given(text=texts)
def test_a_console_prints_no_control_character_however_it_is_given_text(terminal: bool, text: str) -> None:
    def show(console: Console) -> None:
        table = Table("a")
        table.add_row(Text(text))
        table.add_row(foreign(text))
        console.print(Text(text), table)
        console.print(text, markup=False, soft_wrap=True)
        console.print(f"[red]{foreign(text)}[/]")

    assert unprintable(printed(show, force_terminal=terminal, color_system=None)) == []


def a_letter(text: str) -> dict[str, Any]:
    replay = {
        "at": NOW,
        "by": text,
        "why": text,
        "outcome": "dead",
        "outcomeAt": NOW,
        "edited": True,
        "error": {"type": text, "message": text},
    }
    return {
        "_id": "a" * 32,
        "status": "dead",
        "service": "inventory",
        "queue": text,
        "routingKey": text,
        "orderId": text,
        "messageId": text,
        "fingerprint": "f" * 16,
        "attempts": 1,
        "firstFailedAt": NOW,
        "lastFailedAt": NOW,
        "error": {"type": text, "message": text, "traceback": text},
        "size": 10,
        "body": text.encode("utf-8", "replace"),
        "contentType": "text/plain",
        "headers": {text: text, "other": [text, {text: text.encode("utf-8", "replace")}]},
        "replays": [replay],
        "discarded": {"at": NOW, "by": text, "why": text},
    }


def a_group(text: str) -> Group:
    return Group("f" * 16, "new", [], "inventory", text, text, text, text, 1, 2, NOW, NOW, [HistogramBin(NOW, 1)])


def an_impact(text: str) -> Impact:
    order = {"_id": text, "userId": text, "status": text, "settled": False, "totalAmount": 100, "currency": text}
    return impact_of([order])


def every_display(text: str) -> list[Callable[[Console], None]]:
    letter = a_letter(text)
    as_json = letter | {"error": {"type": text, "message": text, "traceback": ""}}
    as_json |= {
        "contentType": "application/json",
        "body": json.dumps({"name": text.encode("utf-8", "replace").decode()}).encode(),
    }
    violation = Violation(7, "k", "order", text, text, text)
    known = {"inFlight": 1, "unknownOrdersReturned": 1, "deadLetters": 1, "inboxes": {}, "waitingForRetry": {}}
    checked = {name: 1 for invariant in INVARIANTS.values() for name in invariant.records} | {"slots": 0}
    step = TimelineStep(NOW, "order", "message", text, outcome="failed", detail=text, status=text)
    records = TimelineRecords(text, order={"status": text, "failureReason": text, "traceparent": text})
    movement = Movement(NOW, text, text, 1, 1, text, {text: text}, text)
    statement = Statement(text, text, 0, 1, [movement], earlier=True)
    balance = Balance(text, {"_id": text, "status": text, "balance": 1, text: text}, 1, 2, text)
    return [
        lambda console: show_letter(letter, an_impact(text), console),
        lambda console: show_letter(as_json, an_impact(text), console),
        lambda console: show_page(LetterPage([letter], "next"), 2, console),
        lambda console: show_groups(RankedPage([RankedGroup(a_group(text), an_impact(text))], 2), console),
        lambda console: show_audit(Report(checked, [violation], known), console),
        lambda console: show_trace(records, [step], console, NOW),
        lambda console: show_statement(statement, console),
        lambda console: show_overview(AccountOverview(balance, statement), console),
    ]


@settings(max_examples=40)
@given(texts)
def test_no_command_prints_a_control_character_of_a_record(text: str) -> None:
    for show in every_display(text):
        assert unprintable(printed(show)) == []


def test_text_from_outside_is_neither_markup_nor_emoji() -> None:
    for show in every_display("[bold]x[/] [link=http://evil]y[/link] :warning:"):
        output = " ".join(printed(show).split())
        assert "[bold]x[/]" in output
        assert ":warning:" in output


def test_a_field_of_one_line_cannot_forge_another_line() -> None:
    text = "x\n  status   handled"
    whole, *others = every_display(text)
    for show in others:
        assert "\n  status   handled" not in printed(show)
    # Tracebacks and text bodies have several lines, but they are indented.
    assert "\n  status   handled" not in printed(whole).partition("traceback\n")[0]


def test_output_for_a_program_is_neither_truncated_nor_wrapped() -> None:
    long = "identifier-" * 40
    output = printed(lambda console: show_page(LetterPage([a_letter(long)], None), 1, console))
    assert output.splitlines()[0].startswith("a" * 32)
    assert long in output.splitlines()[0]
    for show in every_display(long):
        text = printed(show)
        assert long in text
        assert max(map(len, text.splitlines())) < 20 * len(long)


def test_output_for_a_program_is_whole_whatever_columns_says_and_however_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    long = "x" * 300_000
    for show in every_display(long):
        assert long in printed(show)


def test_a_terminal_shows_the_beginning_of_a_long_letter_and_says_so_and_a_program_gets_all() -> None:
    binary = a_letter("x") | {"contentType": "application/octet-stream", "body": b"\xff" * 100}
    lines = a_letter("x") | {"body": b"line\n" * 300, "headers": {"h": "y" * 600}}
    terminal: dict[str, Any] = {"force_terminal": True, "color_system": None, "width": 80}
    assert "… 36 more bytes: `export` writes all" in " ".join(
        printed(lambda console: show_letter(binary, an_impact("x"), console), **terminal).split()
    )
    shown = printed(lambda console: show_letter(lines, an_impact("x"), console), **terminal)
    assert "… 100 more lines: `export` writes all" in shown
    assert "y …" in shown
    whole = printed(lambda console: show_letter(lines, an_impact("x"), console))
    assert whole.count("  line\n") == 300
    assert "y" * 600 in whole
    assert " ".join(["ff"] * 100) in printed(lambda console: show_letter(binary, an_impact("x"), console))


def test_json_is_printable_ascii_and_says_the_same() -> None:
    document = {"text": list(HOSTILE)}
    written = as_ascii_json(document)
    assert written.isascii()
    assert written.isprintable()
    assert json.loads(written) == document


def commands_of(command: Any, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Any]]:
    nested = getattr(command, "commands", {})
    return [(path, command)] + [found for name, one in nested.items() for found in commands_of(one, (*path, name))]


def every_command() -> list[tuple[tuple[str, ...], Any]]:
    found = []
    for name in cli.COMMANDS:
        application = get_command(cli.build_application([name]))
        found += [(path, one) for path, one in commands_of(application) if path[:1] == (name,)]
    return found


def shown_words(text: str) -> str:
    """Return the text without the frame, the line breaks and the code markup of a help page."""
    return "".join(c for c in text if c.isalnum() or c in "[](){}<>$*")


@pytest.mark.parametrize(
    ("path", "command"), every_command(), ids=lambda value: " ".join(value) if isinstance(value, tuple) else ""
)
def test_the_help_shows_every_word_of_the_source(path: tuple[str, ...], command: Any) -> None:
    """Square brackets in a help text must not be taken for markup."""
    runner = CliRunner(env={"COLUMNS": "200", "TERMINAL_WIDTH": "200", "NO_COLOR": "1"})
    shown = shown_words(runner.invoke(cli.build_application(path), [*path, "--help"]).output)
    for text in (command.help or "").split("\n\n"):
        assert shown_words(text) in shown
    for parameter in command.params:
        assert shown_words(getattr(parameter, "help", None) or "") in shown
        if isinstance(parameter.show_default, str):
            assert shown_words(f"[default: ({parameter.show_default})]") in shown


def test_only_one_module_creates_consoles_and_prints_json() -> None:
    """Any other console would print control characters of a record."""
    root = Path(operations.__file__).parent
    found = []
    for file in sorted(root.rglob("*.py")):
        calls = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call)]
        for call in calls if file.name != "terminal.py" else ():
            name = ast.unparse(call.func)
            if name.rpartition(".")[2] in ("Console", "rprint") or (
                name.endswith("echo") and "dumps" in ast.unparse(call)
            ):
                found.append(f"{file.relative_to(root)}:{call.lineno}: {ast.unparse(call)}")
    assert found == []


def test_one_is_not_several() -> None:
    assert [counted(number, "dead letters") for number in (0, 1, 2, 1200)] == [
        "0 dead letters",
        "1 dead letter",
        "2 dead letters",
        "1,200 dead letters",
    ]
