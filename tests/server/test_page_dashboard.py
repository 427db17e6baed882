"""The dashboard, and what both pages promise about accessibility."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.server.browser import PHONE, Tab, ask
from tests.server.page_server import PageServer, eventually, figures

LINES = "[...document.querySelectorAll('.line')].filter((line) => line.getAttribute('d').includes('L')).length"


async def tile(page: Any, label: str) -> str:
    return await page.locator(".tile", has=page.locator(f"dt:text-is('{label}')")).locator(".tile-value").inner_text()


async def test_it_draws_and_shows_figures(tab: Tab, pages: PageServer) -> None:
    async with tab.open("/dashboard") as page:
        await eventually(lambda: pages.polls >= 3)
        assert (await tile(page, "Generated tokens")).endswith("/s")
        assert await tile(page, "Compilations") == "14"
        assert await page.evaluate(LINES) == 12
        label = await page.locator(".plot").first.get_attribute("aria-label")
        assert "Generated tokens: now" in label
        assert await page.locator("#server").inner_text() == "asurge 0.1.0 · up 2 h 1 min"


async def test_the_reader_chooses_the_model(tab: Tab) -> None:
    async with tab.open("/dashboard") as page:
        await page.select_option("#model", "demo")
        assert await tile(page, "KV cache") == "–"
        await page.wait_for_timeout(1200)
        assert await page.input_value("#model") == "demo"


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"models": {}},
        {"models": {"demo": {}}},
        {"models": {"demo": None}, "uptime_s": None},
        {"models": {"demo": {"kv_usage": "x"}}},
    ],
    ids=json.dumps,
)
async def test_it_survives_what_is_missing(tab: Tab, pages: PageServer, data: dict[str, Any]) -> None:
    pages.dashboard = lambda _: data
    async with tab.open("/dashboard") as page:
        await eventually(lambda: pages.polls >= 2)
        assert await tile(page, "KV cache") == "–"
        assert await page.locator("#health-text").inner_text() == "Live"
        assert not await page.is_visible("#model-choice")


async def test_it_says_when_the_server_is_gone_and_recovers(tab: Tab, pages: PageServer) -> None:
    async with tab.open("/dashboard") as page:
        await page.wait_for_selector("text=Live")
        await page.route("**/dashboard/data", lambda route: route.abort())
        await page.wait_for_selector("text=The server does not answer.")
        assert "No answer for" in await page.locator("#health-text").inner_text()
        await page.unroute("**/dashboard/data")
        await page.wait_for_selector("#outage", state="hidden")
    assert all("ERR_FAILED" in text for text in tab.complaints)
    tab.complaints.clear()


async def test_it_rests_while_hidden(tab: Tab, pages: PageServer) -> None:
    hide = """(hidden) => {
        Object.defineProperty(document, 'hidden', { value: hidden, configurable: true });
        document.dispatchEvent(new Event('visibilitychange'));
    }"""
    async with tab.open("/dashboard") as page:
        await page.wait_for_selector("text=Live")
        await page.evaluate(hide, True)
        polls = pages.polls
        await page.wait_for_timeout(2500)
        assert pages.polls == polls
        await page.evaluate(hide, False)
        await eventually(lambda: pages.polls > polls)


async def test_pointing_at_a_chart_shows_the_values_there(tab: Tab, pages: PageServer) -> None:
    async with tab.open("/dashboard") as page:
        await eventually(lambda: pages.polls >= 2)
        await page.locator(".plot").first.hover(position={"x": 100, "y": 50})
        assert "ago" in await page.locator(".when").first.inner_text()


async def test_the_charts_are_also_a_table(tab: Tab) -> None:
    async with tab.open("/dashboard") as page:
        await page.wait_for_selector("text=Live")
        await page.click("text=The charts as a table")
        assert await page.locator("#rows tr").count() == 12
        row = await page.locator("#rows tr", has_text="KV cache in use").inner_text()
    assert "%" in row


async def test_the_dashboard_fits_a_phone(tab: Tab) -> None:
    async with tab.open("/dashboard", **PHONE) as page:
        await page.wait_for_selector("text=Live")
        await page.click("text=The charts as a table")
        assert not await page.evaluate("document.scrollingElement.scrollWidth > innerWidth")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("path", ["/", "/dashboard"])
async def test_light_and_dark(tab: Tab, path: str, scheme: str) -> None:
    async with tab.open(path, color_scheme=scheme) as page:
        ground = await page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    assert (min(ground) > 200) if scheme == "light" else (max(ground) < 60)


async def test_reduced_motion_is_respected(tab: Tab) -> None:
    async with tab.open(reduced_motion="reduce") as page:
        await page.fill("#prompt", "silent")
        await page.press("#prompt", "Enter")
        await page.wait_for_selector(".waiting")
        assert await page.evaluate("document.getAnimations().length") == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [{"width": 1280, "height": 800}, PHONE], ids=["desk", "phone"])
async def test_chat_passes_the_accessibility_checks(tab: Tab, axe: str, size: dict[str, int], scheme: str) -> None:
    async with tab.open(color_scheme=scheme, **size) as page:
        assert await violations(page, axe) == []
        for message in ("think", "markdown", "tool", "break"):
            await ask(page, message)
        await page.get_by_role("button", name="Edit").first.click()
        assert await violations(page, axe) == []
        if size == PHONE:
            await page.click("#open-settings")
            assert await violations(page, axe) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [{"width": 1280, "height": 800}, PHONE], ids=["desk", "phone"])
async def test_dashboard_passes_the_accessibility_checks(
    tab: Tab, pages: PageServer, axe: str, size: dict[str, int], scheme: str
) -> None:
    async with tab.open("/dashboard", color_scheme=scheme, **size) as page:
        await eventually(lambda: pages.polls >= 2)
        await page.click("text=The charts as a table")
        assert await violations(page, axe) == []
        pages.dashboard = lambda poll: figures(poll) | {"models": {}}
        pages.down = True
        await page.wait_for_selector("#outage:visible")
        assert await violations(page, axe) == []
    tab.complaints.clear()


async def violations(page: Any, axe: str) -> list[str]:
    """What axe-core finds, by rule and place."""
    await page.evaluate(axe)
    found = await page.evaluate(
        "axe.run({ exclude: '.markdown :is(h3, h4, h5, h6)' })"  # the model chooses the order of its headings
    )
    return [f"{rule['id']}: {node['html'][:120]}" for rule in found["violations"] for node in rule["nodes"]]
