"""A headless browser for the tests of the pages; they skip where there is none."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.server.page_server import PageServer

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
AXE = Path(os.environ.get("AXE_CORE", "node_modules/axe-core/axe.min.js"))
"""The accessibility checks of axe-core (`npm install axe-core`), where they are installed."""

PHONE = {"width": 390, "height": 844}


@pytest.fixture(scope="session")
async def browser() -> AsyncIterator[Any]:
    playwright = pytest.importorskip("playwright.async_api", reason="the pages' tests need `pip install playwright`")
    if CHROMIUM is None:
        pytest.skip("the pages' tests need Chromium (Debian: `apt-get install chromium`), or its path in CHROMIUM")
    async with playwright.async_playwright() as driver:
        browser = await driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        await browser.close()


@pytest.fixture
async def pages() -> AsyncIterator[PageServer]:
    """A fresh server with the pages."""
    async for server in PageServer().run():
        yield server


class Tab:
    """Opens tabs, and keeps what they complain about."""

    def __init__(self, browser: Any, server: PageServer) -> None:
        self.browser, self.server = browser, server
        self.complaints: list[str] = []

    @asynccontextmanager
    async def open(self, path: str = "/", width: int = 1280, height: int = 800, **options: Any) -> AsyncIterator[Any]:
        context = await self.browser.new_context(viewport={"width": width, "height": height}, **options)
        page = await context.new_page()
        page.set_default_timeout(10_000)
        page.on("console", lambda message: message.type in ("error", "warning") and self.note(message.text))
        page.on("pageerror", lambda error: self.note(str(error)))
        await page.goto(self.server.address + path)
        yield page
        await context.close()

    def note(self, text: str) -> None:
        self.complaints.append(text)


@pytest.fixture
async def tab(browser: Any, pages: PageServer) -> AsyncIterator[Tab]:
    """Any complaint in the console, a violated policy among them, fails the test that did not expect and clear it."""
    tab = Tab(browser, pages)
    yield tab
    assert tab.complaints == []


@pytest.fixture(scope="session")
def axe() -> str:
    if not AXE.exists():
        pytest.skip("the accessibility checks need axe-core: `npm install axe-core`, or its path in AXE_CORE")
    return AXE.read_text()


async def ask(page: Any, text: str) -> None:
    """Sends a message and waits until its answer ended."""
    await page.fill("#prompt", text)
    await page.press("#prompt", "Enter")
    await page.wait_for_selector("#send:visible")
