"""The deadlines of requests that have not ended."""

from __future__ import annotations

from math import inf

from asurge.scheduler.heap import LazyHeap
from asurge.scheduler.request import Sequence


class Deadlines:
    """Sequences by their deadlines, on the clock of their requests."""

    def __init__(self) -> None:
        self._heap: LazyHeap[Sequence] = LazyHeap(_deadline_s)

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, sequence: Sequence) -> None:
        """Watch a sequence, if it has a deadline."""
        if sequence.request.deadline_s is not None:
            self._heap.add(sequence)

    def discard(self, sequence: Sequence) -> None:
        """Forget a sequence, whether it is watched or not."""
        self._heap.discard(sequence)

    @property
    def next_s(self) -> float | None:
        """The earliest deadline, or None."""
        first = self._heap.first()
        return None if first is None else first.request.deadline_s

    def missed(self, now: float) -> Sequence | None:
        """A sequence whose deadline has passed, the earliest first."""
        first = self._heap.first()
        return None if first is None or _deadline_s(first) > now else first


def _deadline_s(sequence: Sequence) -> float:
    return inf if sequence.request.deadline_s is None else sequence.request.deadline_s
