"""Rules over tokens, against what they say in words."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asurge.errors import GuidanceError
from asurge.guidance import AllowedTokens, BadWords, MinTokens, RepetitionStop, SequenceConstraint, ThinkingTokens
from asurge.guidance.rules import bits_of
from tests.guidance.walks import VOCAB, allowed, mask_of, start
from tests.text.families import tokenizer

WORDS = VOCAB // 32
TOKENS = st.lists(st.integers(0, 7), max_size=30)
THINKING = ThinkingTokens((100,), (101, 102))
ALL_BUT_THE_END = [token for token in range(VOCAB) if token != 1]


@given(TOKENS, st.lists(st.lists(st.integers(0, 7), min_size=1, max_size=4), max_size=5))
def test_bad_words_are_never_completed(tokens: list[int], bad: list[list[int]]) -> None:
    one = SequenceConstraint({511}, VOCAB, rules=[BadWords(bad, WORDS)])
    one.accept(tokens)
    allowed = set(mask_of(one).tolist())
    for token in range(8):
        text = [*tokens, token]
        assert (token in allowed) == (not any(text[-len(word) :] == word for word in bad))


@given(TOKENS, st.integers(0, 40))
def test_no_end_before_min_tokens(tokens: list[int], least: int) -> None:
    one = SequenceConstraint({9, 510}, VOCAB, rules=[MinTokens(least, {9, 510}, WORDS)])
    one.accept(tokens)
    assert ({9, 510} <= set(mask_of(one).tolist())) == (len(tokens) >= least)


def test_only_allowed_tokens() -> None:
    one = SequenceConstraint({9}, VOCAB, rules=[AllowedTokens([3, 64, 511], WORDS)])
    assert mask_of(one).tolist() == [3, 64, 511]


def test_forks_go_their_own_ways() -> None:
    rules = [BadWords([[1, 2]], WORDS), MinTokens(1, {9}, WORDS)]
    one = SequenceConstraint({9}, VOCAB, rules=rules)
    other = one.fork()
    one.accept([1])
    assert {2, 9} & set(mask_of(one).tolist()) == {9}
    assert {2, 9} & set(mask_of(other).tolist()) == {2}


@pytest.mark.parametrize("regex", ["a", "a?", None])
def test_reasoning_does_not_end_the_text_before_its_form(regex: str | None) -> None:
    """A text that ends within its reasoning is empty: it may, where the form allows that."""
    grammar = None if regex is None else start(regex=regex)
    one = SequenceConstraint({1}, VOCAB, grammar=grammar, thinking=THINKING, prompt=[100])
    one.accept([7])
    assert (1 in mask_of(one).tolist()) == (regex != "a")
    assert len(mask_of(one)) >= VOCAB - 1


def test_forks_have_a_grammar_and_a_budget_each() -> None:
    one = SequenceConstraint({1}, VOCAB, grammar=start(regex="ab"), thinking=THINKING, thinking_budget=1, prompt=[100])
    other = one.fork()
    one.accept([7])
    assert mask_of(one).tolist() == [101]
    assert mask_of(other).tolist() == ALL_BUT_THE_END
    one.accept([101, 102])
    fresh = one.fork()
    one.accept(mask_of(one).tolist()[:1])
    assert mask_of(other).tolist() == ALL_BUT_THE_END
    assert mask_of(fresh).tolist() != mask_of(one).tolist()


def test_where_nothing_is_left_the_text_ends_or_fails() -> None:
    nothing = [AllowedTokens([3], WORDS), BadWords([[3]], WORDS)]
    assert mask_of(SequenceConstraint({9}, VOCAB, rules=nothing)).tolist() == [9]
    with pytest.raises(GuidanceError, match="loosen"):
        SequenceConstraint((), VOCAB, rules=nothing).fill(np.full(WORDS, 0xFFFFFFFF, np.uint32))


def first(prompt: list[int], *, thinking: ThinkingTokens = THINKING, may_think: bool = True) -> SequenceConstraint:
    return SequenceConstraint(
        {1}, VOCAB, grammar=start(regex="a{2}"), thinking=thinking, prompt=prompt, may_think=may_think
    )


def test_reasoning_may_begin_before_a_form() -> None:
    form = set(allowed(start(regex="a{2}")).tolist())
    one = first([7])
    other = one.fork()
    assert set(mask_of(one).tolist()) == form | {100}
    one.accept([100, 7])
    assert mask_of(one).tolist() == ALL_BUT_THE_END
    one.accept([8, 101, 102])
    assert set(mask_of(one).tolist()) == form
    other.accept(tokenizer("byte-level BPE").encode("a", add_special_tokens=False))
    assert 100 not in mask_of(other).tolist()


@pytest.mark.parametrize("prompt", [[100, 101, 102], [101, 102]])
def test_no_reasoning_begins_where_the_prompt_has_ended_it(prompt: list[int]) -> None:
    assert 100 not in mask_of(first(prompt)).tolist()


def test_no_reasoning_begins_where_none_is_expected_or_a_mark_has_several_tokens() -> None:
    assert 100 not in mask_of(first([7], may_think=False)).tolist()
    assert 100 not in mask_of(first([7], thinking=ThinkingTokens((100, 103), (101,)))).tolist()


def test_rules_may_forbid_what_begins_the_reasoning() -> None:
    one = SequenceConstraint(
        {1}, VOCAB, grammar=start(regex="a"), rules=[BadWords([[100]], WORDS)], thinking=THINKING, may_think=True
    )
    assert 100 not in mask_of(one).tolist()


def test_a_form_that_cannot_go_on_ends() -> None:
    one = SequenceConstraint({1}, VOCAB, grammar=start(regex="[a-c]{4}"), rules=[AllowedTokens([3], WORDS)])
    assert 3 not in allowed(start(regex="[a-c]{4}"))
    assert mask_of(one).tolist() == [1]
    assert not one.finished
    one.accept([1])
    assert one.finished


def test_an_end_that_a_form_does_not_allow_is_no_end() -> None:
    one = SequenceConstraint({1}, VOCAB, grammar=start(regex="[a-c]{4}"))
    assert 1 not in mask_of(one).tolist()
    with pytest.raises(GuidanceError):
        one.accept([1])


def test_reasoning_that_cannot_go_on_ends_the_text() -> None:
    """Its end is not among the tokens that may come."""
    rules = [AllowedTokens([7], WORDS), BadWords([[7, 7]], WORDS)]
    one = SequenceConstraint({1}, VOCAB, grammar=start(regex="a"), rules=rules, thinking=THINKING, prompt=[100])
    one.accept([7])
    assert mask_of(one).tolist() == [1]
    one.accept([1])
    assert one.finished


def test_reasoning_is_ended_within_its_budget() -> None:
    one = SequenceConstraint({9}, VOCAB, thinking=THINKING, thinking_budget=3)
    one.accept([1, 2, 3, 4, 5])  # not reasoning yet
    assert len(mask_of(one)) == VOCAB
    one.accept([100, 1, 2])
    assert len(mask_of(one)) == VOCAB
    one.accept([3])
    assert mask_of(one).tolist() == [101]
    one.accept([101])
    assert mask_of(one).tolist() == [102]
    one.accept([102, 1, 2, 3, 4])
    assert len(mask_of(one)) == VOCAB


@pytest.mark.parametrize(("prompt", "open_"), [([100], True), ([100, 5, 101, 102], False), ([101, 102, 7, 100], True), ([100, 1], False), ([101, 102, 7, 100, 1], False), ([], False)])  # fmt: skip
def test_a_prompt_opens_the_reasoning_with_its_last_tokens(prompt: list[int], open_: bool) -> None:
    one = SequenceConstraint({9}, VOCAB, thinking=THINKING, thinking_budget=0, prompt=prompt)
    assert (mask_of(one).tolist() == [101]) == open_


def test_a_grammar_waits_for_the_end_of_the_reasoning() -> None:
    one = SequenceConstraint({1}, VOCAB, grammar=start(regex="a{2}"), thinking=THINKING, prompt=[100])
    assert mask_of(one).tolist() == ALL_BUT_THE_END
    one.accept([7, 8, 101, 102])
    assert len(mask_of(one)) < 5


@given(st.lists(st.integers(0, 3), min_size=1, max_size=5), TOKENS, st.integers(2, 5))
def test_repetition_is_noticed_with_the_last_token_of_the_last_time(
    pattern: list[int], before: list[int], times: int
) -> None:
    stop = RepetitionStop(times)
    text = [9, *before, 8, *pattern * times]

    def repeats(tokens: list[int]) -> bool:
        return any(
            len(tokens) >= size * times and tokens[-size * times :] == tokens[-size:] * times for size in range(1, 65)
        )

    expected = next(at for at in range(1, len(text) + 1) if repeats(text[:at]))
    assert next(at for at, token in enumerate(text, 1) if stop.push(token)) == expected


def test_long_marks_of_reasoning_are_recognised() -> None:
    long = ThinkingTokens((100,), tuple(range(101, 121)))
    one = SequenceConstraint({9}, VOCAB, thinking=long, thinking_budget=2)
    one.accept([100, 1, 2])
    for token in long.end:
        assert mask_of(one).tolist() == [token]
        one.accept([token])
    assert len(mask_of(one)) == VOCAB


def test_bits_outside_a_mask_are_left_out() -> None:
    assert not bits_of([-1, -33, 64, 1 << 40], 2).any()
