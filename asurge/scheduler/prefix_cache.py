"""Prefix caching: full pages are known by a chain of digests, so that equal beginnings share pages."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from collections.abc import Sequence as ImmutableSequence

import numpy as np

from asurge.plan import StepPlan
from asurge.scheduler.pages import PagePool
from asurge.scheduler.request import Sequence


def root_digest(salt: str) -> bytes:
    """Where a chain of page digests begins: requests with different salts share nothing."""
    return hashlib.sha256(salt.encode()).digest()


def page_digest(parent: bytes, token_ids: ImmutableSequence[int]) -> bytes:
    """The identity of a full page: all tokens before it, by its parent's digest, and its own."""
    return hashlib.sha256(parent + np.asarray(token_ids, np.int32).tobytes()).digest()


def damaged_pages(failed: StepPlan, later: Iterable[StepPlan], page_size: int) -> set[int]:
    """Pages whose contents cannot be trusted after a step failed.

    Those are the pages it was to write, whoever owns them by now, and all that the steps behind it wrote after
    reading such a page: keys and values depend on everything before them. A page that was given away and
    written anew since counts as damaged too, which costs a recomputation and nothing else.

    Args:
        failed: the step that failed.
        later: the steps planned after it whose results are not applied yet, in order.
        page_size: tokens a page holds.
    """
    damaged = set[int]()
    for row in failed.rows:
        damaged.update(row.page_table[row.start // page_size :])
    for plan in later:
        for row in plan.rows:
            if not damaged.isdisjoint(row.page_table):
                damaged.update(row.page_table[row.start // page_size :])
    return damaged


class PrefixCache:
    """Finds and registers the full pages of sequences in a pool."""

    def __init__(self, pool: PagePool, page_size: int, *, enabled: bool) -> None:
        self.enabled = enabled
        self._pool, self._page_size = pool, page_size

    def lookup(self, sequence: Sequence) -> list[int]:
        """Pages whose contents begin the sequence. One token always stays to be computed: it draws the next."""
        pages: list[int] = []
        if not self.enabled:
            return pages
        for index in range((sequence.known - 1) // self._page_size):
            page = self._pool.find(self._digest(sequence, index))
            if page is None:
                break
            pages.append(page)
        return pages

    def matched(self, sequence: Sequence) -> int:
        """Tokens of a sequence that the cache holds."""
        return len(self.lookup(sequence)) * self._page_size

    def register(self, sequence: Sequence) -> None:
        """Make full pages of known tokens findable. Planned is enough: whoever finds them runs later, or in the
        same step, where each layer writes all pages before it reads any."""
        full = min(sequence.scheduled, sequence.known) // self._page_size
        if full <= sequence.registered or not self.enabled:
            return
        for index in range(max(sequence.registered, sequence.released), full):
            self._pool.register(sequence.pages[index], self._digest(sequence, index))
        sequence.registered = full

    def _digest(self, sequence: Sequence, index: int) -> bytes:
        """The digest of a sequence's full page; computed once."""
        digests, size = sequence.digests, self._page_size
        while len(digests) <= index:
            at = len(digests)
            parent = digests[-1] if at else root_digest(sequence.request.cache_salt)
            digests.append(page_digest(parent, sequence.token_ids[at * size : (at + 1) * size]))
        return digests[index]
