"""Turns the device's arrays into what an output reports about tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import overload

from asurge.outputs import Logprob
from asurge.plan import TokenLogprobs

DecodeToken = Callable[[int], str]


class LogprobFormatter:
    """Formats the logprobs of a request: the ``number`` likeliest tokens in order, then the token itself.

    The token itself is added only if it is not among them.
    """

    def __init__(self, number: int, decode: DecodeToken) -> None:
        self._number, self._decode = number, decode

    def tell(self, token_ids: Sequence[int], logprobs: TokenLogprobs) -> list[dict[int, Logprob]]:
        """Format logprobs as a mapping for each token."""
        return [self.one(logprobs, at, token) for at, token in enumerate(token_ids)]

    def one(self, logprobs: TokenLogprobs, at: int, token: int) -> dict[int, Logprob]:
        likeliest = zip(logprobs.ids[at, : self._number].tolist(), logprobs.values[at].tolist(), strict=False)
        told = {
            other: Logprob(value, rank, self._decode(other))
            for rank, (other, value) in enumerate(likeliest, 1)
            if value > float("-inf")
        }
        if token not in told:
            told[token] = Logprob(float(logprobs.chosen[at]), int(logprobs.rank[at]), self._decode(token))
        return told


class PromptLogprobs(Sequence[dict[int, Logprob] | None]):
    """Collect, for each prompt token, what `LogprobFormatter` tells about it; None for the first, which nothing precedes.

    Mappings are made when they are looked at: the arrays behind them are small, and thousands of mappings at once would
    stall the event loop.
    """

    def __init__(self, prompt_token_ids: Sequence[int], teller: LogprobFormatter) -> None:
        self._prompt, self._teller = prompt_token_ids, teller
        self._at: list[tuple[TokenLogprobs, int]] = []

    def extend(self, logprobs: TokenLogprobs) -> None:
        """Take in those of the next tokens."""
        self._at += [(logprobs, index) for index in range(len(logprobs.chosen))]

    def __len__(self) -> int:
        return 1 + len(self._at)

    @overload
    def __getitem__(self, index: int) -> dict[int, Logprob] | None: ...

    @overload
    def __getitem__(self, index: slice) -> list[dict[int, Logprob] | None]: ...

    def __getitem__(self, index: int | slice) -> dict[int, Logprob] | list[dict[int, Logprob] | None] | None:
        if isinstance(index, slice):
            return [self[at] for at in range(*index.indices(len(self)))]
        at = range(len(self))[index]
        if at == 0:
            return None
        logprobs, offset = self._at[at - 1]
        return self._teller.one(logprobs, offset, self._prompt[at])
