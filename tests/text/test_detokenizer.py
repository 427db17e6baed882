from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asurge.text import IncrementalDetokenizer
from tests.text.families import FAMILIES, TEXT, tokenizer

every_family = pytest.mark.parametrize("family", list(FAMILIES))


def pieces(family: str, ids: list[int], prompt: list[int] | None = None) -> list[str]:
    detokenizer = IncrementalDetokenizer(tokenizer(family), prompt or [])
    return [*(detokenizer.push([token]) for token in ids), detokenizer.flush()]


@every_family
@pytest.mark.parametrize("text", TEXT[:6])
def test_the_pieces_of_a_text_add_up_to_it(family: str, text: str) -> None:
    inner = tokenizer(family)
    ids = inner.encode(text, add_special_tokens=False)
    assert "".join(pieces(family, ids)) == inner.decode(ids)


@every_family
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_random_tokens_add_up_too(family: str, data: st.DataObject) -> None:
    """Any tokens, in any order: the pieces are the whole text, however the bytes fall."""
    inner = tokenizer(family)
    ids = data.draw(st.lists(st.integers(0, inner.vocab_size - 1), max_size=30))
    whole = inner.decode(ids)
    if family == "sentencepiece BPE" and "\ufffd" in whole:
        return  # its decoder replaces whole runs of bytes, which no stream can foresee
    assert "".join(pieces(family, ids)) == whole


@every_family
@pytest.mark.parametrize("text", TEXT[:6])
def test_a_continuation_reads_as_in_the_whole_text(family: str, text: str) -> None:
    inner = tokenizer(family)
    ids = inner.encode(text, add_special_tokens=False)
    for cut in range(1, len(ids)):
        if inner.decode(ids[:cut]).endswith("\ufffd") or not inner.decode(ids).startswith(inner.decode(ids[:cut])):
            continue  # a prompt does not end inside a character
        whole = inner.decode(ids)[len(inner.decode(ids[:cut])) :]
        assert "".join(pieces(family, ids[cut:], ids[:cut])) == whole


def test_no_piece_ends_inside_a_character() -> None:
    ids = tokenizer("byte-level BPE").encode("👩‍👩‍👧 日本 🎉", add_special_tokens=False)
    parts = pieces("byte-level BPE", ids)
    assert all("\ufffd" not in part for part in parts)
    assert len([part for part in parts if part]) > 3


def test_an_unfinished_character_comes_out_at_the_end_only() -> None:
    ids = tokenizer("byte-level BPE").encode("🇾", add_special_tokens=False)[:-1]
    assert len(ids) > 0
    parts = pieces("byte-level BPE", ids)
    assert all(part == "" for part in parts[:-1])
    assert "\ufffd" in parts[-1]


def test_special_tokens_are_skipped_or_shown() -> None:
    inner = tokenizer("byte-level BPE")
    end = next(iter(inner.eos_token_ids))
    ids = [*inner.encode("one"), end, *inner.encode("two")]
    shown = IncrementalDetokenizer(inner, [], skip_special_tokens=False)
    assert IncrementalDetokenizer(inner, []).push(ids) == "onetwo"
    assert shown.push(ids) + shown.flush() == "one</s>two"


def test_work_per_token_does_not_grow_with_the_text() -> None:
    class Counting:
        longest = 0

        def decode(self, token_ids: list[int], **_: bool) -> str:
            self.longest = max(self.longest, len(token_ids))
            return "\ufffd" * len(token_ids)  # never a whole character

    decoder = Counting()
    IncrementalDetokenizer(decoder, list(range(1000))).push(list(range(5000)))
    assert decoder.longest < 32
