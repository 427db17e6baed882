"""Measure the event loop's lag, the metric that shows whether something blocks it."""

from __future__ import annotations

import anyio

from asurge.observe.requests import Recent

INTERVAL_S = 0.05


class LoopLag:
    """Measures while there is work, and sleeps while there is none.

    Attributes:
        recent: by how many seconds timers came late.
    """

    def __init__(self) -> None:
        self.recent = Recent()
        self._work, self._busy = 0, anyio.Event()

    def begin(self) -> None:
        """Note that some work begins."""
        self._work += 1
        self._busy.set()

    def end(self) -> None:
        """Note that it is done."""
        self._work -= 1
        if not self._work:
            self._busy = anyio.Event()

    async def run(self) -> None:
        """Measure until cancelled."""
        while True:
            await self._busy.wait()
            due = anyio.current_time() + INTERVAL_S
            await anyio.sleep(INTERVAL_S)
            self.recent.add(max(anyio.current_time() - due, 0.0))
