"""The chat page, in a browser."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.server.browser import PHONE, Tab, ask
from tests.server.page_server import PAGES, PageServer, eventually


async def text_of(page: Any, selector: str) -> str:
    return await page.locator(selector).last.inner_text()


async def test_a_question_is_answered(tab: Tab, pages: PageServer) -> None:
    async with tab.open() as page:
        await page.wait_for_selector("#model:enabled")
        await ask(page, "Hello")
        assert await text_of(page, ".assistant .markdown:visible") == "You said: Hello"
        assert await text_of(page, ".bubble") == "Hello"
        figures = await text_of(page, ".figures")
    assert "first token" in figures
    assert "42 tokens" in figures
    assert pages.requests == [
        {
            "model": "demo",
            "messages": [{"role": "user", "content": "Hello"}],
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    ]


async def test_speed_is_shown(tab: Tab) -> None:
    async with tab.open() as page:
        await page.fill("#prompt", "think")
        await page.press("#prompt", "Enter")
        await page.wait_for_selector("#send:visible")
        assert "tokens/s" in await text_of(page, ".figures")


async def test_text_shows_while_it_comes(tab: Tab) -> None:
    async with tab.open() as page:
        await page.fill("#prompt", "slow")
        await page.press("#prompt", "Enter")
        await page.wait_for_selector("text=one two three one two")
        assert await page.is_visible("#stop")
        assert await page.get_attribute(".assistant article", "aria-busy") == "true"
        assert await text_of(page, "#announcer") == ""
        await page.press("#prompt", "Escape")


async def test_stop_ends_the_request(tab: Tab, pages: PageServer) -> None:
    async with tab.open() as page:
        await page.fill("#prompt", "slow")
        await page.press("#prompt", "Enter")
        await page.wait_for_selector("text=one two three one two")
        await page.click("#stop")
        await page.wait_for_selector("#send:visible")
        assert (await text_of(page, ".figures")).startswith("Stopped")
        await eventually(lambda: pages.disconnects == 1)
        assert await page.evaluate("document.activeElement.id") == "prompt"


async def test_stop_works_before_the_first_token(tab: Tab, pages: PageServer) -> None:
    async with tab.open() as page:
        await page.fill("#prompt", "silent")
        await page.press("#prompt", "Enter")
        await page.wait_for_selector("text=Waiting")
        await page.press("#prompt", "Escape")
        await eventually(lambda: pages.disconnects == 1)
        await ask(page, "again")
    assert pages.requests[-1]["messages"] == [{"role": "user", "content": "silent\n\nagain"}]


async def test_shift_enter_breaks_the_line(tab: Tab, pages: PageServer) -> None:
    async with tab.open() as page:
        await page.locator("#prompt").press_sequentially("one")
        await page.press("#prompt", "Shift+Enter")
        await page.locator("#prompt").press_sequentially("two")
        await page.press("#prompt", "Enter")
        await page.wait_for_selector("text=You said")
    assert pages.requests[0]["messages"][0]["content"] == "one\ntwo"


async def test_reasoning_is_folded_away(tab: Tab) -> None:
    async with tab.open() as page:
        await ask(page, "think")
        assert await text_of(page, ".assistant > article > .markdown") == "Done."
        assert not await page.is_visible("text=Let me think.")
        await page.click(".reasoning summary")
        await page.wait_for_selector("text=Let me think.")


async def test_tool_calls_are_cards_and_take_results(tab: Tab, pages: PageServer) -> None:
    async with tab.open() as page:
        await ask(page, "tool")
        assert await page.locator(".tool .name").all_inner_texts() == ["get_weather", "get_time"]
        assert '"city": "Rome"' in await page.locator(".tool pre code").first.inner_text()
        fields = page.get_by_role("textbox", name="Result")
        await fields.nth(0).fill("sunny")
        await fields.nth(1).fill("noon")
        await page.click("text=Send results")
        await page.wait_for_selector("text=You said: noon")
    call, first, second = pages.requests[1]["messages"][1:]
    assert call["tool_calls"][0]["function"] == {"name": "get_weather", "arguments": '{"city": "Rome"}'}
    assert first == {"role": "tool", "tool_call_id": "call_a", "content": "sunny"}
    assert second["tool_call_id"] == "call_b"


async def test_a_failure_in_the_stream_is_shown_and_retried(tab: Tab, pages: PageServer) -> None:
    async with tab.open() as page:
        await ask(page, "break")
        assert "The device is gone." in await text_of(page, ".problem")
        assert await page.is_visible("text=Half an ans")
        await page.click("text=Try again")
        await eventually(lambda: len(pages.requests) == 2)
        await page.wait_for_selector("#send:visible")
        assert await page.locator(".problem:visible").count() == 1
    assert pages.requests[0] == pages.requests[1]


async def test_a_broken_connection_is_shown(tab: Tab) -> None:
    async with tab.open() as page:
        await ask(page, "drop")
        assert "closed before" in await text_of(page, ".problem")


async def test_a_refusal_says_what_the_server_said(tab: Tab) -> None:
    async with tab.open() as page:
        await ask(page, "refuse")
        assert "max_tokens is too large." in await text_of(page, ".problem")
    assert "400" in tab.complaints.pop()  # the browser's own note


async def test_an_api_key_is_asked_for_and_stays_in_the_tab(tab: Tab, pages: PageServer) -> None:
    pages.key = "secret"
    async with tab.open() as page:
        await page.click("text=Enter it")
        assert await page.evaluate("document.activeElement.id") == "key"
        await page.keyboard.type("secret")
        await page.press("#key", "Tab")
        await page.wait_for_selector("#model:enabled")
        await ask(page, "Hello")
        assert await page.is_visible("text=You said")
        assert "secret" not in await page.evaluate("JSON.stringify(localStorage)")
        assert await page.evaluate("sessionStorage.getItem('asurge.key')") == "secret"
    assert "401" in tab.complaints.pop()


async def test_settings_reach_the_request_and_survive(tab: Tab, pages: PageServer) -> None:
    async with tab.open() as page:
        await page.wait_for_selector("#model:enabled")
        await page.select_option("#model", "qwen3-8b-instruct")
        for name, value in {"system": "Be brief.", "temperature": "0.5", "max_tokens": "64", "seed": "7"}.items():
            await page.fill(f"#{name}", value)
        await page.press("#seed", "Tab")
        await page.reload()
        await page.wait_for_selector("#model:enabled")
        await ask(page, "Hello")
    request = pages.requests[0]
    assert request["messages"][0] == {"role": "system", "content": "Be brief."}
    assert {name: request.get(name) for name in ("model", "temperature", "max_tokens", "seed", "top_p")} == {
        "model": "qwen3-8b-instruct",
        "temperature": 0.5,
        "max_tokens": 64,
        "seed": 7,
        "top_p": None,
    }


async def test_a_wrong_setting_is_not_sent(tab: Tab, pages: PageServer) -> None:
    async with tab.open() as page:
        await page.fill("#temperature", "9")
        await page.fill("#prompt", "Hello")
        await page.press("#prompt", "Enter")
        assert await page.evaluate("document.activeElement.id") == "temperature"
        assert await page.input_value("#prompt") == "Hello"
    assert pages.requests == []


async def test_edit_and_regenerate_replace_what_follows(tab: Tab, pages: PageServer) -> None:
    async with tab.open() as page:
        await ask(page, "first")
        await ask(page, "second")
        await page.get_by_role("button", name="Regenerate").click()
        await eventually(lambda: len(pages.requests) == 3)
        await page.wait_for_selector("#send:visible")
        assert len(pages.requests[2]["messages"]) == 3
        await page.get_by_role("button", name="Edit").first.click()
        await page.get_by_label("Edit your message").fill("changed")
        await page.keyboard.press("Enter")
        await page.wait_for_selector("text=You said: changed")
        assert await page.locator(".message").count() == 2
    assert [message["content"] for message in pages.requests[3]["messages"]] == ["changed"]


async def test_the_conversation_survives_a_reload_and_can_be_cleared(tab: Tab) -> None:
    async with tab.open() as page:
        await ask(page, "Hello")
        await page.reload()
        assert await text_of(page, ".assistant .markdown:visible") == "You said: Hello"
        await page.click("text=Clear")
        assert await page.locator(".message").count() == 0
        await page.click("text=Undo")
        assert await page.locator(".message").count() == 2
        await page.click("text=Clear")
        await page.reload()
        assert await page.is_visible("#welcome")


async def test_an_answer_cut_off_by_a_reload_is_kept(tab: Tab) -> None:
    async with tab.open() as page:
        await page.fill("#prompt", "slow")
        await page.press("#prompt", "Enter")
        await page.wait_for_selector("text=one two three one two")
        await page.reload()
        await page.wait_for_selector("text=one two three")
        assert await page.locator(".problem:visible").count() == 0


async def test_scrolling_yields_to_the_reader(tab: Tab) -> None:
    gap = "(s => s.scrollHeight - s.scrollTop - s.clientHeight)(document.querySelector('#scroller'))"
    async with tab.open() as page:
        await page.fill("#prompt", "long")
        await page.press("#prompt", "Enter")
        await page.wait_for_selector(".assistant .markdown p >> nth=40")
        assert await page.evaluate(gap) < 100
        await page.hover("#scroller")
        await page.mouse.wheel(0, -900)
        await page.wait_for_selector("#to-end:visible")
        top = await page.evaluate("document.querySelector('#scroller').scrollTop")
        await page.wait_for_selector("#send:visible")
        assert await page.evaluate("document.querySelector('#scroller').scrollTop") == top
        await page.click("#to-end")
        assert await page.evaluate(gap) < 2


async def test_answers_are_announced_once_they_are_complete(tab: Tab) -> None:
    async with tab.open() as page:
        await page.wait_for_selector("#model:enabled")
        await ask(page, "Hello")
        assert await page.locator("#announcer").text_content() == "demo answered: You said: Hello"
        assert await page.locator("#thread[aria-live], #thread [aria-live]").count() == 0


async def test_an_editor_left_open_waits_for_the_answer(tab: Tab, pages: PageServer) -> None:
    async with tab.open() as page:
        await ask(page, "first")
        await page.get_by_role("button", name="Edit").click()
        await page.fill("#prompt", "slow")
        await page.press("#prompt", "Enter")
        await page.wait_for_selector("text=one two three")
        await page.get_by_label("Edit your message").press("Enter")
        assert await page.locator(".message").count() == 4
        await page.click("#stop")
    assert len(pages.requests) == 2


async def test_models_that_were_out_of_reach_are_asked_for_again(tab: Tab, pages: PageServer) -> None:
    pages.down = True
    async with tab.open() as page:
        await page.wait_for_selector("text=Shutting down.")
        pages.down = False
        await ask(page, "Hello")
        assert not await page.is_visible("#notice")
    assert pages.requests[0]["model"] == "demo"
    assert "503" in tab.complaints.pop()


async def test_the_pages_work_under_a_prefix(tab: Tab, pages: PageServer) -> None:
    async with tab.open("/under/") as page:
        await ask(page, "Hello")
        assert await page.is_visible("text=You said: Hello")
        await page.click("text=Dashboard")
        await page.wait_for_selector("text=Live")
        await page.click("text=Chat")
        assert page.url == f"{pages.address}/under/"


async def test_the_keyboard_is_enough(tab: Tab) -> None:
    async with tab.open() as page:
        await page.keyboard.type("Hello")
        await page.keyboard.press("Enter")
        await page.wait_for_selector("text=Regenerate")
        await page.keyboard.press("Shift+Tab")
        assert await page.evaluate("document.activeElement.textContent") == "Regenerate"
        outline = await page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline == "solid"


async def test_settings_on_a_phone_are_a_dialog(tab: Tab) -> None:
    async with tab.open(**PHONE) as page:
        assert not await page.is_visible("#settings")
        await page.focus("#open-settings")
        await page.keyboard.press("Enter")
        assert await page.is_visible("#settings")
        assert await page.get_attribute("#open-settings", "aria-expanded") == "true"
        await page.keyboard.press("Escape")
        assert not await page.is_visible("#settings")
        assert await page.evaluate("document.activeElement.id") == "open-settings"


@pytest.mark.parametrize("message", ["markdown", "hostile", "tool", "slow", "x" * 400])
async def test_a_phone_never_scrolls_sideways(tab: Tab, message: str) -> None:
    async with tab.open(**PHONE) as page:
        await page.fill("#prompt", message)
        await page.press("#prompt", "Enter")
        await page.wait_for_selector(".assistant .markdown p:visible, .tool:visible")
        wide = "document.scrollingElement.scrollWidth > innerWidth || (s => s.scrollWidth > s.clientWidth)(document.querySelector('#scroller'))"
        assert not await page.evaluate(wide)
        await page.press("#prompt", "Escape")


async def test_nothing_moves_while_an_answer_grows(tab: Tab) -> None:
    observe = """
        window.moved = 0;
        new PerformanceObserver((list) => { for (const entry of list.getEntries()) window.moved += entry.value; })
            .observe({ type: 'layout-shift', buffered: false });
    """
    async with tab.open() as page:
        await page.fill("#prompt", "slow")
        await page.press("#prompt", "Enter")
        await page.wait_for_selector("text=one two three")
        await page.evaluate(observe)
        await page.wait_for_timeout(1000)
        assert await page.evaluate("window.moved") < 0.01
        await page.press("#prompt", "Escape")


@pytest.mark.parametrize("path", sorted(PAGES.iterdir()), ids=lambda path: path.name)
def test_sources_keep_to_their_bounds(path: Path) -> None:
    source = path.read_text()
    assert len(source.splitlines()) <= 400
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(| style=| on\w+=\"", source)
    assert not re.search(r"(src|href|from|url)[=( ]+[\"']?(https?:)?//", source)
