"""Texts written at random under the formats' grammars and tags are calls that fit their tools."""

from __future__ import annotations

from typing import Any

import pytest

from asurge.errors import InvalidRequestError
from asurge.parsing import TOOL_FORMATS
from asurge.structured import GuidedDecodingParams
from tests.parsing.guided import NAMES, check, grammars, model, tools, walk
from tests.parsing.pieces import calls, content, events, parser


@pytest.mark.parametrize("kind", ["marks are text", "marks are tokens"])
@pytest.mark.parametrize("name", NAMES)
def test_forced_calls_fit_their_tools(name: str, kind: str) -> None:
    seen = set[int]()
    for seed in range(14):
        given, parallel = tools(name, seed), bool(seed % 3)
        grammar = TOOL_FORMATS[name].grammar(given, parallel=parallel)
        assert grammar is not None
        begun = "<|channel|>commentary" if name in ("gpt_oss", "openai") and kind == "marks are text" else ""
        state = grammars(kind).compile(GuidedDecodingParams(grammar=grammar)).start()
        text = walk(state, kind, seed, begun=begun)
        found = events(parser(name, tools=given), [text])
        check(calls(found), given)
        assert content(found) == ""
        assert (len(calls(found)) >= 1) if parallel else (len(calls(found)) == 1)
        seen.add(len(calls(found)))
    assert name in ("gpt_oss", "openai") or max(seen) > 1


FORM: dict[str, Any] = {
    "type": "object", "properties": {"name": {"type": "string"}, "ok": {"type": "boolean"}}, "required": ["name", "ok"],
    "additionalProperties": False,
}  # fmt: skip


@pytest.mark.parametrize("kind", ["marks are text", "marks are tokens"])
@pytest.mark.parametrize("name", NAMES)
def test_a_call_may_come_in_place_of_a_form(name: str, kind: str) -> None:
    """The same calls as those that are forced, and the form."""
    for seed in range(4):
        given = tools(name, seed)
        grammar = TOOL_FORMATS[name].grammar(given, parallel=False)
        assert grammar is not None
        begun = "<|channel|>commentary" if name in ("gpt_oss", "openai") and kind == "marks are text" else ""
        forced = walk(grammars(kind).compile(GuidedDecodingParams(grammar=grammar)).start(), kind, seed, begun=begun)
        for form, said in (
            ({"json": FORM}, '{"name": "tool-0", "ok": true}'),
            ({"json_object": True}, '{"a": [1]}'),
            ({"regex": "[a-z ]{3,9}"}, "so it is"),
            ({"choice": ["yes", "no"]}, "no"),
        ):
            either = grammars(kind).compile(GuidedDecodingParams(**form, alternative=grammar))
            for text in (forced.lstrip(), said):
                state = either.start()
                for token in model(kind).encode(text, add_special_tokens=False):
                    state.accept(token)
                assert state.is_accepting, text
            assert calls(events(parser(name, tools=given), [said])) == []


TAGGED = [name for name in NAMES if TOOL_FORMATS[name].tags([]) is not None]


@pytest.mark.parametrize("kind", ["marks are text", "marks are tokens"])
@pytest.mark.parametrize("name", TAGGED)
def test_tagged_calls_fit_their_tools_and_text_stays_free(name: str, kind: str) -> None:
    for seed in range(6):
        given = tools(name, seed)
        tag = TOOL_FORMATS[name].tags(given)
        assert tag is not None
        state = grammars(kind).compile(GuidedDecodingParams(structural_tag=tag)).start()
        assert state.is_accepting
        head = "<|channel|>commentary " if name in ("gpt_oss", "openai") else "Well, <3. "
        begun = head + tag["triggers"][0]
        text = walk(state, kind, seed, begun=begun, free=True)
        found = events(parser(name, tools=given), [text])
        check(calls(found), given)
        assert len(calls(found)) == 1
        assert content(found).startswith("Well, <3." if "Well" in head else "")
        assert state.is_accepting


def test_tools_without_parameters_and_with_odd_ones() -> None:
    given = [
        {"type": "function", "function": {"name": "none"}},
        {"type": "function", "function": {"name": "any", "parameters": {"type": "object"}}},
        {"type": "function", "function": {"name": "odd", "parameters": {"properties": {'a "b"': {"const": "<\\/>"}}, "required": ["c"]}}},
    ]  # fmt: skip
    for name in NAMES:
        grammar = TOOL_FORMATS[name].grammar(given, parallel=True)
        if grammar is None:
            assert name in ("gemma", "functiongemma", "pythonic", "llama4_pythonic", "olmo3")
            grammar = TOOL_FORMATS[name].grammar(given[:2], parallel=True)
        assert grammar is not None
        for kind in ("marks are text", "marks are tokens"):
            grammars(kind).compile(GuidedDecodingParams(grammar=grammar))


