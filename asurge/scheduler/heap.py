"""`LazyHeap`: the least of a set that changes."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Hashable, Iterator
from typing import Any, Generic, TypeVar

T = TypeVar("T", bound=Hashable)

_SPARE = 8
"""Entries that may be out of date before it is worth a rebuild, however few members there are."""


class LazyHeap(Generic[T]):
    """A priority queue whose keys may grow while their owners wait.

    Operations take amortised time logarithmic in its members, and it holds at most twice as many entries.

    A member's entry may be out of date; it is put right when it comes to the top, where it can only be too early. So keys may grow
    at no cost; a key that has shrunk has to be announced (`add`). Entries of those that have left go when they come to the
    top, or all at once when they are the majority.

    Args:
        key: of a member, at this moment. Of equal keys, the one that was added first is first.
    """

    def __init__(self, key: Callable[[T], Any]) -> None:
        self._key = key
        self._members: set[T] = set()
        self._entries: list[tuple[Any, int, T]] = []
        self._serial = itertools.count()

    def __len__(self) -> int:
        """Entries, which are what takes memory: at most twice the members, and a few."""
        return len(self._entries)

    def __iter__(self) -> Iterator[T]:
        """All members, in no order."""
        return iter(self._members)

    def add(self, member: T) -> None:
        """Take in a member, or one's smaller key."""
        self._members.add(member)
        heapq.heappush(self._entries, (self._key(member), next(self._serial), member))
        self._tidy()

    def discard(self, member: T) -> None:
        """Forget a member, if it is one."""
        self._members.discard(member)
        self._tidy()

    def first(self) -> T | None:
        """The member with the least key; None if there is none."""
        while self._entries:
            known, serial, member = self._entries[0]
            if member not in self._members:
                heapq.heappop(self._entries)
            elif (key := self._key(member)) != known:
                heapq.heapreplace(self._entries, (key, serial, member))
            else:
                return member
        return None

    def _tidy(self) -> None:
        if len(self._entries) > 2 * len(self._members) + _SPARE:
            oldest: dict[T, int] = {}
            for _, serial, member in self._entries:
                if member in self._members:
                    oldest[member] = min(serial, oldest.get(member, serial))
            self._entries = [(self._key(member), serial, member) for member, serial in oldest.items()]
            heapq.heapify(self._entries)
