"""Random texts under the grammars of calls, in a vocabulary whose marks are tokens and in one where they are text."""

from __future__ import annotations

import functools
from typing import Any

import jsonschema
import numpy as np

from asurge.guidance import Grammars
from asurge.guidance.grammar import GrammarState
from asurge.parsing import TOOL_FORMATS
from asurge.parsing.formats.base import SPECIAL_TOKENS
from asurge.text import Tokenizer
from tests.guidance.schemas import schema
from tests.guidance.walks import VOCAB, allowed
from tests.text.families import tokenizer, tokenizer_with

NAMES = sorted(TOOL_FORMATS)
BOUNDED = {
    "glm45",
    "glm47",
    "qwen3_coder",
    "qwen3_xml",
    "gemma",
    "functiongemma",
    "pythonic",
    "llama4_pythonic",
    "olmo3",
}
"""Formats with strings that end with a mark, which come soon only if the schema says so, or with names of a kind."""
MARKS = [
    "<tool_call>", "</tool_call>", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>", "[TOOL_CALLS]", "[ARGS]",
    "<think>", "</think>", "<|tool_call|>",
]  # fmt: skip


@functools.cache
def with_marks() -> Tokenizer:
    """A vocabulary in which all marks are single tokens."""
    marks = {*SPECIAL_TOKENS, *MARKS, *(mark for fmt in TOOL_FORMATS.values() for mark in fmt.hidden)} - {"<s>", "</s>"}
    return tokenizer_with({mark: mark not in MARKS or mark[0] == "[" for mark in sorted(marks)})


def model(kind: str) -> Tokenizer:
    return with_marks() if kind == "marks are tokens" else tokenizer("byte-level BPE")


@functools.cache
def grammars(kind: str) -> Grammars:
    return Grammars(model(kind), VOCAB, model(kind).eos_token_ids)


def walk(state: GrammarState, kind: str, seed: int, *, begun: str = "", free: bool = False, limit: int = 4000) -> str:
    """A random text behind one that has begun; up to its end, or to where text is ``free`` again."""
    rng, known = np.random.default_rng(seed), model(kind)
    ids = known.encode(begun, add_special_tokens=False)
    for token in ids:
        state.accept(token)
    while len(ids) < limit and not state.is_stopped:
        if state.is_accepting and (free or rng.random() < 0.5):
            break
        options = [token for token in allowed(state).tolist() if token not in known.eos_token_ids]
        if not options:
            break
        ids.append(int(rng.choice(options)))
        state.accept(ids[-1])
    assert len(ids) < limit, known.decode(ids, skip_special_tokens=False)[-200:]
    return known.decode(ids, skip_special_tokens=False)


def bounded(rng: np.random.Generator) -> dict[str, Any]:
    """A schema of the kinds of parameters that formats without quotes treat apart."""
    kinds: list[dict[str, Any]] = [
        {"type": "string", "maxLength": 12}, {"type": "string", "minLength": 2, "maxLength": 30}, {"enum": ["a", "b c", "x<y"]},
        {"type": "string", "pattern": "^[a-c/]{2,5}$"}, {"type": "string", "const": "k"}, {"type": "integer"},
        {"type": "boolean"}, {"type": "number"}, {"type": ["string", "null"], "maxLength": 5}, {"$ref": "#/$defs/word"},
        {"type": "array", "items": {"type": "integer"}, "maxItems": 3}, {"enum": [1, "one"]},
        {"type": "object", "properties": {"s": {"type": "string", "maxLength": 9}}, "additionalProperties": False},
    ]  # fmt: skip
    names = [f"p{index}" for index in range(rng.integers(0, 5))]
    return {
        "$defs": {"word": {"type": "string", "maxLength": 8}},
        "type": "object",
        "properties": {name: kinds[rng.integers(len(kinds))] for name in names},
        "required": [name for name in names if rng.random() < 0.5],
        "additionalProperties": False,
    }


def any_object(rng: np.random.Generator) -> dict[str, Any]:
    while (found := schema(rng)).get("type") != "object":
        pass
    return found


def tools(name: str, seed: int, count: int = 2) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    make = bounded if name in BOUNDED or seed % 2 else any_object
    return [
        {"type": "function", "function": {"name": f"tool-{index}_{seed}", "parameters": make(rng)}}
        for index in range(count)
    ]


def check(found: list[tuple[str, Any]], given: list[dict[str, Any]]) -> None:
    for name, arguments in found:
        wanted = next(one["function"]["parameters"] for one in given if one["function"]["name"] == name)
        jsonschema.validate(arguments, wanted, format_checker=jsonschema.FormatChecker())
