"""A real browser for tests, Debian's chromium driven by Playwright; and what a person does in it, counted."""

import os
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Literal

from playwright.async_api import Browser, Locator, Page, async_playwright

CHROMIUM_VARIABLE = "ORDERSAGA_CHROMIUM"
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")


def find_chromium() -> str:
    """Return the path of the browser: from the environment, else from PATH."""
    given = os.environ.get(CHROMIUM_VARIABLE)
    found = given or next((path for name in NAMES if (path := shutil.which(name))), None)
    if not found:
        raise RuntimeError(
            f"no chromium: `make test` installs Debian's as root; else apt-get install chromium, or name a program in "
            f"{CHROMIUM_VARIABLE}"
        )
    return found


@asynccontextmanager
async def run_browser() -> AsyncIterator[Browser]:
    """Run a browser while the context is open. Its sandbox does not work for root."""
    async with async_playwright() as playwright:
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = await playwright.chromium.launch(executable_path=find_chromium(), args=arguments)
        try:
            yield browser
        finally:
            await browser.close()


class Hands:
    """What a person does on a page: clicks and texts, which are counted."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self._clicks = 0
        self._texts = 0

    async def click(self, found: Locator) -> None:
        """Click what is found."""
        self._clicks += 1
        await found.click()

    async def press(self, name: str, role: Literal["link", "button", "checkbox"] = "button") -> None:
        """Click the button, or the like, of this name."""
        await self.click(self.page.get_by_role(role, name=name))

    async def write(self, label: str, text: str) -> None:
        """Write a text into the field with this label."""
        self._texts += 1
        await self.page.get_by_label(label, exact=True).fill(text)

    @contextmanager
    def do(self, *, clicks: int, texts: int = 0) -> Iterator[None]:
        """Check that what is done meanwhile takes this number of clicks and texts."""
        before = self._clicks, self._texts
        yield
        assert (self._clicks - before[0], self._texts - before[1]) == (clicks, texts)
