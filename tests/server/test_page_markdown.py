"""What the chat page makes of the Markdown, and of the attacks, that models write."""

from __future__ import annotations

from typing import Any

from tests.server.browser import Tab, ask

RENDER = """async (text) => {
    const { renderMarkdown } = await import('/assets/markdown.js');
    const box = document.createElement('div');
    renderMarkdown(box, text);
    for (const button of box.querySelectorAll('button')) button.remove();
    return box.innerHTML;
}"""

CASES = {
    "# One\n## Two ##": "<h3>One</h3><h4>Two</h4>",
    "a\nb": "<p>a<br>b</p>",
    "**bold** and __bold__": "<p><strong>bold</strong> and <strong>bold</strong></p>",
    "*a **b** c* ***d***": "<p><em>a <strong>b</strong> c</em> <strong><em>d</em></strong></p>",
    "2 * 3 * 4, snake_case_name, a ** b": "<p>2 * 3 * 4, snake_case_name, a ** b</p>",
    "**open `**`": "<p>**open <code>**</code></p>",
    "~~gone~~ ~kept~": "<p><del>gone</del> ~kept~</p>",
    "``a ` b`` and ` alone": "<p><code>a ` b</code> and ` alone</p>",
    r"\*plain\* \n": r"<p>*plain* \n</p>",
    "a &lt; b &amp; c": "<p>a &lt; b &amp; c</p>",
    "- a\n- b\n  - c\n- d": "<ul><li>a</li><li>b<ul><li>c</li></ul></li><li>d</li></ul>",
    "- a\n\n- b": "<ul><li><p>a</p></li><li><p>b</p></li></ul>",
    "3. a\n4. b": '<ol start="3"><li>a</li><li>b</li></ol>',
    "1. a\n   - b\n\ntext": "<ol><li>a<ul><li>b</li></ul></li></ol><p>text</p>",
    "In the year\n1984. It": "<p>In the year<br>1984. It</p>",
    "> a\n> > b": "<blockquote><p>a</p><blockquote><p>b</p></blockquote></blockquote>",
    "a\n\n---\n\nb": "<p>a</p><hr><p>b</p>",
}


async def rendered(tab: Tab, text: str) -> str:
    async with tab.open("/dashboard") as page:
        return await page.evaluate(RENDER, text)


async def test_markdown_is_understood(tab: Tab) -> None:
    async with tab.open("/dashboard") as page:
        found = {text: await page.evaluate(RENDER, text) for text in CASES}
    assert found == CASES


async def test_code_keeps_its_text(tab: Tab) -> None:
    html = await rendered(tab, "```py\n<b>*x*</b>\n\n  y\n```\nafter")
    assert "<code>&lt;b&gt;*x*&lt;/b&gt;\n\n  y</code>" in html
    assert html.endswith("<p>after</p>")


async def test_an_unfinished_code_block_is_code_already(tab: Tab) -> None:
    assert "<code># no heading\n</code>" in await rendered(tab, "```py\n# no heading\n")


async def test_tables(tab: Tab) -> None:
    html = await rendered(tab, "| a | b |\n|:-:|--:|\n| 1 \\| 2 | *3* |\n| short |")
    assert '<th class="to-center" scope="col">a</th>' in html
    assert '<td class="to-center">1 | 2</td><td class="to-end"><em>3</em></td>' in html
    assert '<td class="to-center">short</td><td class="to-end"></td>' in html


LINKS = {
    "[x](https://a.example/b_(c))": "https://a.example/b_(c)",
    '[x](http://a.example "title")': "http://a.example/",
    "see https://a.example/b_c_d.": "https://a.example/b_c_d",
    "(https://a.example/b)": "https://a.example/b",
    "<https://a.example/>": "https://a.example/",
    "![picture](https://a.example/p.png)": "https://a.example/p.png",
    "[**x** https://b.example](https://a.example/)": "https://a.example/",
}


async def test_links(tab: Tab) -> None:
    async with tab.open("/dashboard") as page:
        for text, address in LINKS.items():
            html = await page.evaluate(RENDER, text)
            assert html.count("<a ") == 1, html
            assert f'href="{address}" target="_blank" rel="noopener noreferrer nofollow"' in html


OTHER = [
    "javascript:alert(1)",
    "JaVaScRiPt:alert(1)",
    "data:text/html,x",
    "vbscript:x",
    "//a.example",
    "/v1",
    "file:///x",
]


async def test_other_addresses_stay_text(tab: Tab) -> None:
    async with tab.open("/dashboard") as page:
        for address in OTHER:
            assert await page.evaluate(RENDER, f"[x]({address})") == f"<p>[x]({address})</p>"


async def test_hostile_text_stays_text(tab: Tab) -> None:
    async with tab.open() as page:
        await ask(page, "hostile")
        answer = page.locator(".assistant .markdown:visible")
        assert await answer.locator("img, script, iframe, style, [onerror], [onmouseover]").count() == 0
        links = await answer.locator("a").evaluate_all("links => links.map((link) => link.protocol)")
        assert set(links) == {"https:"}
        assert '<img src=x onerror="window.broken = 1">' in await answer.inner_text()
        assert await page.evaluate("window.broken") is None


LONG = {
    "quotes": ">" * 5000,
    "items": "- " * 5000,
    "lines": "- a\n" * 10_000,
    "indents": "".join(" " * depth + "- a\n" for depth in range(200)),
    "stars": "*a " * 20_000,
    "mixed marks": "**a _b " * 10_000,
    "closers": "*a " * 10_000 + "b_ " * 10_000,
    "brackets": "[" * 20_000,
    "half links": "[a](" * 10_000,
    "backticks": "`" * 9999 + " `a" * 9999,
    "runs": " ".join("`" * size for size in range(300)),
    "pipes": "|a" * 9999 + "\n" + "|-" * 9999,
    "heading": "# " + " #" * 20_000,
    "rule": "* " * 20_000 + "x",
}
TIMED = (
    f"async (text) => {{ const start = performance.now(); await ({RENDER})(text); return performance.now() - start; }}"
)


async def test_no_text_takes_long(tab: Tab) -> None:
    async with tab.open("/dashboard") as page:
        times = {name: await page.evaluate(TIMED, text) for name, text in LONG.items()}
    assert {name: time for name, time in times.items() if time > 2000} == {}


async def test_finished_blocks_are_left_alone(tab: Tab) -> None:
    grow = """async () => {
        const { renderMarkdown } = await import('/assets/markdown.js');
        const box = document.createElement('div');
        renderMarkdown(box, 'one\\n\\ntw');
        const first = box.firstChild;
        renderMarkdown(box, 'one\\n\\ntwo *three*');
        return [box.firstChild === first, box.textContent];
    }"""
    async with tab.open("/dashboard") as page:
        assert await page.evaluate(grow) == [True, "onetwo three"]


async def test_code_is_copied(tab: Tab) -> None:
    async with tab.open(permissions=["clipboard-read", "clipboard-write"]) as page:
        await ask(page, "markdown")
        await page.click("figure.code button")
        await page.wait_for_selector("text=Copied")
        copied: Any = await page.evaluate("navigator.clipboard.readText()")
    assert copied.startswith("def join(*parts):\n    return")
