"""The tokens of a text that is far too long for the context, without making all of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Protocol

from asurge.config import TruncateMode

CHARACTERS_PER_TOKEN = 128
"""No text is read further than this for each token there is room for: vocabularies have no longer tokens, and what
normalizers make of more (white space above all) is not waited for."""

_WHOLE_CHARACTERS, _WHOLE_PER_TOKEN = 1 << 15, 8
_SAMPLE_CHARACTERS = 2048
_GROWTH_PER_TOKEN = 6
_EDGE_TOKENS = 64
"""Made in addition to those that are kept, and dropped: where a text is cut, its tokens differ from those of the whole
text."""


class TextCodec(Protocol):
    """The interface of a tokenizer that `excerpt` needs."""

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]: ...

    def decode(self, token_ids: Sequence[int]) -> str: ...


@dataclasses.dataclass(frozen=True, slots=True)
class Excerpt:
    """Tokens of a text.

    Attributes:
        left_out: how many more tokens the text has, judging by the length of these; 0 if these are all.
        characters: how much of the text was read for them.
    """

    token_ids: Sequence[int]
    left_out: int
    characters: int


def excerpt(codec: TextCodec, text: str, count: int, mode: TruncateMode, *, add_special_tokens: bool = True) -> Excerpt:
    """Tokenise a text; of a long text, no more than ``count`` tokens, as ``mode`` cuts it.

    They are its last ones (``left``), its first ones (``right``), or half from each end (``middle``; one or two more).

    They are those of the whole text in practice, not by proof: a tokenizer that looks further than `_EDGE_TOKENS` around a
    place may split the beginning of an excerpt differently. A text beyond `CHARACTERS_PER_TOKEN` is cut there first. Little
    more is tokenised than the excerpt needs, whatever the length of the text.
    """
    whole = len(text)
    if whole <= max(_WHOLE_CHARACTERS, _WHOLE_PER_TOKEN * count):
        return Excerpt(codec.encode(text, add_special_tokens=add_special_tokens), 0, whole)
    text = _clipped(text, CHARACTERS_PER_TOKEN * count, mode)
    if mode == "middle":
        half = count // 2 + 1
        head, begin = _end_of(codec, text, half, add_special_tokens, last=False)
        tail, end = _end_of(codec, text, half, add_special_tokens, last=True)
        ids, made, read = [*head[:half], *tail[-half:]], len(head) + len(tail), begin + end
        if read >= len(text):
            ids = codec.encode(text, add_special_tokens=add_special_tokens)
            made, read = len(ids), len(text)
    else:
        ids, read = _end_of(codec, text, count, add_special_tokens, last=mode == "left")
        made = len(ids)
        if read < len(text):
            ids = ids[-count:] if mode == "left" else ids[:count]
    left_out = 0 if read == whole else max(round(whole / read * made) - len(ids), 1)
    return Excerpt(ids, left_out, read)


def _clipped(text: str, most: int, mode: TruncateMode) -> str:
    if len(text) <= most:
        return text
    if mode == "middle":
        return text[: most // 2] + text[-(most // 2) :]
    return text[-most:] if mode == "left" else text[:most]


def _end_of(codec: TextCodec, text: str, count: int, add_special_tokens: bool, *, last: bool) -> tuple[list[int], int]:
    """The tokens of enough of a text's beginning or end to give more than ``count``, and how many characters that is."""
    needed, size = count + _EDGE_TOKENS, _SAMPLE_CHARACTERS
    while size < len(text):
        ids = codec.encode(text[-size:] if last else text[:size], add_special_tokens=add_special_tokens)
        if len(ids) >= needed:
            return ids, size
        # Judged by how long the tokens so far are; but a text may begin differently from how it goes on, so growth is bounded.
        expected = size * needed * 9 // (8 * max(len(ids), 1)) + 1
        size = min(expected, max(2 * size, _GROWTH_PER_TOKEN * needed))
    return codec.encode(text, add_special_tokens=add_special_tokens), len(text)