ODD: dict[str, dict[str, Any]] = {
    "properties in a list": {"type": "object", "properties": ["a"]},
    "a number of required parameters": {"type": "object", "properties": {"a": {"type": "string"}}, "required": 5},
    "required parameters without names": {"type": "object", "properties": {"a": {"type": "string"}}, "required": [5, ["a"]]},
    "definitions in a list": {"$ref": "#/$defs/x", "$defs": []},
    "a definition that is none": {"$ref": "#/$defs/x", "$defs": {"x": 5}},
    "parameters that are none": {"type": "object", "properties": {"a": 5, "b": {"$ref": "#/$defs/x"}}, "$defs": 5},
    "one of what is no list": {"type": "object", "properties": {"a": {"type": "string", "enum": 5}}},
}  # fmt: skip


@pytest.mark.parametrize("case", ODD)
@pytest.mark.parametrize("name", NAMES)
def test_schemas_that_say_nothing_are_no_failures(name: str, case: str) -> None:
    """Neither where a grammar is written, nor where a call is read."""
    given = [{"type": "function", "function": {"name": "f", "parameters": ODD[case]}}]
    assert TOOL_FORMATS[name].grammar(given, parallel=False)
    text = "<tool_call>\n<function=f>\n<parameter=a>\nx\n</parameter>\n</function>\n</tool_call>"
    if name == "qwen3_coder":
        assert calls(events(parser(name, tools=given), [text])) == [("f", {"a": "x"})]


OPTIONAL = {"anyOf": [{"type": "string"}, {"type": "null"}]}
KINDS: dict[str, tuple[dict[str, Any], str, Any]] = {
    "a string": ({"type": "string"}, "12", "12"),
    "a string or null": ({"type": ["string", "null"]}, "12", "12"),
    "an optional string": (OPTIONAL, "12", "12"),
    "an optional string that is not there": (OPTIONAL, "null", None),
    "an optional string by reference": ({"anyOf": [{"$ref": "#/$defs/name"}, {"type": "null"}]}, "[1]", "[1]"),
    "a string or a number": ({"type": ["string", "integer"]}, "12", 12),
    "a nullable choice": ({"type": "string", "nullable": True, "enum": ["c", "f", None]}, "c", "c"),
    "an optional number": ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, "12", 12),
    "anything": ({}, "12", 12),
    "what does not end": ({"anyOf": [{"$ref": "#/$defs/loop"}] * 20}, "12", 12),
}


@pytest.mark.parametrize("case", KINDS)
def test_values_without_quotes_are_what_their_schema_allows(case: str) -> None:
    schema, written, value = KINDS[case]
    definitions = {"name": {"type": "string"}, "loop": {"anyOf": [{"$ref": "#/$defs/loop"}] * 20}}
    parameters = {"type": "object", "properties": {"a": schema}, "required": ["a"], "$defs": definitions}
    given = [{"type": "function", "function": {"name": "f", "parameters": parameters}}]
    texts = {
        "qwen3_coder": f"<tool_call>\n<function=f>\n<parameter=a>\n{written}\n</parameter>\n</function>\n</tool_call>",
        "glm45": f"<tool_call>f\n<arg_key>a</arg_key>\n<arg_value>{written}</arg_value>\n</tool_call>",
    }
    for name, text in texts.items():
        assert calls(events(parser(name, tools=given), [text])) == [("f", {"a": value})]


TEXTS: dict[str, dict[str, Any]] = {
    "null among the choices": {"enum": ["c", None]},
    "null as the only choice": {"enum": [None]},
    "lengths that are none": {"minLength": "0,})/ | /(?s:.*", "maxLength": -1},
    "a pattern that ends with a backslash": {"pattern": r"^a\\$"},
}


@pytest.mark.parametrize("case", TEXTS)
@pytest.mark.parametrize("name", ["qwen3_coder", "glm45", "gemma"])
def test_odd_strings_make_grammars(name: str, case: str) -> None:
    parameters = {"type": "object", "properties": {"a": {"type": "string", **TEXTS[case]}}, "required": ["a"]}
    grammar = TOOL_FORMATS[name].grammar(
        [{"type": "function", "function": {"name": "f", "parameters": parameters}}], parallel=False
    )
    assert grammar is not None
    assert "null" not in grammar
    assert "(?s:.*/ |" not in grammar
    for kind in ("marks are text", "marks are tokens"):
        grammars(kind).compile(GuidedDecodingParams(grammar=grammar))


@pytest.mark.parametrize("name", ["pythonic", "gemma", "glm45", "qwen3_coder"])
def test_definitions_are_repeated_only_where_they_are_meant_and_not_without_end(name: str) -> None:
    """One schema must not make gigabytes of grammar."""

    def tools(of_each: dict[str, Any]) -> list[dict[str, Any]]:
        definitions = {"d": {"description": "x" * 10_000}}
        parameters = {"$defs": definitions, "properties": {f"p{at}": of_each for at in range(500)}}
        return [{"type": "function", "function": {"name": "f", "parameters": parameters}}]

    grammar = TOOL_FORMATS[name].grammar(tools({"type": "integer"}), parallel=False)
    assert grammar is not None
    assert "xxx" not in grammar
    with pytest.raises(InvalidRequestError, match="use fewer tools") as refused:
        TOOL_FORMATS[name].grammar(tools({"items": [{"$ref": "#/$defs/d"}]}), parallel=False)
    assert refused.value.param == "tools"
