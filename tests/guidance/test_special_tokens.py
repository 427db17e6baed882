"""Marks that are special tokens, in grammars and in structural tags."""

from __future__ import annotations

import functools

import pytest

from asurge.guidance import Grammars
from asurge.guidance.grammar import GrammarState
from asurge.guidance.special_tokens import token_ranges, with_tokens
from asurge.structured import GuidedDecodingParams
from asurge.text import Tokenizer
from tests.guidance.walks import VOCAB, allowed
from tests.text.families import tokenizer_with

TOKENS = {"<c>": 7, "</c>": 8, "[T]": 9}


@functools.cache
def model() -> Tokenizer:
    return tokenizer_with({mark: mark == "[T]" for mark in TOKENS})


@functools.cache
def grammars() -> Grammars:
    return Grammars(model(), VOCAB, model().eos_token_ids)


def start(**form: object) -> GrammarState:
    return grammars().compile(GuidedDecodingParams(**form)).start()


def accepts(text: str, **form: object) -> bool:
    """Whether a form allows each token of a text, and then its end."""
    state = start(**form)
    for token in model().encode(text, add_special_tokens=False):
        if state.is_stopped or token not in allowed(state):
            return False
        state.accept(token)
    return state.is_accepting


def test_literals_are_taken_apart_at_tokens() -> None:
    assert with_tokens('start: "a<c>b" x "[T]"\nx: "</c>"', TOKENS) == 'start: ("a" <[7]> "b") x (<[9]>)\nx: (<[8]>)'


@pytest.mark.parametrize(
    "lark",
    ['start: "a"', 'start: %json {"const": "<c>\\""} "b"', "start: /<c>/ // <c>\n", 'start: "<c>"i', 'start: M\nM: "<c>"',
     'start: x\nx[capture]: "<c>"', "start: /\\/\"<c>\"/", 'start: x\nx[lazy]: T "<c>a"\nT: /b/', 'start: "\\x41<c>"', "", "<c>"],
)  # fmt: skip
def test_all_else_stays_as_it_is(lark: str) -> None:
    assert with_tokens(lark, TOKENS) == lark


def test_lazy_rules_end_with_tokens() -> None:
    assert with_tokens('x[lazy]: T "</c>"\nT: /a/', TOKENS) == "x: T <[8]>\nT: /a/"
    assert with_tokens('x[lazy]: T "\\n</c>"\nT: /a/', TOKENS) == 'x: X_T <[8]>\nX_T: T "\\n"\nT: /a/'


def test_ranges_of_tokens() -> None:
    assert token_ranges([5, 1, 2, 3, 9]) == "<[1-3,5,9]>"


def test_grammars_write_marks_as_models_do() -> None:
    assert accepts("<c>hm</c>[T]!", grammar='start: "<c>" /[a-z]+/ "</c>[T]!"')
    assert not accepts("<c>hm[T]!", grammar='start: "<c>" /[a-z]+/ "</c>[T]!"')
    lazy = 'start: x "!"\nx[lazy]: T "\\n</c>"\nT: /(?s:.*)/'
    assert accepts("a\nb\n</c>!", grammar=lazy)
    assert not accepts("a\nb</c>!", grammar=lazy)


TAG = {"structures": [{"begin": "<c>f(", "schema": {"enum": [1, 2]}, "end": ")</c>"}], "triggers": ["<c>"]}


def test_tags_begin_and_end_with_tokens_and_other_tokens_are_free_text() -> None:
    for text in ("", "free", "[T] free [T]", "so <c>f(1)</c> and [T]<c>f(2)</c>", "</c>"):
        assert accepts(text, structural_tag=TAG), text
    for text in ("<c>", "<c>g", "<c>f(3)</c>", "<c>f(1)[T]"):
        assert not accepts(text, structural_tag=TAG), text
