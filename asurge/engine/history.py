"""`MetricsHistory`: an engine's metrics as time series."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Mapping

from asurge.errors import AsurgeError

INTERVAL_S = 1.0
SIZE = 1000
"""Number of samples that are kept."""


class MetricsHistory:
    """Samples of an engine's metrics: one a second while requests run or wait, and one after the last of them.

    An idle engine has no timer. Nothing changes while it is idle, so the series say what a longer one would.

    Args:
        read: returns the metrics, the same names each time.
        busy: whether work is left, which may change them.
        clock: seconds since the epoch, which samples are dated by.
    """

    def __init__(
        self,
        read: Callable[[], Mapping[str, float]],
        busy: Callable[[], bool],
        *,
        interval_s: float = INTERVAL_S,
        size: int = SIZE,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._read, self._busy, self._interval_s, self._clock = read, busy, interval_s, clock
        self._names: tuple[str, ...] = ()
        self._samples: deque[tuple[float, ...]] = deque(maxlen=size)
        self._timer: asyncio.TimerHandle | None = None
        self._next_s = 0.0  # by the loop's clock, which no administrator sets back

    def wake(self) -> None:
        """Take samples from now on, on the running event loop, until no request is left."""
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_at(max(self._next_s, loop.time()), self._sample, loop)

    def series(self) -> dict[str, list[float]]:
        """Return a list for each metric, and one of the samples' times as ``time``, oldest first."""
        columns = zip(*self._samples, strict=True) if self._samples else [()] * (1 + len(self._names))
        return {name: list(column) for name, column in zip(("time", *self._names), columns, strict=True)}

    def close(self) -> None:
        """Take no more samples; those that were taken stay."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _sample(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        try:
            metrics = self._read()
        except AsurgeError:  # the engine has failed: its requests learn it, and nothing follows that could be sampled
            return
        self._names = tuple(metrics)
        self._samples.append((self._clock(), *metrics.values()))
        self._next_s = loop.time() + self._interval_s
        if self._busy():
            self._timer = loop.call_at(self._next_s, self._sample, loop)
