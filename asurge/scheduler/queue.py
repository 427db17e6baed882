"""Which waiting request comes next: by priority, by tenant, by what the cache holds, by arrival."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Callable, Iterator

from asurge.config import SchedulerConfig
from asurge.scheduler.request import Rank, Sequence

CACHE_WINDOW = 16
"""Waiting requests that are looked up in the cache when the next one is chosen."""


class Tenants:
    """What each tenant has been served, in tokens divided by its weight.

    The virtual token counter of "Fairness in Serving Large Language Models" (Sheng et al., OSDI 2024): the tenant with the
    least comes next, and one that comes back after a pause is lifted to the least of those that stayed, so that idling
    saves nothing up. Between two tenants that both wait, the counters never drift apart by more than what one of them
    can be served at once.
    """

    OUTPUT_COST = 2.0
    """The cost of a generated token, in prompt tokens."""

    def __init__(self, weights: dict[str, float]) -> None:
        self._weights = weights
        self._served: dict[str, float] = {}
        self._open: dict[str, int] = {}

    def enter(self, tenant: str) -> None:
        """One of its requests has arrived."""
        if not self._open.get(tenant):
            least = min((self._served[other] for other, count in self._open.items() if count), default=None)
            served = self._served.get(tenant, 0.0)
            self._served[tenant] = served if least is None else max(served, least)
        self._open[tenant] = self._open.get(tenant, 0) + 1

    def leave(self, tenant: str) -> None:
        """One of its requests has ended."""
        self._open[tenant] -= 1
        if not any(self._open.values()):  # there is nobody left to compare counters with
            self._open.clear()
            self._served.clear()

    def charge(self, tenant: str, prompt_tokens: int, output_tokens: int) -> None:
        """It was served."""
        self._served[tenant] += (prompt_tokens + self.OUTPUT_COST * output_tokens) / self._weights.get(tenant, 1.0)

    def served(self, tenant: str) -> float:
        """Tokens, divided by its weight."""
        return self._served.get(tenant, 0.0)


class WaitingQueue:
    """The requests without a slot, preempted ones among them.

    Higher priority comes first, if the policy says so. Within a priority, the tenant that was served least comes next; within
    a tenant, the request that came first, or the one of its first `CACHE_WINDOW` that finds most of its prompt in the cache. A
    request that was overtaken too often (``max_overtakes``) comes next whatever the cache holds.

    Args:
        matched: tokens of a sequence that the cache holds.
    """

    def __init__(self, config: SchedulerConfig, tenants: Tenants, matched: Callable[[Sequence], int]) -> None:
        self._config, self._tenants, self._matched = config, tenants, matched
        self._lines: dict[str, list[Sequence]] = {}  # by tenant, in order
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[Sequence]:
        return itertools.chain.from_iterable(self._lines.values())

    def add(self, sequence: Sequence) -> None:
        """Take in a request; one that was preempted returns to its old place."""
        bisect.insort(self._lines.setdefault(sequence.request.tenant, []), sequence, key=_rank)
        self._size += 1

    def remove(self, sequence: Sequence) -> None:
        tenant = sequence.request.tenant
        line = self._lines[tenant]
        del line[bisect.bisect_left(line, sequence.rank, key=_rank)]
        if not line:
            del self._lines[tenant]
        self._size -= 1

    def first(self) -> Sequence | None:
        """The request that comes next; None if none waits."""
        if not self._lines:
            return None
        line = min(self._lines.values(), key=self._order)
        return self._best_cached(line) if self._config.cache_aware else line[0]

    def overtake(self, sequence: Sequence) -> None:
        """Count, for every request ahead of one that is admitted, that it was overtaken."""
        if self._config.cache_aware:
            for other in self._lines[sequence.request.tenant][:CACHE_WINDOW]:
                if other is sequence:
                    break
                other.overtaken += 1

    def _order(self, line: list[Sequence]) -> tuple[int, float, int]:
        first = line[0]
        served = self._tenants.served(first.request.tenant) if len(self._lines) > 1 else 0.0
        return first.rank.priority, served, first.arrival

    def _best_cached(self, line: list[Sequence]) -> Sequence:
        first = line[0]
        if first.overtaken >= self._config.max_overtakes or first.pending:
            return first
        peers = [one for one in line[:CACHE_WINDOW] if one.rank.priority == first.rank.priority]
        return max(peers, key=lambda one: (self._matched(one), -one.arrival))


def _rank(sequence: Sequence) -> Rank:
    return sequence.rank
