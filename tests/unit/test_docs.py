"""Documents cannot go stale: the paths, tests, settings, messages and targets they name exist, drawings are current."""

import json
import re
import subprocess
from pathlib import Path

import pytest

from inventory_service.settings import InventorySettings
from operations.settings import OperationsSettings
from order_service.diagram import picture, redraw
from order_service.settings import OrderSettings
from payment_service.settings import PaymentSettings
from provisioning_service.settings import ProvisioningSettings
from shared import topology
from shared.contracts import ALL_MESSAGES

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
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


def test_the_saga_is_drawn_as_it_is() -> None:
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
    assert json.dumps(samples[key]) in page, f"the sample of {key} in docs/messages.md is not the stored one"


def test_every_queue_and_exchange_is_described() -> None:
    page = TEXTS["docs/messages.md"]
    names = [queue.name for queue in topology.queues()] + [exchange.name for exchange in topology.exchanges()]
    for name in names:
        assert f"`{name}`" in page


def test_the_glossary_stays_short() -> None:
    rows = re.findall(r"^\| (?!word|-)([^|]+) \|", TEXTS["docs/glossary.md"], re.MULTILINE)
    assert 0 < len(rows) <= 12
    assert rows == sorted(rows)


def test_no_page_names_a_machine() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    for path in listed:
        if path.endswith((".md", ".toml", ".yml", "Makefile")):
            assert not re.search(r"(?<![\w./])/(root|home)/\w", (ROOT / path).read_text()), path
