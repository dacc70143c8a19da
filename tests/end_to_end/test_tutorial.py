"""docs/tutorial.md on a real stack: each command is run, each button is clicked, and what is shown is what it says."""

import asyncio
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from playwright.async_api import Locator, Page, expect

from operations.stack.processes import find_marked
from tests.support.browser import run_browser
from tests.support.eventually import eventually

ROOT = Path(__file__).parents[2]
TUTORIAL = (ROOT / "docs" / "tutorial.md").read_text()
PATIENCE_SECONDS = 120
ID = r"[0-9a-f]{32}"
VARYING = (
    ID,
    r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:\.\d+Z)?",
    r"\d+\.\d{3} s|\d+m \d+s",
    r"127\.0\.0\.1:\d+",
)
"""What differs in each run: ids, times, durations and ports."""


@dataclass
class Tutorial:
    """The tutorial in progress: the shell's variables, and what of the page was done."""

    environment: dict[str, str]
    done: set[str] = field(default_factory=set)
    """The commands that were run, and the labels that were clicked."""
    own: dict[str, str] = field(default_factory=dict)
    """The ids and addresses of this run, by those on the page."""

    async def run(self, beginning: str, occurrence: int = 0) -> str:
        """Run the command of the page that begins like this; return its output, which must be what the page says."""
        command, shown = [found for found in COMMANDS if found[0].startswith(beginning)][occurrence]
        here = command
        for there, own in self.own.items():
            here = here.replace(there, own)
        variable = re.match(r"(\w+)=", here)
        output = await self._shell(f'{here}; printf %s "${variable[1]}"' if variable else here)
        if variable:
            self.environment[variable[1]] = output
        self._compare(command, shown, output)
        self.done.add(command)
        return output

    async def until(self, beginning: str, occurrence: int = 0) -> None:
        """Run a command that only reads until its output is what the page says."""

        async def it_is() -> bool:
            try:
                await self.run(beginning, occurrence)
            except AssertionError:
                return False
            return True

        try:
            await eventually(it_is, PATIENCE_SECONDS, beginning)
        except (AssertionError, TimeoutError):
            await self.run(beginning, occurrence)  # says what is wrong

    async def click(self, found: Locator, label: str) -> None:
        """Click what the page names by this label."""
        await expect(found).to_contain_text(label)
        await found.click()
        self.done.add(label)

    async def _shell(self, command: str) -> str:
        words = ["bash", "-c", command]
        done = await asyncio.to_thread(
            subprocess.run, words, env=self.environment, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        return done.stdout

    def _compare(self, command: str, shown: Sequence[str], output: str) -> None:
        """Check that each line of the page is one of the output, and learn the ids of this run from it."""
        lines = [" ".join(line.split()) for line in output.splitlines()]
        for line in shown:
            found = next((actual for actual in lines if re.fullmatch(pattern_of(line), actual)), None)
            assert found is not None, f"{command}: the page says {line!r}, the output is\n{output}"
            for there, own in zip(re.findall(ID, line), re.findall(ID, found), strict=False):
                self.own.setdefault(there, own)


def commands_of(page: str) -> list[tuple[str, list[str]]]:
    """Return the commands of the page, each with the lines of output that it shows."""
    found: list[tuple[str, list[str]]] = []
    for block in re.findall(r"```console\n(.*?)```", page, re.DOTALL):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, *rest = part.splitlines()
            while command.count("'") % 2:
                command += "\n" + rest.pop(0)
            found.append((command, [line for line in rest if line.strip() not in ("", "…")]))
    return found


def pattern_of(line: str) -> str:
    """Return a pattern of a line of output, in which … is anything."""
    pieces, end, text = [], 0, " ".join(line.split())
    for found in re.finditer("|".join(f"({varying})" for varying in VARYING), text):
        pieces += [re.escape(text[end : found.start()]), f"(?:{VARYING[(found.lastindex or 1) - 1]})"]
        end = found.end()
    return re.sub(r"(\\ )?…(\\ )?", ".*", "".join([*pieces, re.escape(text[end:])]))


COMMANDS = commands_of(TUTORIAL)
NOT_RUN = {"make setup", ". .venv/bin/activate"}
"""This test runs where they have been run."""


@pytest.fixture
async def tutorial(tmp_path: Path) -> AsyncIterator[Tutorial]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("ORDERSAGA_")}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    begun = Tutorial({**inherited, "PATH": path, "XDG_STATE_HOME": str(tmp_path), "TMPDIR": str(tmp_path)})
    yield begun
    for directory in tmp_path.glob("ordersaga-demo-*"):
        down = [sys.executable, "-m", "operations.cli", "down", "--data-dir", str(directory)]
        await asyncio.to_thread(subprocess.run, down, env=begun.environment, cwd=ROOT, check=True, capture_output=True)
        assert find_marked(directory) == []


