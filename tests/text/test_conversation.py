"""What is left out of a conversation that does not fit, over a template whose tokens are easily counted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from asurge.text import fit_conversation, text_cutter

ROLES = ("system", "user", "assistant", "tool")
Message = dict[str, Any]


class Letters:
    """A token for each character."""

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return [ord(letter) for letter in text]

    def decode(self, token_ids: Sequence[int]) -> str:
        return "".join(chr(token) for token in token_ids)


def tokens(messages: Sequence[Message]) -> list[int]:
    """Two tokens around each message, three at the end."""
    return Letters().encode("".join(f"<{one['content']}>" for one in messages) + "ASK")


def message(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def fit(messages: list[Message], room: int, mode: str = "left") -> tuple[str, int, int]:
    fitted = fit_conversation(messages, tokens, text_cutter(Letters(), mode), room)  # type: ignore[arg-type]
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


MESSAGES = st.lists(st.builds(message, st.sampled_from(ROLES), st.text("abc", max_size=9)), min_size=1, max_size=12)


@given(MESSAGES, st.integers(1, 90), st.sampled_from(["left", "right", "middle"]))
def test_whatever_is_left_out_it_is_no_more_than_needed(messages: list[Message], room: int, mode: str) -> None:
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

    def counting(messages: Sequence[Message]) -> list[int]:
        nonlocal rendered
        rendered += 1
        return tokens(messages)

    talk = [message("user", "x" * 20) for _ in range(turns)]
    fit_conversation(talk, counting, text_cutter(Letters(), "left"), 60)
    assert rendered <= 4 + turns.bit_length() + (60).bit_length()
