"""Fitting a conversation into the context: whole turns go before text is cut, and the template stays whole."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from asurge.text.context import TruncateMode, cut

Message = Mapping[str, Any]
Tokens = Callable[[Sequence[Message]], Sequence[int]]
"""Renders and tokenises a conversation."""

_FRAME_ROLES = ("system", "developer")


class TextCodec(Protocol):
    """What is needed of a tokenizer to cut a text at tokens."""

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]: ...

    def decode(self, token_ids: Sequence[int]) -> str: ...


@dataclasses.dataclass(frozen=True, slots=True)
class FittedConversation:
    """A conversation that fits, as tokens; and what was left out of it.

    ``token_ids`` may still be too long: if nothing but the template itself is left of it.
    """

    token_ids: tuple[int, ...]
    dropped_messages: int = 0
    truncated_tokens: int = 0


def fit_conversation(
    messages: Sequence[Message], tokens: Tokens, cut_text: Callable[[str, int], str], room: int
) -> FittedConversation:
    """Leave out the oldest turns until at most ``room`` tokens are left, then cut the longest text that is left.

    A turn begins with a user's message, and holds the calls and results of tools that follow it. The system's messages at
    the beginning and the last turn stay. Renders a conversation as often as binary search has to, not once for each turn.

    Args:
        cut_text: at most so many tokens of a text.
    """
    whole = tuple(tokens(messages))
    if len(whole) <= room:
        return FittedConversation(whole)
    frame, turns = _split(messages)

    def kept(dropped: int) -> list[Message]:
        return [*frame, *(message for turn in turns[dropped:] for message in turn)]

    last = len(turns) - 1
    dropped = _least(0, last, lambda number: len(tokens(kept(number))) <= room)
    left = kept(min(dropped, last))
    ids = tuple(tokens(left))
    if len(ids) > room:
        ids = _cut_longest(left, tokens, cut_text, room)
    return FittedConversation(ids, len(messages) - len(left), max(len(whole) - len(ids), 0))


def _split(messages: Sequence[Message]) -> tuple[list[Message], list[list[Message]]]:
    """The system's messages at the beginning, and the turns behind them."""
    begin = next((at for at, one in enumerate(messages) if one.get("role") not in _FRAME_ROLES), len(messages))
    turns: list[list[Message]] = []
    for message in messages[begin:]:
        if message.get("role") == "user" or not turns:
            turns.append([])
        turns[-1].append(message)
    return list(messages[:begin]), turns or [[]]


def _cut_longest(
    messages: Sequence[Message], tokens: Tokens, cut_text: Callable[[str, int], str], room: int
) -> tuple[int, ...]:
    """As much of the longest message's text as fits; if it does not fit without it, nothing of it."""
    texts = [message["content"] if isinstance(message.get("content"), str) else "" for message in messages]
    longest = max(range(len(texts)), key=lambda at: len(texts[at]))

    def with_at_most(count: int) -> list[Message]:
        changed = {**messages[longest], "content": cut_text(texts[longest], count)}
        return [*messages[:longest], changed, *messages[longest + 1 :]]

    # Cutting a text can make it a token longer than asked for, so the number is looked for, not computed.
    left_out = _least(0, room, lambda number: len(tokens(with_at_most(room - number))) <= room)
    return tuple(tokens(with_at_most(max(room - left_out, 0))))


def _least(low: int, high: int, fits: Callable[[int], bool]) -> int:
    """The least number from ``low`` on that fits, where all larger ones do; ``high`` + 1 if none up to ``high`` does."""
    high += 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle + 1, high)
    return low


def text_cutter(codec: TextCodec, mode: TruncateMode) -> Callable[[str, int], str]:
    """Cuts texts at tokens, where ``mode`` says."""

    def cut_text(text: str, count: int) -> str:
        ids = codec.encode(text, add_special_tokens=False)
        return text if len(ids) <= count else codec.decode(cut(ids, count, mode))

    return cut_text