@pytest.fixture
async def page() -> AsyncIterator[Page]:
    async with run_browser() as browser:
        found = await browser.new_page(viewport={"width": 1280, "height": 860})
        found.set_default_timeout(PATIENCE_SECONDS * 1000)
        expect.set_options(timeout=PATIENCE_SECONDS * 1000)
        yield found
        expect.set_options(timeout=5000)


@pytest.mark.extended  # tests/unit/test_docs.py looks whether the commands and the buttons exist
async def test_the_tutorial_is_true(tutorial: Tutorial, page: Page) -> None:
    await start_and_sign_in(tutorial, page)
    await tutorial.run("KEY=")
    await tutorial.run("curl")
    await tutorial.until("ordersaga order timeline 4921")
    await tutorial.run("ordersaga dead-letters groups")
    await tutorial.run("ordersaga orders list")
    await tutorial.run("ordersaga dead-letters preview")
    await replay_what_only_needs_a_replay(tutorial, page)
    await tutorial.run("ordersaga order timeline e0ab")
    await correct_a_number(tutorial, page)
    for command, _ in COMMANDS:
        if "discard" in command:
            await tutorial.run(command)
    await retry_the_servers(tutorial, page)
    await tutorial.click(page.get_by_role("navigation", name="Pages").get_by_text("Actions"), "Actions")
    await expect(page.get_by_text("sent by a program for tests").first).to_be_visible()
    await tutorial.until("ordersaga orders list", occurrence=1)
    await tutorial.until("ordersaga audit")
    await tutorial.run("ordersaga down")
    commands = {command for command, _ in COMMANDS}
    assert {*commands, *re.findall(r"\*\*(.+?)\*\*", TUTORIAL)} - tutorial.done == NOT_RUN


async def start_and_sign_in(tutorial: Tutorial, page: Page) -> None:
    said = await tutorial.run("ordersaga demo")
    link = re.search(r"http\S+/sign-in/link\S+", said)
    orders = re.search(r"^order +http://(\S+)", said, re.MULTILINE)
    assert link, said
    assert orders, said
    tutorial.own["localhost:3008"] = orders[1]
    await page.goto(link[0])
    await tutorial.click(page.get_by_role("button", name="Sign in"), "Sign in")
    await expect(page.get_by_text("Signed in as")).to_be_visible()


async def open_section(tutorial: Tutorial, page: Page, name: str) -> None:
    await tutorial.click(page.get_by_role("navigation", name="Pages").get_by_role("link", name=name), name)


async def replay_what_only_needs_a_replay(tutorial: Tutorial, page: Page) -> None:
    await open_section(tutorial, page, "Dead letters")
    await page.locator(".group-link", has_text="payment.processed for order").click()
    await tutorial.click(page.get_by_role("link", name="Replay all…"), "Replay all…")
    await page.get_by_label("Reason").fill("the orders are back")
    await tutorial.click(page.get_by_role("button", name="Replay 12 dead letters"), "Replay 12 dead letters")
    await expect(page.get_by_text("Every message was handled.")).to_be_visible()


async def correct_a_number(tutorial: Tutorial, page: Page) -> None:
    stuck = tutorial.own["e0ab55084c0949759e07b2585e4e1ebc"]
    await page.goto(f"{page.url.split('/dead-letters')[0]}/orders/{stuck}")
    await tutorial.click(page.get_by_role("link", name="see the dead letter"), "see the dead letter")
    await tutorial.click(page.get_by_role("link", name="Edit and replay"), "Edit and replay")
    body = page.get_by_label("Body")
    await body.fill((await body.input_value()).replace('"two"', "2"))
    await page.get_by_label("Reason").fill("a word in place of a number")
    await tutorial.click(page.get_by_role("button", name="Preview"), "Preview")
    await expect(page.get_by_text("stock nothing → RESERVED, sends stock.reserved")).to_be_visible()
    await tutorial.click(page.get_by_role("button", name="Replay with this body"), "Replay with this body")
    await expect(page.get_by_text("Every message was handled.")).to_be_visible()


async def retry_the_servers(tutorial: Tutorial, page: Page) -> None:
    await open_section(tutorial, page, "Orders")
    await page.get_by_label("Status").select_option("FAILED")
    await page.get_by_role("button", name="Search").click()
    boxes = page.get_by_role("checkbox", name="Select order")
    await expect(boxes).to_have_count(4)  # until then it is the list of before, of all orders
    for box in await boxes.all():
        await box.check()
    await tutorial.click(page.get_by_role("button", name="Retry"), "Retry")
    await expect(page.get_by_role("heading", name="Retry 4 orders")).to_be_visible()
    await page.get_by_label("Reason").fill("the provider has servers again")
    await page.get_by_role("button", name="Retry 4 orders").click()
    await expect(page.get_by_text("Every order is retried.")).to_be_visible()
