"""An asyncio application that computes in Python for half of its loop's time."""

from __future__ import annotations

import dataclasses
import random
import time
from typing import Any

import anyio

from asurge.bench.driver import LagMonitor
from asurge.bench.metrics import distribution

BUSY_S, FREE_S = 0.005, 0.005


class Application:
    """Turns of computing and of leaving the loop to others. Their lengths differ: of equal ones, whoever wakes at regular times would
    meet always the same moment."""

    def __init__(self) -> None:
        self._rng = random.Random(0)
        self.busy_s = 0.0
        self.turns = 0

    async def run(self) -> None:
        """Compute until cancelled."""
        while True:
            began_s = now_s = time.perf_counter()
            span_s = BUSY_S * self._rng.uniform(0.5, 1.5)
            while now_s - began_s < span_s:
                now_s = time.perf_counter()
            self.busy_s += now_s - began_s
            self.turns += 1
            await anyio.sleep(FREE_S)


async def lag_without_engine(seconds: float) -> dict[str, Any]:
    """The loop's lag and the application's share of time while nothing else is asked of the loop; JSON-ready."""
    application, lag = Application(), LagMonitor()
    began_s = time.perf_counter()
    with anyio.move_on_after(seconds):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(application.run)
            tasks.start_soon(lag.run)
    late = distribution(lag.samples_s, 1000)
    return {"event_loop_lag_ms": late and dataclasses.asdict(late), **share(application, began_s)}


def share(application: Application, began_s: float) -> dict[str, float]:
    """Return the share of the time since then that the application computed, and its turns a second."""
    passed_s = time.perf_counter() - began_s
    return {"busy_share": application.busy_s / passed_s, "turns_per_s": application.turns / passed_s}
