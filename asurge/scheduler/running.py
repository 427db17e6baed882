"""The running set: the sequences that hold a slot and pages, and how they get and lose them."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable

from asurge.plan import RunnerLimits
from asurge.scheduler.pages import PagePool, Tables, first_column
from asurge.scheduler.prefix_cache import PrefixCache
from asurge.scheduler.reports import Totals
from asurge.scheduler.request import NO_PAGES, Phase, Sequence
from asurge.scheduler.waiting import WaitingQueue


class RunningSet:
    """The running sequences, by rank: the first is served first, the last gives way.

    Args:
        by_priority: whether a waiting sequence may take slot and pages from running ones of lower priority.
    """

    def __init__(
        self,
        limits: RunnerLimits,
        pool: PagePool,
        cache: PrefixCache,
        waiting: WaitingQueue,
        totals: Totals,
        *,
        by_priority: bool,
    ) -> None:
        self.running: OrderedDict[Sequence, None] = OrderedDict()
        self.free_slots = list(range(limits.max_num_seqs - 1, -1, -1))
        self._limits, self._pool, self._cache, self._waiting = limits, pool, cache, waiting
        self._totals, self._by_priority = totals, by_priority
        self._width = len(limits.windows)  # pages that a column takes
        self._windowed = [(table, window) for table, window in enumerate(limits.windows) if window is not None]

    def release_behind_windows(self) -> None:
        """Take back pages that no layer reads any more. Steps in flight that read them run before any that rewrites them."""
        if not self._windowed:
            return
        size = self._limits.page_size
        for sequence in self.running:
            tables = sequence.tables
            if sequence.scheduled < tables.next_release:
                continue
            for table, window in self._windowed:
                tables.release_before(table, first_column(window, sequence.scheduled, size), self._pool)
            tables.next_release = min((tables.first[table] + 1) * size + window - 1 for table, window in self._windowed)

    def make_room(self) -> None:
        """Preempt running requests for a waiting one of higher priority, if that is what it needs to run."""
        while self._by_priority and (first := self._waiting.first()) is not None and self.running:
            last = self._last()
            if last.rank.priority <= first.rank.priority or first.pending or not self._would_fit(first):
                return
            if self.free_slots and self._pages_needed(first, self._shared(first)) <= self._pool.num_available:
                return
            self.preempt(last)

    def _would_fit(self, sequence: Sequence) -> bool:
        """Whether a waiting request could run if all requests of lower priority gave up their pages."""
        given = sum(one.tables.held for one in self.running if one.rank.priority > sequence.rank.priority)
        return self._pages_needed(sequence, self._shared(sequence)) <= self._pool.num_available + given

    def _shared(self, sequence: Sequence) -> Tables:
        """Pages that a waiting sequence finds in the cache. None where every token's hidden state is wanted."""
        count = len(self._limits.windows)
        if sequence.request.needs_all_computed:
            return Tables(0, [0] * count, [[] for _ in range(count)])
        return self._cache.lookup(sequence)

    def _pages_needed(self, sequence: Sequence, shared: Tables) -> int:
        """Pages of the pool that a waiting sequence takes until all its known tokens are computed, including found ones that
        nobody else uses."""
        limits = self._limits
        columns = limits.columns(sequence.known)
        held = sum(map(limits.columns_held, limits.windows, (columns - first for first in shared.first)))
        return held - shared.held + sum(map(self._pool.is_unused, shared))

    def reserve(self, sequence: Sequence, count: int) -> bool:
        """Give a running sequence pages for its next ``count`` tokens, preempting those that come after it if it must.

        If the sequence itself is the last, it is the one preempted.
        """
        tables = sequence.tables
        columns = self._limits.columns(sequence.scheduled + count) - tables.columns
        if columns <= 0:
            return True
        while columns * self._width > self._pool.num_available:
            victim = self.victim_for(sequence)
            self.preempt(victim)
            if victim is sequence:
                return False
        tables.extend(columns, self._pool)
        return True

    def victim_for(self, sequence: Sequence) -> Sequence:
        """Choose who is preempted so that ``sequence`` gets pages: the last by rank, which may be itself.

        The rule "a victim has no row in the plan": rows that are planned already write to the pages of their sequences, so another
        sequence must not get these pages in the same step. Rows are planned by rank, so whoever comes before ``sequence`` may have
        one, and nobody else has.
        """
        victim = self._last()
        assert victim.rank >= sequence.rank, "a victim has no row in the plan: choose among those that come after"
        return victim

    def _last(self) -> Sequence:
        """The running sequence with the lowest rank."""
        return next(reversed(self.running))

    def admit(self, sequence: Sequence) -> bool:
        """Move a waiting sequence to a slot, sharing the pages of its prefix.

        There must be pages for the rest of what is known. Only a higher priority preempts for that (`make_room`).
        """
        shared = self._shared(sequence)
        if self._pages_needed(sequence, shared) > self._pool.num_available:
            return False
        self._waiting.overtake(sequence)
        self._waiting.remove(sequence)
        for page in shared:
            self._pool.share(page)
        sequence.tables = shared
        sequence.scheduled = shared.columns * self._limits.page_size
        sequence.slot, sequence.phase = self.free_slots.pop(), Phase.RUNNING
        self.running[sequence] = None
        self._sort_running(sequence)
        if sequence.epoch == 0:
            sequence.cached = sequence.scheduled
            self._totals.prompt_tokens += sequence.known
        if self._cache.enabled:
            self._totals.prefix_cache_queries += sequence.known
            self._totals.prefix_cache_hits += sequence.scheduled
        return True

    def _sort_running(self, newcomer: Sequence) -> None:
        """Keep the running ones in order of rank: one that comes back after a preemption moves forward."""
        for other in [one for one in self.running if one.rank > newcomer.rank]:
            self.running.move_to_end(other)

    def preempt(self, sequence: Sequence) -> None:
        """Take slot and pages away; the sequence waits in its old place and is recomputed. Samples in flight count."""
        self._totals.preemptions += 1
        self.vacate(sequence)
        sequence.phase = Phase.WAITING
        sequence.epoch += 1
        sequence.scheduled = 0
        sequence.in_slot = False
        sequence.pooled = None
        self._waiting.add(sequence)

    def vacate(self, sequence: Sequence) -> None:
        del self.running[sequence]
        for page in sequence.tables:  # the end of a prefix is given away before its beginning
            self._pool.release(page)
        sequence.tables = NO_PAGES
        sequence.registered = 0
        self.free_slots.append(sequence.slot)
        sequence.slot = -1

    def check(self) -> None:
        """Assert that pages, slots and order are right. For tests."""
        self._pool.check(_count_uses(self.running, self._limits))
        slots = [sequence.slot for sequence in self.running] + self.free_slots
        assert sorted(slots) == list(range(self._limits.max_num_seqs)), "a slot is lost or taken twice"
        ranks = [sequence.rank for sequence in self.running]
        assert ranks == sorted(ranks), "running sequences are out of order"


def _count_uses(running: Iterable[Sequence], limits: RunnerLimits) -> dict[int, int]:
    """How many running sequences hold each page."""
    uses = Counter[int]()
    for sequence in running:
        tables = sequence.tables
        assert sequence.phase is Phase.RUNNING
        assert sequence.scheduled <= sequence.length <= sequence.max_length
        assert tables.columns == limits.columns(sequence.scheduled)
        for window, first, pages in zip(limits.windows, tables.first, tables.pages, strict=True):
            assert first <= first_column(window, sequence.scheduled, limits.page_size), "a page was given up too early"
            assert len(pages) == tables.columns - first <= limits.columns_held(window, tables.columns)
            uses.update(pages)
    return uses
