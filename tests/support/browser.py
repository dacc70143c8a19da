"""A real browser for tests: Debian's chromium, headless, driven by Playwright."""

import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from playwright.async_api import Browser, async_playwright

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
