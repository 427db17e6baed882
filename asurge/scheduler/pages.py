"""The page pool: who uses which page, and which pages nobody uses but can still be found.

A page is free, in use (by as many sequences as its count says), or cached: nobody uses it, but its contents
are known by a digest, and it is the first to be given away when no page is free.
"""

from __future__ import annotations

from collections import OrderedDict, deque

from asurge.plan import NULL_PAGE


class PagePool:
    """Reference-counted pages; full ones can be found again by digest until they are given away.

    Args:
        max_cached: unused pages kept findable at most; None keeps all.
    """

    def __init__(self, num_pages: int, *, max_cached: int | None = None) -> None:
        self.num_pages = num_pages
        self._max_cached = num_pages if max_cached is None else max_cached
        self._free = deque(range(NULL_PAGE + 1, num_pages))
        self._uses = [0] * num_pages
        self._cached: OrderedDict[int, None] = OrderedDict()  # unused pages with a digest, oldest first
        self._digest_of: dict[int, bytes] = {}
        self._page_of: dict[bytes, int] = {}

    @property
    def num_available(self) -> int:
        """Pages that `allocate` can give, cached ones included."""
        return len(self._free) + len(self._cached)

    @property
    def num_cached(self) -> int:
        """Pages that are findable by digest and in nobody's use."""
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
        """One user less."""
        self._uses[page] -= 1
        assert self._uses[page] >= 0, f"page {page} released too often"
        if self._uses[page] == 0:
            if page in self._digest_of:
                self._cached[page] = None
                if len(self._cached) > self._max_cached:
                    self.forget(next(iter(self._cached)))
            else:
                self._free.append(page)

    def find(self, digest: bytes) -> int | None:
        """The page with these contents."""
        return self._page_of.get(digest)

    def share(self, page: int) -> None:
        """One user more of a found page."""
        if self._uses[page] == 0:
            del self._cached[page]
        self._uses[page] += 1

    def is_unused(self, page: int) -> bool:
        """Whether a found page is in nobody's use, so that sharing it takes one from `num_available`."""
        return self._uses[page] == 0

    def register(self, page: int, digest: bytes) -> None:
        """Make a full page findable. The first page with a digest keeps it."""
        if digest not in self._page_of and page not in self._digest_of:
            self._page_of[digest], self._digest_of[page] = page, digest

    def forget(self, page: int) -> None:
        """Make a page unfindable; its users keep it."""
        digest = self._digest_of.pop(page, None)
        if digest is not None:
            del self._page_of[digest]
            if page in self._cached:
                del self._cached[page]
                self._free.append(page)

    def forget_all(self) -> None:
        """Empty the cache."""
        for page in list(self._digest_of):
            self.forget(page)

    def check(self, uses: dict[int, int]) -> None:
        """Assert that every page is in exactly one place and used as often as ``uses`` says."""
        free, cached = set(self._free), set(self._cached)
        used = {page for page in range(self.num_pages) if self._uses[page]}
        assert len(free) == len(self._free), "a page is free twice"
        assert not (free & cached or free & used or cached & used), "a page is in two places"
        assert free | cached | used == set(range(NULL_PAGE + 1, self.num_pages)), "a page is lost"
        assert {page: self._uses[page] for page in used} == uses, "a count is wrong"
        assert cached <= self._digest_of.keys(), "a cached page has no digest"
        assert len(cached) <= self._max_cached, "too many pages are cached"
        assert {page: digest for digest, page in self._page_of.items()} == self._digest_of
