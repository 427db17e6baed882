"""Pages: which sequences use which, and which are unused but can still be found.

A page is free, in use (by as many sequences as its count says), or cached: nobody uses it, but its contents
are known, and it is the first to be given away when no page is free.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator

import numpy as np

from asurge.plan import NULL_PAGE, PageTable

Contents = tuple[int, bytes]
"""What a full page holds: which table it is for, and the digest of its tokens and all before them."""


def first_column(window: int | None, position: int, page_size: int) -> int:
    """The first column of a table that a token at ``position``, or a later one, sees."""
    return 0 if window is None else max(position - window + 1, 0) // page_size


class Tables:
    """The pages of one sequence: a page in each table for each column, until the column has left the table's window.

    Attributes:
        columns: how many there are, including those given up.
        first: by table, the first column whose page is held.
        pages: by table, the pages from there on.
        next_release: until the sequence has this many tokens, no column leaves a window.
    """

    __slots__ = ("_planned", "columns", "first", "next_release", "pages")

    def __init__(self, columns: int, first: list[int], pages: list[list[int]]) -> None:
        self.columns, self.first, self.pages = columns, first, pages
        self.next_release = 0
        self._planned: tuple[PageTable, ...] | None = None

    @property
    def held(self) -> int:
        """Number of pages held, in all tables."""
        return sum(map(len, self.pages))

    def __iter__(self) -> Iterator[int]:
        """All pages held, by column from the last one to the first."""
        for column in range(self.columns - 1, min(self.first, default=0) - 1, -1):
            for first, pages in zip(self.first, self.pages, strict=True):
                if column >= first:
                    yield pages[column - first]

    def extend(self, columns: int, pool: PagePool) -> None:
        """Add this many columns. The caller has checked that the pool holds their pages."""
        for pages in self.pages:
            pages.extend(pool.allocate() for _ in range(columns))
        self.columns += columns
        self._planned = None

    def release_before(self, table: int, column: int, pool: PagePool) -> None:
        """Give up the pages of one table that lie before a column."""
        count = column - self.first[table]
        if count > 0:
            for page in self.pages[table][:count]:
                pool.release(page)
            del self.pages[table][:count]
            self.first[table] = column
            self._planned = None

    def planned(self) -> tuple[PageTable, ...]:
        """The tables as plans may keep them; rebuilt only when they have changed."""
        if self._planned is None:
            arrays = (np.asarray(pages, np.int32) for pages in self.pages)
            self._planned = tuple(map(PageTable, self.first, arrays))
        return self._planned


class PagePool:
    """Reference-counted pages; full ones can be found again by their contents until they are given away.

    Args:
        max_cached: how many unused pages are kept findable at most; None keeps all.
    """

    def __init__(self, num_pages: int, *, max_cached: int | None = None) -> None:
        self.num_pages = num_pages
        self._max_cached = num_pages if max_cached is None else max_cached
        self._free = deque(range(NULL_PAGE + 1, num_pages))
        self._uses = [0] * num_pages
        self._cached: OrderedDict[int, None] = OrderedDict()  # unused pages whose contents are known, oldest first
        self._contents_of: dict[int, Contents] = {}
        self._page_of: dict[Contents, int] = {}

    @property
    def num_available(self) -> int:
        """Pages that `allocate` can give, cached ones included."""
        return len(self._free) + len(self._cached)

    @property
    def num_cached(self) -> int:
        """Pages that are findable and unused."""
        return len(self._cached)

    def allocate(self) -> int:
        """A page for one user. The caller has checked `num_available`."""
        if self._free:
            page = self._free.popleft()
        else:
            page, _ = self._cached.popitem(last=False)
            self.forget(page)
        self._uses[page] = 1
        return page

    def release(self, page: int) -> None:
        """Drop one reference."""
        self._uses[page] -= 1
        assert self._uses[page] >= 0, f"page {page} released too often"
        if self._uses[page] == 0:
            if page in self._contents_of:
                self._cached[page] = None
                if len(self._cached) > self._max_cached:
                    self.forget(next(iter(self._cached)))
            else:
                self._free.append(page)

    def find(self, contents: Contents) -> int | None:
        """The page with these contents."""
        return self._page_of.get(contents)

    def share(self, page: int) -> None:
        """Add a user to a found page."""
        if self._uses[page] == 0:
            del self._cached[page]
        self._uses[page] += 1

    def is_unused(self, page: int) -> bool:
        """Whether a found page is unused, so that sharing it takes one from `num_available`."""
        return self._uses[page] == 0

    def register(self, page: int, contents: Contents) -> None:
        """Make a full page findable. Of equal pages, the first registered is the one found."""
        if contents not in self._page_of and page not in self._contents_of:
            self._page_of[contents], self._contents_of[page] = page, contents

    def forget(self, page: int) -> None:
        """Make a page unfindable; its users keep it."""
        contents = self._contents_of.pop(page, None)
        if contents is not None:
            del self._page_of[contents]
            if page in self._cached:
                del self._cached[page]
                self._free.append(page)

    def forget_all(self) -> None:
        """Empty the cache."""
        self._page_of.clear()
        self._contents_of.clear()
        self._free.extend(self._cached)
        self._cached.clear()

    def check(self, uses: dict[int, int]) -> None:
        """Assert that every page is in exactly one place and used as often as ``uses`` says."""
        free, cached = set(self._free), set(self._cached)
        used = {page for page in range(self.num_pages) if self._uses[page]}
        assert len(free) == len(self._free), "a page is free twice"
        assert not (free & cached or free & used or cached & used), "a page is in two places"
        assert free | cached | used == set(range(NULL_PAGE + 1, self.num_pages)), "a page is lost"
        assert {page: self._uses[page] for page in used} == uses, "a count is wrong"
        assert cached <= self._contents_of.keys(), "nobody knows what a cached page holds"
        assert len(cached) <= self._max_cached, "too many pages are cached"
        assert {page: contents for contents, page in self._page_of.items()} == self._contents_of
