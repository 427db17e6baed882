"""What is left out of a conversation that does not fit, over a template whose tokens are easily counted."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from itertools import cycle, islice
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asurge.text import FittedConversation, fit_conversation, plain_messages
from asurge.text.context import TruncateMode, cut
from asurge.text.conversation import TextCodec
from tests.text.families import FAMILIES, tokenizer
from tests.text.prose import ASCII, WORDS, Counting, prose

ROLES = ("system", "user", "assistant", "tool")
Message = dict[str, Any]


class Letters:
    """A token for each character."""

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return [ord(letter) for letter in text]

    def decode(self, token_ids: Sequence[int]) -> str:
        return "".join(chr(token) for token in token_ids)


def render(messages: Sequence[Message]) -> str:
    """Two characters around each message, three at the end."""
    return "".join(f"<{one['content']}>" for one in messages) + "ASK"


def tokens(messages: Sequence[Message]) -> list[int]:
    return Letters().encode(render(messages))


def message(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def fit(messages: list[Message], room: int, mode: TruncateMode = "left") -> tuple[str, int, int]:
    fitted = fit_conversation(messages, render, Letters(), room, mode)
    return Letters().decode(fitted.token_ids), fitted.dropped_messages, fitted.truncated_tokens


TALK = [
    message("system", "sys"), message("user", "one"), message("assistant", "call"), message("tool", "result"),
    message("assistant", "1"), message("user", "two"), message("assistant", "2"), message("user", "three"),
]  # fmt: skip


def test_what_fits_is_left_alone() -> None:
    assert fit(TALK, 1000) == ("<sys><one><call><result><1><two><2><three>ASK", 0, 0)


def test_the_oldest_turn_goes_with_its_calls_and_results() -> None:
    whole = len(tokens(TALK))
    assert fit(TALK, whole - 1) == ("<sys><two><2><three>ASK", 4, 22)


def test_the_system_and_the_last_turn_stay_to_the_end() -> None:
    assert fit(TALK, 16) == ("<sys><three>ASK", 6, 30)


def test_then_the_longest_text_is_cut_where_the_mode_says() -> None:
    assert fit(TALK, 14, "left") == ("<sys><hree>ASK", 6, 31)
    assert fit(TALK, 14, "right") == ("<sys><thre>ASK", 6, 31)
    assert fit(TALK, 14, "middle") == ("<sys><thee>ASK", 6, 31)


def test_a_template_that_does_not_fit_is_told_as_it_is() -> None:
    text, dropped, _ = fit(TALK, 4)
    assert (text, dropped) == ("<sys><>ASK", 6)


def test_text_in_parts_is_cut_like_a_string() -> None:
    for content in ("", "a question " * 3):
        talk = [message("system", "be brief"), message("user", content), message("tool", "result " * 5)]
        parts = [{**one, "content": [{"type": "text", "text": text} for text in one["content"]]} for one in talk]
        for room in range(8, 80):
            found = fit_conversation(plain_messages(parts), render, Letters(), room, "left")
            assert Letters().decode(found.token_ids) == fit(talk, room)[0]


MESSAGES = st.lists(st.builds(message, st.sampled_from(ROLES), st.text("abc", max_size=9)), min_size=1, max_size=12)


@given(MESSAGES, st.integers(1, 90), st.sampled_from(["left", "right", "middle"]))
def test_whatever_is_left_out_it_is_no_more_than_needed(messages: list[Message], room: int, mode: TruncateMode) -> None:
    whole = tokens(messages)
    text, dropped, truncated = fit(messages, room, mode)
    assert truncated == len(whole) - len(text)
    if len(whole) <= room:
        assert (text, dropped, truncated) == (Letters().decode(whole), 0, 0)
        return
    frame = next((at for at, one in enumerate(messages) if one["role"] != "system"), len(messages))
    kept = [*messages[:frame], *messages[frame + dropped :]]
    last_user = max((at for at, one in enumerate(messages) if one["role"] == "user"), default=frame)
    assert frame + dropped <= max(last_user, frame), "the last turn was touched"
    assert dropped == 0 or messages[frame + dropped]["role"] == "user", "a turn was torn apart"
    if len(tokens(kept)) <= room:
        assert text == Letters().decode(tokens(kept))
        earlier = [at for at in range(frame, frame + dropped) if at == frame or messages[at]["role"] == "user"]
        assert all(len(tokens([*messages[:frame], *messages[at:]])) > room for at in earlier), "too much was dropped"
    else:
        longest = max(len(one["content"]) for one in kept)
        assert len(text) == max(room, len(tokens(kept)) - longest)


@given(st.integers(1, 200))
def test_conversations_are_rendered_a_few_times_only(turns: int) -> None:
    rendered = 0

    def counting(messages: Sequence[Message]) -> str:
        nonlocal rendered
        rendered += 1
        return render(messages)

    talk = [message("user", "x" * 20) for _ in range(turns)]
    fit_conversation(talk, counting, Letters(), 60, "left")
    assert rendered <= 6 + 2 * turns.bit_length() + (60).bit_length()


# ── against everything tokenised at every step ──────────────────────────────────────────────────


def plainly_fitted(
    messages: Sequence[Message],
    render: Callable[[Sequence[Message]], str],
    codec: TextCodec,
    room: int,
    mode: TruncateMode,
) -> FittedConversation:
    """The same by the definition."""

    def tokens(some: Sequence[Message]) -> list[int]:
        return codec.encode(render(some), add_special_tokens=False)

    def least(high: int, fits: Callable[[int], bool]) -> int:
        return bisect_left(range(high + 1), True, key=fits)

    whole = tokens(messages)
    if len(whole) <= room:
        return FittedConversation(tuple(whole))
    begin = next((at for at, one in enumerate(messages) if one["role"] != "system"), len(messages))
    turns: list[list[Message]] = []
    for one in messages[begin:]:
        if one["role"] == "user" or not turns:
            turns.append([])
        turns[-1].append(one)
    turns = turns or [[]]

    def kept(dropped: int) -> list[Message]:
        return [*messages[:begin], *(one for turn in turns[dropped:] for one in turn)]

    dropped = least(len(turns) - 1, lambda number: len(tokens(kept(number))) <= room)
    left = kept(min(dropped, len(turns) - 1))
    ids = tokens(left)
    if len(ids) > room:
        longest = max(range(len(left)), key=lambda at: len(left[at]["content"]))
        text = codec.encode(left[longest]["content"], add_special_tokens=False)

        def with_at_most(count: int) -> list[int]:
            content = left[longest]["content"] if len(text) <= count else codec.decode(cut(text, count, mode))
            return tokens([*left[:longest], {**left[longest], "content": content}, *left[longest + 1 :]])

        ids = with_at_most(max(room - least(room, lambda number: len(with_at_most(room - number)) <= room), 0))
    return FittedConversation(tuple(ids), len(messages) - len(left), max(len(whole) - len(ids), 0))


def chatml(messages: Sequence[Message]) -> str:
    return "".join(f"<s>{one['role']}\n{one['content']}</s>\n" for one in messages) + "<s>assistant\n"


SIZES = st.lists(st.tuples(st.sampled_from(ROLES), st.integers(0, 60)), min_size=1, max_size=12)


@settings(max_examples=25, deadline=None)
@pytest.mark.parametrize("family", FAMILIES)
@given(SIZES, st.integers(0, 2**32), st.floats(0.02, 1.1), st.sampled_from(["left", "right", "middle"]), st.booleans())
def test_as_if_everything_were_tokenised(
    family: str, sizes: list[tuple[str, int]], seed: int, share: float, mode: TruncateMode, plain: bool
) -> None:
    words = ASCII if plain else WORDS
    messages = [message(role, prose(seed + at, size, words)) for at, (role, size) in enumerate(sizes)]
    codec = tokenizer(family)
    room = max(int(share * len(codec.encode(chatml(messages), add_special_tokens=False))), 1)
    found, expected = (one(messages, chatml, codec, room, mode) for one in (fit_conversation, plainly_fitted))
    if plain:
        assert found == expected
    else:  # characters of several tokens that are cut become more tokens, so that fewer of a text may be more than more of it
        assert found.dropped_messages == expected.dropped_messages
        assert (len(found.token_ids) <= room) == (len(expected.token_ids) <= room)


@pytest.mark.parametrize("mode", ["left", "right", "middle"])
@pytest.mark.parametrize("words", [12_000, 100, 4])
def test_far_too_long_ones_as_well(words: int, mode: TruncateMode) -> None:
    codec, texts = tokenizer("byte-level BPE"), [prose(at, words, ASCII) for at in range(7)]
    roles = ("user", "assistant")
    talk = [message(role, text) for role, text in islice(zip(cycle(roles), cycle(texts)), 24_000 // words)]
    messages = [message("system", prose(9, 50)), *talk, message("user", prose(8, words, ASCII))]
    found, expected = (one(messages, chatml, codec, 1500, mode) for one in (fit_conversation, plainly_fitted))
    assert (found.token_ids, found.dropped_messages) == (expected.token_ids, expected.dropped_messages)
    assert found.truncated_tokens == pytest.approx(expected.truncated_tokens, rel=0.5)


@pytest.mark.parametrize("words", [60_000, 1000, 30, 3])
@pytest.mark.parametrize("length", [1.2, 3, 100])
def test_a_small_multiple_of_what_fits_is_tokenised(words: int, length: float) -> None:
    room, counting = 8000, Counting("byte-level BPE")
    per_message = len(tokenizer("byte-level BPE").encode(prose(1, words)))
    messages = [message("user", prose(at % 5, words)) for at in range(max(int(length * room / per_message), 1))]
    fitted = fit_conversation(messages, chatml, counting, room, "left")
    whole = tokenizer("byte-level BPE").encode(chatml(messages), add_special_tokens=False)
    worth = len(tokenizer("byte-level BPE").decode(whole[-room:], skip_special_tokens=False))
    assert len(fitted.token_ids) <= room
    assert counting.characters < 6 * worth
