"""The waiting queue: chooses the next request by priority, tenant, cached prefix and arrival."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Callable, Iterator

from asurge.config import SchedulerConfig
from asurge.scheduler.heap import LazyHeap
from asurge.scheduler.request import Rank, Sequence

CACHE_WINDOW = 16
"""Waiting requests that are looked up in the cache when the next one is chosen."""


class Tenants:
    """Service of each tenant, in tokens divided by its weight.

    The virtual token counter of "Fairness in Serving Large Language Models" (Sheng et al., OSDI 2024): the tenant with the
    least comes next, and one that comes back after a pause is lifted to the least of those that stayed, so that idling
    saves nothing up. Between two tenants that both wait, the counters never drift apart by more than what one of them
    can be served at once.
    """

    OUTPUT_COST = 2.0
    """The cost of a generated token, in prompt tokens."""

    MOST_AWAY = 512
    """Tenants without an open request whose counters are kept; as many as have one, if that is more. The last to leave are
    kept: one that comes back later has most likely been overtaken by those that stayed."""

    def __init__(self, weights: dict[str, float]) -> None:
        self._weights = weights
        self._served: dict[str, float] = {}
        self._open: dict[str, int] = {}
        self._here = LazyHeap(self.served)  # those with an open request
        self._num_here = 0
        self._away: dict[str, None] = {}  # the others, in the order in which they left

    def __len__(self) -> int:
        """Tenants whose counters are kept."""
        return len(self._open)

    def enter(self, tenant: str) -> None:
        """Note that a request of the tenant has arrived."""
        count = self._open.get(tenant, 0)
        if not count:
            self._served[tenant] = max(self.served(tenant), self._least())
            self._here.add(tenant)
            self._num_here += 1
            self._away.pop(tenant, None)
        self._open[tenant] = count + 1

    def leave(self, tenant: str) -> None:
        """Note that a request of the tenant has ended."""
        self._open[tenant] -= 1
        if self._open[tenant]:
            return
        self._here.discard(tenant)
        self._num_here -= 1
        self._away[tenant] = None
        if not self._num_here:  # there is nobody left to compare counters with
            self._open.clear()
            self._served.clear()
            self._away.clear()
        elif len(self._open) - self._num_here > (most := max(self.MOST_AWAY, self._num_here)):
            self._forget(keep=most // 2)  # not one: this looks at all of them

    def _least(self) -> float:
        """The least service of the tenants with an open request; 0 if there are none."""
        first = self._here.first()
        return 0.0 if first is None else self._served[first]

    def _forget(self, keep: int) -> None:
        """Keep only some of those that are away, and none that would be lifted when it comes back."""
        least = self._least()
        self._away = dict.fromkeys([one for one in self._away if self._served[one] > least][-keep:])
        self._open = {one: count for one, count in self._open.items() if count or one in self._away}
        self._served = {one: self._served[one] for one in self._open}

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
        self._next = LazyHeap(self._order)  # tenants
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[Sequence]:
        return itertools.chain.from_iterable(self._lines.values())

    def add(self, sequence: Sequence) -> None:
        """Take in a request; one that was preempted returns to its old place."""
        tenant = sequence.request.tenant
        line = self._lines.setdefault(tenant, [])
        bisect.insort(line, sequence, key=_rank)
        if line[0] is sequence:
            self._next.add(tenant)
        self._size += 1

    def remove(self, sequence: Sequence) -> None:
        tenant = sequence.request.tenant
        line = self._lines[tenant]
        del line[bisect.bisect_left(line, sequence.rank, key=_rank)]
        if not line:
            del self._lines[tenant]
            self._next.discard(tenant)
        self._size -= 1

    def first(self) -> Sequence | None:
        """The request that comes next; None if none waits."""
        tenant = self._next.first()
        if tenant is None:
            return None
        line = self._lines[tenant]
        return self._best_cached(line) if self._config.cache_aware else line[0]

    def overtake(self, sequence: Sequence) -> None:
        """Count, for every request ahead of one that is admitted, that it was overtaken."""
        if self._config.cache_aware:
            for other in self._lines[sequence.request.tenant][:CACHE_WINDOW]:
                if other is sequence:
                    break
                other.overtaken += 1

    def _order(self, tenant: str) -> tuple[int, float, int]:
        """The key of a tenant. It grows as the tenant is served, and when its first request leaves the line."""
        first = self._lines[tenant][0]
        return first.rank.priority, self._tenants.served(tenant), first.arrival

    def _best_cached(self, line: list[Sequence]) -> Sequence:
        first = line[0]
        if first.overtaken >= self._config.max_overtakes or first.pending:
            return first
        peers = [one for one in line[:CACHE_WINDOW] if one.rank.priority == first.rank.priority]
        return max(peers, key=lambda one: (self._matched(one), -one.arrival))


def _rank(sequence: Sequence) -> Rank:
    return sequence.rank
