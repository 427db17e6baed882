"""Records of requests, as a client sees them."""

from __future__ import annotations

import dataclasses
from itertools import pairwise


@dataclasses.dataclass(slots=True)
class Record:
    """A request as its client saw it; times are the event loop's, in seconds.

    Attributes:
        deliveries: when tokens came, and how many at once. A reader that is slower than the engine gets several.
        error: why it failed, or None.
    """

    input_tokens: int
    sent_s: float = 0.0
    ended_s: float = 0.0
    deliveries: list[tuple[float, int]] = dataclasses.field(default_factory=list)
    cached_tokens: int = 0
    error: str | None = None

    def deliver(self, at_s: float, tokens: int) -> None:
        """Note that tokens came."""
        self.deliveries.append((at_s, tokens))

    def settle(self, tokens: int) -> None:
        """Correct the count where a server reports only at the end how many tokens its deliveries held.

        What the first one held decides the time per token, and is left alone; the others share the difference.
        """
        if len(self.deliveries) == 1:
            self.deliveries = [(self.deliveries[0][0], tokens)]
        missing = tokens - self.output_tokens
        later = range(1, len(self.deliveries))
        for turn in range(abs(missing) if later else 0):
            at = later[turn % len(later)]
            at_s, held = self.deliveries[at]
            self.deliveries[at] = at_s, max(held + (1 if missing > 0 else -1), 0)

    @property
    def output_tokens(self) -> int:
        """Tokens that came."""
        return sum(tokens for _, tokens in self.deliveries)

    @property
    def latency_s(self) -> float:
        """End-to-end latency (E2EL): seconds from sending to the end."""
        return self.ended_s - self.sent_s

    @property
    def first_token_s(self) -> float | None:
        """Time to first token (TTFT): seconds from sending to the first delivery."""
        return self.deliveries[0][0] - self.sent_s if self.deliveries else None

    @property
    def per_token_s(self) -> float | None:
        """Time per token after the first delivery (TPOT): tokens that came with it took no time of their own."""
        if not self.deliveries:
            return None
        (began_s, first), (last_s, _) = self.deliveries[0], self.deliveries[-1]
        later = self.output_tokens - first
        return (last_s - began_s) / later if later > 0 else None

    @property
    def gaps_s(self) -> list[float]:
        """Times between deliveries (ITL)."""
        return [after - before for (before, _), (after, _) in pairwise(self.deliveries)]


@dataclasses.dataclass(frozen=True, slots=True)
class Load:
    """A whole workload: its requests, and when each of its rounds began and ended."""

    records: list[Record]
    rounds_s: list[tuple[float, float]]

    @property
    def duration_s(self) -> float:
        """Time in which requests were open."""
        return sum(ended - began for began, ended in self.rounds_s)
