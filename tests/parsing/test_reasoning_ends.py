"""Calls that begin before the reasoning has ended."""

from __future__ import annotations

import pytest

from asurge.parsing import TOOL_FORMATS
from tests.parsing.formats import FORMATS, IDS, tools
from tests.parsing.pieces import calls, content, events, parser, reasoning


@pytest.mark.parametrize(("name", "write"), FORMATS, ids=IDS)
@pytest.mark.parametrize("behind", ["", "</think>", "\n</think>\n\nDone."])
@pytest.mark.parametrize("is_open", [False, True])
def test_the_mark_of_a_call_ends_the_reasoning(name: str, write: object, behind: str, is_open: bool) -> None:
    if not TOOL_FORMATS[name].marks or write.__name__ in ("pythonic", "llama"):  # type: ignore[attr-defined]
        return
    text = ("" if is_open else "<think>") + "I look it up. " + write([("f0", {"a": "b"})]) + behind  # type: ignore[operator]
    found = events(parser(name, "think", reasoning_open=is_open, tools=tools([("f0", {"a": "b"})])), list(text))
    assert calls(found) == [("f0", {"a": "b"})]
    assert reasoning(found) == "I look it up. "
    assert content(found).strip() == behind.replace("</think>", "").strip()
