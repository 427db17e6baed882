"""Marks of calls never reach the content, wherever a text is cut into pieces and wherever it ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from asurge.parsing import ToolCallStart
from asurge.parsing.formats.base import SPECIAL_TOKENS
from tests.parsing.formats import FORMATS, IDS, MARKS, Call, call_lists, llama, mixtures, pythonic, tools
from tests.parsing.pieces import arguments, content, cut, events, parser

few = settings(
    max_examples=15,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],
)
Write = Callable[[Sequence[Call]], str]
each_format = pytest.mark.parametrize(("name", "write"), FORMATS, ids=IDS)
MARKED = [(name, write) for name, write in FORMATS if write not in (llama, pythonic)]
CALLS: list[Call] = [("f0", {"a": "b", "c": 30}), ("f1", {}), ("f2", {"d": ["e"]})]
OWN = {
    "hermes": ["<tool_call>", "</tool_call>"],
    "mistral": ["[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"],
    "mistral_v11": ["[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"],
    "granite": ["<|tool_call|>", "<tool_call>", "</tool_call>"],
    "phi4_mini": ["functools[", "<|tool_call|>", "<|/tool_call|>"],
    "glm45": ["<tool_call>", "</tool_call>", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"],
    "qwen3_coder": ["<tool_call>", "</tool_call>", "<function=", "</function>", "<parameter=", "</parameter>"],
    "pythonic": ["<|python_start|>", "<|python_end|>"],
    "llama3_json": ["<|python_tag|>", "<|python_start|>", "<|python_end|>"],
    **{name: [mark for mark in MARKS[name] if mark[:1] == "<"] for name in ("deepseek_v3", "deepseek_v31", "kimi_k2", "gpt_oss")},
    "gemma": ["<start_function_call>", "<end_function_call>", "<escape>"],
}  # fmt: skip


def marks_in(text: str, name: str) -> list[str]:
    return [mark for mark in (*OWN[name], *SPECIAL_TOKENS) if mark in text]


@st.composite
def texts(draw: st.DrawFn, name: str, write: Write) -> str:
    """Mixtures, and marks within marks, which would be marks again without those inside."""
    mark, inner = draw(st.sampled_from(OWN[name])), draw(st.sampled_from(OWN[name]))
    at = draw(st.integers(0, len(mark)))
    pieces = [draw(mixtures(name, write)), mark[:at], inner, mark[at:], draw(mixtures(name, write))]
    return "".join(draw(st.permutations(pieces)) if draw(st.booleans()) else pieces)


@each_format
@few
@given(data=st.data(), cuts=st.lists(st.integers(0, 400), max_size=20))
def test_no_mark_reaches_the_content(name: str, write: Write, data: Any, cuts: list[int]) -> None:
    text = data.draw(texts(name, write))
    kind = data.draw(st.sampled_from([None, "think"]))
    found = events(parser(name, kind), [text])
    assert not marks_in(content(found), name)
    assert events(parser(name, kind), list(text)) == found
    assert events(parser(name, kind), cut(text, cuts)) == found
    end = data.draw(st.integers(0, len(text)))
    ended = events(parser(name, kind), [text[:end]])
    assert events(parser(name, kind), list(text[:end])) == ended
    assert not marks_in(content(ended), name)


@pytest.mark.parametrize(("name", "write"), MARKED, ids=[write.__name__ for _, write in MARKED])
@pytest.mark.parametrize("lead", ["", "Well. "])
def test_what_is_left_of_a_call_that_was_cut_off_is_no_content(name: str, write: Write, lead: str) -> None:
    """At most half of the first mark is: it may be text until it is whole."""
    text, given = lead + write(CALLS), tools(CALLS)
    whole = events(parser(name, tools=given), [text])
    names = [event.name for event in whole if isinstance(event, ToolCallStart)]
    assert names == [called for called, _ in CALLS]
    for end in range(len(lead), len(text) + 1):
        found = events(parser(name, tools=given), [text[:end]])
        assert events(parser(name, tools=given), list(text[:end])) == found
        begun = content(found).removeprefix(lead)
        assert not begun or (end - len(lead) <= len(begun) and any(mark.startswith(begun) for mark in OWN[name])), end
        started = [event.name for event in found if isinstance(event, ToolCallStart)]
        assert started == names[: len(started)]
        for index in range(len(started)):
            assert arguments(whole, index).startswith(arguments(found, index))


@pytest.mark.parametrize(("name", "write"), [(name, write) for name, write in FORMATS if write in (llama, pythonic)])
def test_after_a_call_without_a_mark_nothing_of_another_is_content(name: str, write: Write) -> None:
    text = write(CALLS)
    begun = next(
        end
        for end in range(len(text))
        if any(isinstance(event, ToolCallStart) for event in events(parser(name), [text[:end]]))
    )
    for end in range(begun, len(text) + 1):
        assert content(events(parser(name), [text[:end]])) == ""


@each_format
@few
@given(data=st.data())
def test_calls_between_texts_keep_their_arguments(name: str, write: Write, data: Any) -> None:
    """Every position: a text that ends there has the beginning of what the whole one has."""
    wanted = data.draw(call_lists(name))
    text, given = write(wanted) + data.draw(st.sampled_from(["", " Done.", "<", "\n"])), tools(wanted)
    whole = events(parser(name, tools=given), [text])
    count = sum(isinstance(event, ToolCallStart) for event in whole)
    for end in range(0, len(text) + 1, max(1, len(text) // 40)):
        found = events(parser(name, tools=given), [text[:end]])
        started = sum(isinstance(event, ToolCallStart) for event in found)
        assert started <= count
        for index in range(started):
            assert arguments(whole, index).startswith(arguments(found, index))
        assert not marks_in(content(found), name)
