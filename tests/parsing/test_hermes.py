"""What the parser does, shown on one format."""

from __future__ import annotations

import pytest

from asurge.parsing import Content, Reasoning, ToolCallArguments, ToolCallStart
from tests.parsing.pieces import calls, content, events, parser, reasoning

CALL = '<tool_call>\n{"name": "f", "arguments": {"a": "<tool_call>\\"}é"}}\n</tool_call>'


def test_reasoning_content_and_calls() -> None:
    text = f"\n<think>\nhm, a<b</think>\n\nLet me see. {CALL}\n{CALL}"
    found = events(parser("hermes", "think"), [text])
    assert found == [
        Reasoning("hm, a<b"),
        Content("Let me see. "),
        ToolCallStart(0, "f"),
        ToolCallArguments(0, '{"a": "<tool_call>\\"}é"}'),
        ToolCallStart(1, "f"),
        ToolCallArguments(1, '{"a": "<tool_call>\\"}é"}'),
    ]
    assert events(parser("hermes", "think"), list(text)) == found


def test_text_comes_at_once_and_only_what_may_be_a_mark_is_held() -> None:
    one = parser("hermes")
    assert one.feed("a < b <too") == [Content("a < b ")]
    assert one.feed("l_box> <tool_call") == [Content("<tool_box> ")]
    assert one.feed('>{"name": "f", "argum') == []
    assert one.feed('ents": {"a') == [ToolCallStart(0, "f"), ToolCallArguments(0, '{"a')]
    assert one.feed('": [') == [ToolCallArguments(0, '": [')]
    assert one.feed("1]}}</tool_call>") == [ToolCallArguments(0, "1]}")]
    assert one.finish() == []


@pytest.mark.parametrize(
    "text",
    ["<tool_call>oops</tool_call>", "<tool_call>", '<tool_call>{"name": 3, "arguments": {}}',
     '<tool_call>{"arguments": {"a": 1}}</tool_call>', '<tool_call>{"name": "", "arguments": {}}', "<tool_call>[]",
     '<tool_call>{"name": "f" "arguments": {}}', "a <tool_cal"],
)  # fmt: skip
def test_what_is_no_call_is_content_without_its_marks(text: str) -> None:
    shown = text.replace("<tool_call>", "").replace("</tool_call>", "")
    assert content(events(parser("hermes"), [text])) == shown
    assert content(events(parser("hermes"), list(text))) == shown


@pytest.mark.parametrize("text", ['<tool_call>{"name": "f", "arg', "<tool_call>\n", '<tool_call>{"arguments": {"a": 1'])
def test_what_is_cut_off_before_it_is_a_call_is_left_out(text: str) -> None:
    assert events(parser("hermes"), ["Well. ", text]) == [Content("Well. ")]
    assert events(parser("hermes"), list(text)) == []


def test_halves_of_a_mark_do_not_become_one() -> None:
    for text in ("a <tool_<tool_call>call> b", "a <tool_</tool_call>call> b", "a <<tool_call>tool_call> b"):
        found = events(parser("hermes"), [text])
        assert "<tool_call>" not in content(found)
        assert content(found).replace(" ", "") == "a<tool_call>b"
        assert events(parser("hermes"), list(text)) == found


def test_a_call_that_breaks_off_ends_as_it_stands() -> None:
    found = events(parser("hermes"), ['<tool_call>{"name": "f", "arguments": {"a": ['])
    assert found == [ToolCallStart(0, "f"), ToolCallArguments(0, '{"a": [')]


def test_what_follows_the_place_where_a_call_breaks_is_content() -> None:
    found = events(parser("hermes"), ['<tool_call>{"name": "f", "arguments": {"a": ]}}</tool_call> then'])
    assert found == [ToolCallStart(0, "f"), ToolCallArguments(0, '{"a": '), Content("]}} then")]


def test_members_in_any_order_and_arguments_in_a_string() -> None:
    found = events(
        parser("hermes"), ['<tool_call>{"id": "x", "arguments": "{\\"a\\": 1}", "b": [{}], "name": "g"}</tool_call>']
    )
    assert calls(found) == [("g", {"a": 1})]
    assert found[0] == ToolCallStart(0, "g", "x")


def test_no_arguments_are_an_empty_object() -> None:
    assert calls(events(parser("hermes"), ['<tool_call>{"name": "g"}</tool_call>'])) == [("g", {})]


def test_special_tokens_are_never_shown() -> None:
    text = "<think>a<|im_start|></think>b<|im_end|><tool_call>x<|im_end|><my_end>"
    found = events(parser("hermes", "think", special_tokens=["<my_end>"]), [text])
    assert (reasoning(found), content(found)) == ("a", "bx")


def test_reasoning_that_the_prompt_has_begun() -> None:
    for text in ("well</think>\nso", "<think>well</think>so"):
        assert events(parser(None, "think", reasoning_open=True), list(text)) == [Reasoning("well"), Content("so")]
    assert events(parser(None, "think"), ["so <think> is a mark"]) == [Content("so <think> is a mark")]


def test_nothing_comes_behind_the_end() -> None:
    one = parser("hermes", "think")
    assert one.feed("a<") == [Content("a")]
    assert one.finish() == [Content("<")]
    assert one.feed("b") == []
    assert one.finish() == []
