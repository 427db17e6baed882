"""Fitting a conversation into the context: whole turns go before text is cut, and the template stays whole."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from asurge.config import TruncateMode
from asurge.text.context import cut
from asurge.text.excerpt import TextCodec, excerpt

Message = Mapping[str, Any]
Render = Callable[[Sequence[Message]], str]
"""Turns a conversation into the text that is to be tokenised."""

_FRAME_ROLES = ("system", "developer")
_MESSAGE_CHARACTERS = 32
"""About how much templates put around a message."""

_SEAM_CHARACTERS = 256
"""Where two texts differ, this much of what they share is tokenised with the difference: tokens do not depend on more."""


@dataclasses.dataclass(frozen=True, slots=True)
class FittedConversation:
    """A conversation that fits, as tokens; and what was left out of it.

    ``token_ids`` may still be too long if nothing but the template itself is left.
    """

    token_ids: tuple[int, ...]
    dropped_messages: int = 0
    truncated_tokens: int = 0


def fit_conversation(
    messages: Sequence[Message], render: Render, codec: TextCodec, room: int, mode: TruncateMode
) -> FittedConversation:
    """Leave out the oldest turns of a conversation until at most ``room`` tokens are left.

    Then cut the longest text that is left, at the place ``mode`` says.

    A turn begins with a user's message, and holds the calls and results of tools that follow it. The system messages at the
    beginning and the last turn stay. Renders a conversation as often as binary search has to, not once for each turn, and
    tokenises a small multiple of what the room holds, however long the conversation is.
    """
    text = render(messages)
    whole = excerpt(codec, text, room + 1, "left", add_special_tokens=False)
    if whole.left_out == 0 and len(whole.token_ids) <= room:
        return FittedConversation(tuple(whole.token_ids))
    frame, turns = _split(messages)
    lengths = _Lengths(codec, room)
    if whole.left_out == 0:
        lengths.learn(text, len(whole.token_ids))
    too_much = text[-whole.characters :]

    def kept(number: int) -> list[Message]:
        return [*frame, *(message for turn in turns[len(turns) - number :] for message in turn)]

    def fits(number: int) -> bool:
        text = render(kept(number))
        return not text.endswith(too_much) and lengths.of(text) <= room

    size = len(whole.token_ids) + whole.left_out
    number = _greatest(_likely(frame, turns, room / size), len(turns) - 1, fits)
    left = kept(max(number, 1))
    text = render(left) if number else _with_longest_cut(left, render, codec, lengths, room, mode)
    ids = tuple(excerpt(codec, text, room + 1, "left", add_special_tokens=False).token_ids)
    return FittedConversation(ids, len(messages) - len(left), max(size - len(ids), 0))


def _likely(frame: Sequence[Message], turns: Sequence[Sequence[Message]], share: float) -> int:
    """How many of the last turns make up this share of a conversation, by their characters."""

    def weight(messages: Sequence[Message]) -> int:
        return sum(_MESSAGE_CHARACTERS + len(_text(message)) for message in messages)

    weights = list(map(weight, turns))
    left, number = share * (weight(frame) + sum(weights)) - weight(frame), 0
    while number < len(turns) and (left := left - weights[-1 - number]) >= 0:
        number += 1
    return number


def _text(message: Message) -> str:
    return str(message.get("content") or "")


class _Lengths:
    """Counts the tokens of texts that are much alike: of each, only what it does not share with the last one is tokenised.
    Where that is so far beyond ``room`` that nobody has to know, it is estimated."""

    def __init__(self, codec: TextCodec, room: int) -> None:
        self._codec, self._room = codec, room
        self._text, self._length = "", 0

    def learn(self, text: str, length: int) -> None:
        """Take in a text whose length is known."""
        self._text, self._length = text, length

    def of(self, text: str) -> int:
        """A text's length in tokens."""
        last = self._text
        head = _shared(text, last)
        tail = _shared(text[head:][::-1], last[head:][::-1])
        begin, end = max(head - _SEAM_CHARACTERS, 0), max(tail - _SEAM_CHARACTERS, 0)
        own, other = text[begin : len(text) - end], last[begin : len(last) - end]
        if len(own) + len(other) < min(len(text), len(last)):
            self.learn(text, self._length + self._count(own) - self._count(other))
            return self._length
        found = excerpt(self._codec, text, self._room + 1, "left", add_special_tokens=False)
        if found.left_out == 0:
            self.learn(text, len(found.token_ids))
        return len(found.token_ids) + found.left_out

    def _count(self, text: str) -> int:
        return len(self._codec.encode(text, add_special_tokens=False))


def _split(messages: Sequence[Message]) -> tuple[list[Message], list[list[Message]]]:
    """The system messages at the beginning, and the turns after them."""
    begin = next((at for at, one in enumerate(messages) if one.get("role") not in _FRAME_ROLES), len(messages))
    turns: list[list[Message]] = []
    for message in messages[begin:]:
        if message.get("role") == "user" or not turns:
            turns.append([])
        turns[-1].append(message)
    return list(messages[:begin]), turns or [[]]


def _with_longest_cut(
    messages: Sequence[Message], render: Render, codec: TextCodec, lengths: _Lengths, room: int, mode: TruncateMode
) -> str:
    """A conversation with as much of its longest text as fits; none of it, if nothing fits."""
    texts = list(map(_text, messages))
    longest = max(range(len(texts)), key=lambda at: len(texts[at]))
    ids = excerpt(codec, texts[longest], room, mode, add_special_tokens=False).token_ids

    def with_at_most(count: int) -> str:
        content = texts[longest] if len(ids) <= count else codec.decode(cut(ids, count, mode))
        return render([*messages[:longest], {**messages[longest], "content": content}, *messages[longest + 1 :]])

    # Cutting a text can make it a token longer than asked for, so the number is searched for, not computed.
    guess = max(room - lengths.of(with_at_most(0)), 0)
    return with_at_most(_greatest(guess, room, lambda count: lengths.of(with_at_most(count)) <= room))


def _greatest(guess: int, high: int, fits: Callable[[int], bool]) -> int:
    """The greatest number up to ``high`` that fits, where all smaller ones do; 0 if none does. Searched for from a guess, in
    growing steps."""
    low, step = max(min(guess, high), 0), 1
    while low > 0 and not fits(low):
        low, high, step = max(low - step, 0), low - 1, 2 * step
    step = 1
    while low < high:
        probe = min(low + step, high) if step else (low + high + 1) // 2
        if fits(probe):
            low, step = probe, 2 * step
        else:
            high, step = probe - 1, 0
    return low


def _shared(one: str, other: str) -> int:
    """How many characters two texts share at the beginning."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
