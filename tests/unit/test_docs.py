"""Documents cannot go stale: the paths, tests, settings, messages and targets they name exist, drawings are current."""

import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from inventory_service.settings import InventorySettings
from operations import cli
from operations.settings import OperationsSettings
from order_service.diagram import picture, redraw
from order_service.settings import OrderSettings
from payment_service.settings import PaymentSettings
from provisioning_service.settings import ProvisioningSettings
from shared import topology
from shared.contracts import ALL_MESSAGES

ROOT = Path(__file__).parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")),
    *(ROOT / name for name in ("clients/python/README.md", "examples/README.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
QUOTING = ("docs/provisioning.md", "docs/slots.md")
"""Pages that quote log lines and messages of the product, besides the runbooks."""
PRODUCT = (
    "operations",
    "order_service",
    "inventory_service",
    "payment_service",
    "provisioning_service",
    "notification_service",
    "shared",
)
# A text that is divided over several lines of code is joined again.
SOURCES = re.sub(
    r'"\s*\n\s*f?"',
    "",
    "\n".join(
        path.read_text() for room in PRODUCT for path in (ROOT / room).rglob("*") if path.suffix in {".py", ".html"}
    ),
)
COMMAND = re.compile(r"KEY=|(?:ordersaga|curl|docker|rabbitmqctl|python|PUT)\b")
TEXTS = {str(page.relative_to(ROOT)): page.read_text() for page in PAGES}


@pytest.mark.parametrize("page", TEXTS)
def test_links_lead_somewhere(page: str) -> None:
    folder = (ROOT / page).parent
    for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", TEXTS[page]):
        assert (folder / target).exists(), f"{page} links to {target}"


@pytest.mark.parametrize("page", TEXTS)
def test_paths_that_are_named_exist(page: str) -> None:
    named = re.findall(r"`((?:[\w.-]+/)+[\w.-]*\.(?:py|md|json|yml|lock|toml))(?:::\w+)?`", TEXTS[page])
    for path in named:
        assert (ROOT / path).exists(), f"{page} names {path}"


@pytest.mark.parametrize("page", TEXTS)
def test_tests_that_are_named_exist(page: str) -> None:
    for path, name in re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", TEXTS[page]):
        assert f"def {name}(" in (ROOT / path).read_text(), f"{page} names {name} in {path}"


@pytest.mark.parametrize("page", TEXTS)
def test_make_targets_that_are_named_exist(page: str) -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    # Only in code, so that "make a change" in a sentence is not taken for a target.
    code = " ".join(re.findall(r"`make [^`\n]+`|^\$ .*$", TEXTS[page], re.MULTILINE))
    for target in re.findall(r"(?:`|\$ )make ([a-z][\w-]+)", code):
        assert target in targets, f"{page} names make {target}"


def test_the_commands_of_the_tutorial_are_taken() -> None:
    """`tests/end_to_end/test_tutorial.py` does run them and presses the buttons, where there is time for a stack."""
    lines = re.findall(r"^\$ (?:KEY=\$\()?ordersaga (.+?)\)?$", TEXTS["docs/tutorial.md"], re.MULTILINE)
    assert lines
    for words in map(shlex.split, lines):
        parse(get_command(cli.build_application(words)), words)


def parse(command: Any, words: list[str]) -> None:
    """Parse the words as `ordersaga` does, without running it; fails with a click exception."""
    context = command.make_context("ordersaga", list(words))
    if hasattr(command, "resolve_command"):
        _, found, rest = command.resolve_command(context, [*context._protected_args, *context.args])
        parse(found, rest)


def test_what_the_tutorial_says_to_press_is_in_the_console() -> None:
    for label in re.findall(r"\*\*(.+?)\*\*", TEXTS["docs/tutorial.md"]):
        for piece in re.split(r"\d+", label):
            assert piece.strip() in SOURCES, f"the tutorial says to press {label}"


def test_the_diagram_of_the_saga_is_current() -> None:
    page = TEXTS["docs/saga.md"]
    assert redraw(page) == page, "run `make docs`"
    assert picture() == (ROOT / "docs/images/saga.svg").read_text(), "run `make docs`"


@pytest.mark.parametrize(
    "settings",
    [OrderSettings, InventorySettings, PaymentSettings, ProvisioningSettings, OperationsSettings],
)
def test_every_setting_is_in_the_table(settings: type[OrderSettings]) -> None:
    for name in settings.model_fields:
        assert f"`ORDERSAGA_{name.upper()}`" in TEXTS["docs/configuration.md"]


@pytest.mark.parametrize("message", ALL_MESSAGES)
def test_every_message_is_described_with_its_sample(message: type) -> None:
    page = TEXTS["docs/messages.md"]
    key = message.routing_key  # type: ignore[attr-defined]
    assert f"`{key}`" in page
    samples = json.loads((ROOT / "tests/samples/messages.json").read_text())
    shown = {name: value for name, value in samples[key].items() if name != "order"}
    assert json.dumps(shown) in page, f"the sample of {key} in docs/messages.md is not the stored one"
    assert json.dumps(samples["order.confirmed"]["order"]) in page


def test_every_queue_and_exchange_is_described() -> None:
    page = TEXTS["docs/messages.md"]
    names = [queue.name for queue in topology.all_queues(topology.DEFAULT_OPTIONS)] + [
        exchange.name for exchange in topology.exchanges()
    ]
    for name in names:
        assert f"`{name}`" in page


@pytest.mark.parametrize("page", [name for name in TEXTS if "/runbooks/" in name or name in QUOTING])
def test_texts_of_the_product_that_are_quoted_exist(page: str) -> None:
    # What varies in a text is written as …, <word>, a number or the id of a slot.
    for quoted in _quoted(TEXTS[page]):
        for piece in re.split(r"…|<\w+>|slot:\d+|\d[\d.,:TZ-]*|: ", quoted):
            fixed = piece.strip(" .,")
            assert len(fixed) < 5 or fixed in SOURCES, f"{page} quotes {fixed!r}"


def test_the_glossary_stays_short() -> None:
    rows = re.findall(r"^\| (?!word|-)([^|]+) \|", TEXTS["docs/glossary.md"], re.MULTILINE)
    assert 0 < len(rows) <= 12
    assert rows == sorted(rows)


def test_no_page_names_a_machine() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    for path in listed:
        if path.endswith((".md", ".toml", ".yml", "Makefile")):
            assert not re.search(r"(?<![\w./])/(root|home)/\w", (ROOT / path).read_text()), path


def _quoted(text: str) -> list[str]:
    """Return the phrases of a page that are set as code, outside of code blocks, and are no commands."""
    prose = re.sub(r"^ *```.*?^ *```", "", text, flags=re.MULTILINE | re.DOTALL)
    spans = [span for line in prose.splitlines() for span in line.split("`")[1::2]]
    return [span for span in spans if re.search(r"[a-z]{2} [a-z]{2}", span) and not COMMAND.match(span)]
