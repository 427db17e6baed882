"""All formats: pieces do not matter, calls come back as they were written, and nothing is held without need."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from asurge.parsing import REASONING_FORMATS, TOOL_FORMATS, Content, ToolCallArguments, ToolCallStart
from asurge.parsing.formats.base import SPECIAL_TOKENS
from tests.parsing.formats import CHARACTERS, FORMATS, IDS, MARKS, Call, call_lists, glm45, mixtures, qwen3_coder, tools
from tests.parsing.pieces import calls, content, cut, events, merged, parser, reasoning

many = settings(
    max_examples=30,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],
)
each_format = pytest.mark.parametrize(("name", "write"), FORMATS, ids=IDS)
ALL_MARKS = {*SPECIAL_TOKENS, *(mark for marks in MARKS.values() for mark in marks if len(mark) > 2)}
ALL_MARKS.update(mark for fmt in TOOL_FORMATS.values() for mark in fmt.hidden)
FREE = st.text(CHARACTERS, max_size=60).filter(lambda text: not any(mark in text for mark in ALL_MARKS))
REASONING = [None, "think", "mistral", "granite", "kimi", "gpt_oss"]

Write = Callable[[Sequence[Call]], str]


@each_format
@many
@given(data=st.data(), cuts=st.lists(st.integers(0, 400), max_size=20), is_open=st.booleans())
def test_what_comes_of_a_text_does_not_depend_on_its_pieces(
    name: str, write: Write, data: Any, cuts: list[int], is_open: bool
) -> None:
    text = data.draw(mixtures(name, write))
    kind = data.draw(st.sampled_from(REASONING))
    given = tools([("f", {"a": ""})])

    def found(pieces: list[str]) -> list[Any]:
        return events(parser(name, kind, reasoning_open=is_open, tools=given), pieces)

    assert found(list(text)) == found(cut(text, cuts)) == found([text])


@each_format
@many
@given(data=st.data(), lead=st.sampled_from(["", "\n", "<think>so\n</think>\n\n"]), size=st.integers(1, 7))
def test_calls_come_back_as_they_were_written(name: str, write: Write, data: Any, lead: str, size: int) -> None:
    wanted = data.draw(call_lists(name))
    if write in (glm45, qwen3_coder):
        wanted = [(f"{one}{index}", given) for index, (one, given) in enumerate(wanted)]
    text = lead + write(wanted)
    one = parser(name, "think", tools=tools(wanted))
    found = events(one, [text[at : at + size] for at in range(0, len(text), size)])
    assert calls(found) == wanted
    assert content(found).strip() == ""
    assert reasoning(found).strip() == ("so" if "so" in lead else "")


@each_format
@many
@given(data=st.data(), text=FREE)
def test_calls_behind_text(name: str, write: Write, data: Any, text: str) -> None:
    """Where calls need no mark they begin the text, so there is none before them."""
    if write.__name__ in ("pythonic",):
        return
    wanted = data.draw(call_lists(name))
    if write in (glm45, qwen3_coder):
        wanted = [(f"{one}{index}", given) for index, (one, given) in enumerate(wanted)]
    found = events(parser(name, tools=tools(wanted)), ["Well. " + text, write(wanted), " Done."])
    assert calls(found) == wanted
    assert content(found).startswith(("Well. " + text).rstrip())
    assert content(found).endswith("Done.")


@each_format
@many
@given(text=FREE, cuts=st.lists(st.integers(0, 60), max_size=10))
def test_text_comes_at_once(name: str, write: Write, text: str, cuts: list[int]) -> None:
    """Behind a first word, so that nothing can be a call without a mark."""
    fmt = TOOL_FORMATS[name]
    marks = {*SPECIAL_TOKENS, *fmt.hidden, *getattr(fmt, "begins", ()), *getattr(fmt, "around", ())}
    starts = {mark[:size] for mark in marks for size in range(1, len(mark))}
    one, fed = parser(name), "Well."
    shown = content(one.feed(fed))
    for piece in cut(text, cuts):
        fed += piece
        shown += content(one.feed(piece))
        held = next((fed[at:] for at in range(len(fed)) if fed[at:] in starts), "")
        assert shown + held == fed
    assert shown + content(one.finish()) == "Well." + text


JSON_FORMATS = [(name, write) for name, write in FORMATS if TOOL_FORMATS[name].tags([]) is not None]


@pytest.mark.parametrize(("name", "write"), JSON_FORMATS, ids=[write.__name__ for _, write in JSON_FORMATS])
def test_arguments_come_as_they_are_written(name: str, write: Write) -> None:
    """JSON is passed on character by character, with its own blanks and escapes."""
    raw = '{ "a" :"\\u00e9\\/é", "b":[1.50, 1e3,{}] }'
    text = write([("f", {"marker": 1})]).replace('{"marker": 1}', raw)
    one, seen = parser(name), ""
    for at, char in enumerate(text):
        for event in one.feed(char):
            seen += "" if isinstance(event, Content | ToolCallStart) else event.text
        done = text[: at + 1].count(raw[-1]) and text[: at + 1].find(raw) >= 0
        begun = text[: at + 1].rfind(raw[0])
        if raw.startswith(text[text.find(raw) : at + 1]) and at >= text.find(raw) and begun >= 0:
            assert seen == text[text.find(raw) : at + 1]
        if done:
            break
    assert seen == raw


@each_format
@many
@given(data=st.data())
def test_a_call_that_breaks_off_keeps_what_has_come(name: str, write: Write, data: Any) -> None:
    wanted = data.draw(call_lists(name))
    text = write(wanted)
    size = data.draw(st.integers(0, len(text)))
    found = events(parser(name, tools=tools(wanted)), [text[:size]])
    whole = events(parser(name, tools=tools(wanted)), [text])
    names = [event.name for event in found if isinstance(event, ToolCallStart)]
    assert names == [event.name for event in whole if isinstance(event, ToolCallStart)][: len(names)]


def test_unknown_tools_are_passed_on() -> None:
    for name, write in FORMATS:
        assert calls(events(parser(name, tools=tools([("known", {})])), [write([("unknown", {"a": 1})])])) == [
            ("unknown", {"a": 1})
        ]


@pytest.mark.parametrize("name", ["glm45", "qwen3_coder"])
def test_values_without_quotes_are_what_the_schema_says(name: str) -> None:
    write = {"glm45": glm45, "qwen3_coder": qwen3_coder}[name]
    schema = {
        "type": "object",
        "$defs": {"word": {"type": "string"}},
        "properties": {"s": {"type": "string"}, "e": {"enum": ["1", "2"]}, "r": {"$ref": "#/$defs/word"}, "n": {"type": "integer"}, "b": {"type": "boolean"}, "u": {"type": ["string", "null"]}},
    }  # fmt: skip
    text = write(
        [("f", {"s": "1", "e": "2", "r": "null", "n": "3", "b": "True", "u": "null", "x": "[1]", "y": "plain"})]
    )
    given = [{"type": "function", "function": {"name": "f", "parameters": schema}}]
    wanted = {"s": "1", "e": "2", "r": "null", "n": 3, "b": True, "u": None, "x": [1], "y": "plain"}
    assert calls(events(parser(name, tools=given), [text])) == [("f", wanted)]


def test_python_literals() -> None:
    text = r"""[f(a='it\'s', b="""
    text += (
        '"""x "y"\n"""'
        + r""", c=-0x1F, d=1_000, e=.5, f=(1, 'a',), g={'k': None, 2: True,}, h=[], i="\x41\u00e9\d\
b", j=false, k="\ud83d\ude00", l="\ud83d")]"""
    )
    wanted = {"a": "it's", "b": 'x "y"\n', "c": -31, "d": 1000, "e": 0.5, "f": [1, "a"], "g": {"k": None, "2": True}, "h": [], "i": "Aé\\db", "j": False, "k": "😀", "l": "\ufffd"}  # fmt: skip
    assert calls(events(parser("pythonic"), list(text))) == [("f", wanted)]


@pytest.mark.parametrize(
    "text",
    ["[1, 2]", "[a link](https://x.y)", "[f(a=g())]", "[f(__import__('os'))]", "[f(a=1+1)]", "[f(a={1, 2})]", "[f(a=1", "[f(**x)]",
     "[f(a=nan)]", f"[f(a={'9' * 70}_0)]", "[1f()]", "[]"],
)  # fmt: skip
def test_what_is_no_python_call_is_content(text: str) -> None:
    found = events(parser("pythonic"), [text])
    assert all(not json.dumps(event.name).startswith("1") for event in found if isinstance(event, ToolCallStart))
    if not any(isinstance(event, ToolCallStart) for event in found):
        assert content(found) == text


def test_gpt_oss_channels() -> None:
    text = (
        "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>commentary<|message|>I look.<|end|>"
        "<|start|>assistant to=functions.f<|channel|>commentary json<|message|>{}<|call|>"
        "<|start|>assistant<|channel|>final<|message|>Done.<|return|>"
    )
    for kind in ("gpt_oss", None):
        found = events(parser("gpt_oss", kind), list(text))
        assert (reasoning(found), content(found), calls(found)) == ("Hm.", "I look.Done.", [("f", {})])
    found = events(parser(None, "gpt_oss"), [text])
    assert (reasoning(found), content(found), calls(found)) == ("Hm.", "I look.{}Done.", [])
    found = events(parser("gpt_oss"), [" to=functions.f<|channel|>commentary <|constrain|>json<|message|>{}<|call|>"])
    assert calls(found) == [("f", {})]
    assert events(parser("gpt_oss"), ["plain <|channel|>fin"]) == [Content("plain ")]


def test_kimis_and_mistrals_ids() -> None:
    text = "<|tool_call_begin|>functions.f:0<|tool_call_argument_begin|>{}<|tool_call_end|>"
    found = events(parser("kimi_k2"), [text, text])
    assert [event.call_id for event in found if isinstance(event, ToolCallStart)] == ["functions.f:0", None]
    found = events(parser("mistral"), ["[TOOL_CALLS]f[CALL_ID]abc123def[ARGS]{}"])
    assert found[0] == ToolCallStart(0, "f", "abc123def")


def test_a_tool_call_ends_kimis_reasoning() -> None:
    text = "<think>I look it up. <|tool_calls_section_begin|><|tool_call_begin|>f:0<|tool_call_argument_begin|>{}<|tool_call_end|>"
    found = events(parser("kimi_k2", "kimi"), [text])
    assert (reasoning(found), calls(found)) == ("I look it up. ", [("f", {})])


@pytest.mark.parametrize("name", REASONING_FORMATS)
def test_reasoning_formats(name: str) -> None:
    fmt = REASONING_FORMATS[name]
    for begin, end in zip(fmt.begins, fmt.ends, strict=True):
        found = events(parser(None, name), list(f" {begin}well{end}\n\nso {begin}"))
        assert merged(found) == found
        assert (reasoning(found), content(found)) == ("well", f"so {begin}")
        assert reasoning(events(parser(None, name), [f"{begin}well{end[:-1]}"])) == f"well{end[:-1]}"


CUT = {
    "hermes": '<tool_call>\n{"name": "rm", "arguments": {"path": "/a", "days": 30}}\n</tool_call>',
    "llama3_json": '{"name": "rm", "parameters": {"path": "/a", "days": 30}}',
    "mistral": '[TOOL_CALLS][{"name": "rm", "arguments": {"path": "/a", "days": 30}}]',
    "pythonic": '[rm(path="/a", days=30)]',
    "gemma": "<start_function_call>call:rm{path:<escape>/a<escape>,days:30}<end_function_call>",
    "glm45": "<tool_call>rm\n<arg_key>path</arg_key>\n<arg_value>/a</arg_value>\n<arg_key>days</arg_key>\n"
    "<arg_value>30</arg_value>\n</tool_call>",
    "qwen3_coder": "<tool_call>\n<function=rm>\n<parameter=path>\n/a\n</parameter>\n<parameter=days>\n30\n</parameter>\n"
    "</function>\n</tool_call>",
}


@pytest.mark.parametrize("name", CUT)
def test_a_call_that_breaks_off_does_not_pass_for_a_whole_one(name: str) -> None:
    """A tool whose parameters are optional would run without any."""
    text, whole = CUT[name], {"path": "/a", "days": 30}
    for end in range(len(text) + 1):
        found = events(parser(name), [text[:end]])
        written = "".join(event.text for event in found if isinstance(event, ToolCallArguments))
        try:
            assert json.loads(written) == whole
        except ValueError:
            continue


def test_a_header_without_a_name_is_no_call() -> None:
    found = events(parser("gpt_oss"), ["<|channel|>commentary to=functions. <|message|>{}<|call|>"])
    assert calls(found) == []


@pytest.mark.parametrize("lead", ["\n  ", " ", ""])
def test_blanks_before_a_call_without_a_mark_are_part_of_it(lead: str) -> None:
    text = lead + '{"name": "f", "parameters": {}}'
    assert calls(events(parser("llama3_json", "think"), list(text))) == [("f", {})]
    assert content(events(parser("llama3_json", "think"), list(text))) == ""
    assert content(events(parser(None, "think"), list(lead + "so"))) == lead + "so"
