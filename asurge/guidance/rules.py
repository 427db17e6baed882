"""Rules over single tokens and short sequences of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from asurge.plan import MASK_BITS

Mask = npt.NDArray[np.uint32]
"""A bit for each token (`asurge.plan.MASK_BITS`). The model's vocabulary may hold ids that the tokenizer has no text for."""


def bits_of(token_ids: Iterable[int], words: int) -> Mask:
    """A mask with these tokens' bits set; ids that it has no bit for are left out."""
    mask = np.zeros(words, np.uint32)
    known = np.fromiter((token for token in set(token_ids) if 0 <= token < words * MASK_BITS), np.uint32)
    np.bitwise_or.at(mask, known // MASK_BITS, np.uint32(1) << known % MASK_BITS)
    return mask


def has_bit(mask: Mask, token: int) -> bool:
    """Whether a token's bit is set."""
    word = token // MASK_BITS
    return token >= 0 and word < len(mask) and bool(mask[word] >> np.uint32(token % MASK_BITS) & np.uint32(1))


class AllowedTokens:
    """No tokens other than these."""

    def __init__(self, token_ids: Sequence[int], words: int) -> None:
        self._mask = bits_of(token_ids, words)

    def accept(self, token: int) -> None:
        """Nothing to remember."""

    def narrow(self, mask: Mask) -> None:
        mask &= self._mask


class MinTokens:
    """No end before this many tokens."""

    def __init__(self, count: int, ends: Iterable[int], words: int) -> None:
        self._left, self._others = count, ~bits_of(ends, words)

    def accept(self, token: int) -> None:
        self._left -= 1

    def narrow(self, mask: Mask) -> None:
        if self._left > 0:
            mask &= self._others


class BadWords:
    """Sequences that are never completed: once all of one but its last token has come, that token may not follow."""

    def __init__(self, sequences: Iterable[Sequence[int]], words: int) -> None:
        known = {tuple(one) for one in sequences if one}
        self._others = ~bits_of((one[0] for one in known if len(one) == 1), words)
        self._long = [one for one in known if len(one) > 1]
        self._longest = max((len(one) - 1 for one in self._long), default=0)
        self._last: list[int] = []

    def accept(self, token: int) -> None:
        self._last = [*self._last, token][-self._longest :] if self._longest else []

    def narrow(self, mask: Mask) -> None:
        mask &= self._others
        for one in self._long:
            *before, last = one
            if self._last[-len(before) :] == before:
                mask[last // MASK_BITS] &= ~np.uint32(1 << last % MASK_BITS)
