"""Machines may be suspended, and processes stopped. Figures taken meanwhile say nothing about an engine."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from typing import Self, TypeVar

T = TypeVar("T")

LONGEST_S = 0.5
"""Two busy cores delay a sleeping thread of another process by milliseconds, never by this much."""
_TRIES = 4


class StallWatch:
    """A thread that sleeps in short spans, in a process that does nothing else, and notes how late it wakes."""

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, wait: Callable[[float], object] | None = None
    ) -> None:
        self.longest_s = 0.0
        self._over = threading.Event()
        self._clock, self._wait = clock, wait or self._over.wait
        self._thread = threading.Thread(target=self._watch, name="stall-watch", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self, span_s: float = 0.05) -> None:
        while not self._over.is_set():
            began_s = self._clock()
            self._wait(span_s)
            self.longest_s = max(self.longest_s, self._clock() - began_s - span_s)


def undisturbed(run: Callable[[], T], stalls_s: list[float], watch: Callable[[], StallWatch] = StallWatch) -> T:
    """The result of ``run`` if the machine did not stand still meanwhile; otherwise it runs again, a few times. Stalls are added
    to ``stalls_s``; the last try counts in any case."""
    for attempt in range(_TRIES):
        with watch() as watching:
            result = run()
        if watching.longest_s <= LONGEST_S:
            break
        stalls_s.append(watching.longest_s)
        again = "again" if attempt + 1 < _TRIES else "kept all the same"
        print(f"the machine stood still for {watching.longest_s:.1f} s: {again}", file=sys.stderr, flush=True)
    return result
