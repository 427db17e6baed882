"""Tokens of long texts without making all of them: they are those of the whole text, and little else is read."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asurge.text import excerpt
from asurge.text.context import TruncateMode, cut
from asurge.text.excerpt import CHARACTERS_PER_TOKEN
from tests.text.families import FAMILIES, tokenizer
from tests.text.prose import Counting, prose

MODES: tuple[TruncateMode, ...] = ("left", "right", "middle")


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32), count=st.integers(1, 3000), mode=st.sampled_from(MODES), special=st.booleans())
def test_an_excerpt_has_the_tokens_of_the_whole(
    family: str, seed: int, count: int, mode: TruncateMode, special: bool
) -> None:
    text = prose(seed, 12_000)
    whole = tokenizer(family).encode(text, add_special_tokens=special)
    found = excerpt(tokenizer(family), text, count, mode, add_special_tokens=special)
    assert cut(found.token_ids, count, mode) == cut(whole, count, mode)
    assert found.left_out > 0
    assert found.left_out + len(found.token_ids) == pytest.approx(len(whole), rel=0.5)


@pytest.mark.parametrize("mode", MODES)
def test_little_is_tokenised_of_a_text_beyond_any_context(mode: TruncateMode) -> None:
    counting, text = Counting("byte-level BPE"), prose(1, 12_000) * 60
    found = excerpt(counting, text, 8193, mode)
    needed = len(tokenizer("byte-level BPE").decode(found.token_ids))
    assert len(text) > 4_000_000
    assert counting.characters < 3 * needed
    assert found.left_out > 1_000_000


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("text", [" " * 9_000_000, "x" * 9_000_000, "a " + "\n" * 9_000_000 + " b"], ids=str.split)
def test_what_makes_few_tokens_has_a_bound_too(mode: TruncateMode, text: str) -> None:
    """White space that a normalizer takes away, and words that are one unknown token."""
    counting = Counting("wordpiece")
    excerpt(counting, text, 1000, mode)
    assert counting.characters < 6 * 1000 * CHARACTERS_PER_TOKEN


def test_a_text_that_changes_its_kind_is_not_read_far_ahead() -> None:
    counting = Counting("byte-level BPE")
    excerpt(counting, prose(1, 12_000) * 30 + " " * 3000, 4000, "left")
    assert counting.characters < 16 * 4000


@pytest.mark.parametrize("mode", MODES)
def test_short_texts_are_tokenised_once(mode: TruncateMode) -> None:
    counting = Counting("byte-level BPE with BOS")
    found = excerpt(counting, "The quick brown fox. " * 100, 10, mode)
    assert found.left_out == 0
    assert found.token_ids == tokenizer("byte-level BPE with BOS").encode("The quick brown fox. " * 100)
    assert counting.characters == 2100
