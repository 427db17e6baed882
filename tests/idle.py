"""Checks that an idle engine holds no pages, slots or requests."""

from __future__ import annotations

import asyncio

from asurge import Engine
from asurge.scheduler import SchedulerStatistics


def assert_idle(now: SchedulerStatistics) -> None:
    assert now.pages_available == now.pages_total
    assert (now.running, now.waiting) == (0, 0)


async def settle(engine: Engine, *, left_by_clients: bool = False) -> None:
    """Let steps in flight come back. All requests must have ended, but for those that nobody told the engine of yet."""
    async with asyncio.timeout(5 if left_by_clients else 30):
        while True:
            now = engine.statistics()
            if not now.in_flight_steps and not (left_by_clients and (now.running or now.waiting)):
                break
            await asyncio.sleep(0.001)
    assert_idle(now)
