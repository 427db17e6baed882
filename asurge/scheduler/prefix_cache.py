"""Prefix caching: full pages are known by a chain of digests, so that equal beginnings share pages."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from collections.abc import Sequence as ImmutableSequence

import numpy as np

from asurge.plan import PlanRow, StepPlan
from asurge.scheduler.pages import PagePool, Tables, first_column
from asurge.scheduler.request import Sequence


def root_digest(salt: str) -> bytes:
    """The digest that begins a chain of page digests: requests with different salts share nothing."""
    return hashlib.sha256(salt.encode(errors="surrogatepass")).digest()


def page_digest(parent: bytes, token_ids: ImmutableSequence[int]) -> bytes:
    """The identity of a full page: all tokens before it, by its parent's digest, and its own."""
    return hashlib.sha256(parent + np.asarray(token_ids, np.int32).tobytes()).digest()


def damaged_pages(failed: StepPlan, later: Iterable[StepPlan], page_size: int) -> set[int]:
    """Pages whose contents cannot be trusted after a step failed.

    Those are the pages it was to write, whoever owns them by now, and all that later steps wrote after reading such a page:
    keys and values depend on everything before them. A page that has been given away and rewritten since counts as damaged
    too, which costs a recomputation and nothing else.

    Args:
        failed: the step that failed.
        later: the steps planned after it whose results are not applied yet, in order.
        page_size: tokens a page holds.
    """
    damaged = set[int]()
    for row in failed.rows:
        damaged.update(_written(row, page_size))
    for plan in later:
        for row in plan.rows:
            if not all(damaged.isdisjoint(table.pages.tolist()) for table in row.page_tables):
                damaged.update(_written(row, page_size))
    return damaged


def _written(row: PlanRow, page_size: int) -> Iterable[int]:
    """The pages that a row writes."""
    for first, pages in row.page_tables:
        yield from pages[row.start // page_size - first :].tolist()


class PrefixCache:
    """Finds and registers the full pages of sequences in a pool.

    Args:
        windows: by page table (`asurge.plan.RunnerLimits.windows`).
    """

    def __init__(
        self, pool: PagePool, page_size: int, windows: ImmutableSequence[int | None], *, enabled: bool
    ) -> None:
        self.enabled = enabled
        self._pool, self._page_size, self._windows = pool, page_size, windows
        self._full = [table for table, window in enumerate(windows) if window is None]
        self._windowed = [(table, window) for table, window in enumerate(windows) if window is not None]

    def lookup(self, sequence: Sequence) -> Tables:
        """Find the cached pages that begin a sequence: in each table, those that a token after them sees.

        At least one token always remains to be computed: it samples the next.
        """
        columns = self._columns(sequence)
        tables = Tables(columns, [first_column(window, columns * self._page_size, self._page_size) for window in self._windows], [])  # fmt: skip
        for table, first in enumerate(tables.first):
            found = [self._find(sequence, table, column) for column in range(first, columns)]
            tables.pages.append([page for page in found if page is not None])
        return tables

    def matched(self, sequence: Sequence) -> int:
        """Tokens of a sequence that the cache holds."""
        return self._columns(sequence) * self._page_size

    def register(self, sequence: Sequence) -> None:
        """Make full pages of known tokens findable.

        Planned is enough: a sequence that finds them runs later, or in the same step, where each layer writes all pages before it
        reads any.
        """
        full = min(sequence.scheduled, sequence.known) // self._page_size
        if full <= sequence.registered or not self.enabled:
            return
        tables = sequence.tables
        for table, (first, pages) in enumerate(zip(tables.first, tables.pages, strict=True)):
            for column in range(max(sequence.registered, first), full):
                self._pool.register(pages[column - first], (table, self._digest(sequence, column)))
        sequence.registered = full

    def _columns(self, sequence: Sequence) -> int:
        """How many columns of a sequence's beginning the cache can give in every table."""
        columns = (sequence.known - 1) // self._page_size if self.enabled else 0
        for table in self._full:
            missing = (column for column in range(columns) if self._find(sequence, table, column) is None)
            columns = next(missing, columns)
        while (shorter := self._missing(sequence, columns)) is not None:
            columns = shorter
        return columns

    def _missing(self, sequence: Sequence, columns: int) -> int | None:
        """The last missing column that a window needs, if this many columns are to come from the cache. A shorter beginning
        needs it too, unless it ends before it."""
        for table, window in self._windowed:
            first = first_column(window, columns * self._page_size, self._page_size)
            for column in range(columns - 1, first - 1, -1):
                if self._find(sequence, table, column) is None:
                    return column
        return None

    def _find(self, sequence: Sequence, table: int, column: int) -> int | None:
        return self._pool.find((table, self._digest(sequence, column)))

    def _digest(self, sequence: Sequence, index: int) -> bytes:
        """The digest of a sequence's full page; computed once."""
        digests, size = sequence.digests, self._page_size
        while len(digests) <= index:
            at = len(digests)
            parent = digests[-1] if at else root_digest(sequence.request.cache_salt)
            digests.append(page_digest(parent, sequence.token_ids[at * size : (at + 1) * size]))
        return digests[index]
