"""Blocking calls of the device, in threads, with a limit on their time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import anyio
from anyio import CapacityLimiter, to_thread

T = TypeVar("T")


class DeviceThreads:
    """A thread that dispatches, and one that reads: they must never queue behind the application's other thread work.

    A call that takes longer than ``step_timeout_s`` counts as hung, and is left to itself.
    """

    def __init__(self, step_timeout_s: float) -> None:
        self._step_timeout_s = step_timeout_s
        self._dispatching, self._reading = CapacityLimiter(1), CapacityLimiter(1)

    async def dispatch(self, work: Callable[[], T]) -> T:
        """Do some work to its end, even when cancelled: what it sends to the device must not outlive the device's state.

        Raises:
            TimeoutError: it hangs.
        """
        with self._limit(shield=True):
            return await to_thread.run_sync(work, abandon_on_cancel=True, limiter=self._dispatching)

    async def read(self, work: Callable[[], T]) -> T:
        """Wait for what comes from the device.

        Raises:
            TimeoutError: it hangs.
        """
        with self._limit():
            return await to_thread.run_sync(work, abandon_on_cancel=True, limiter=self._reading)

    @contextmanager
    def _limit(self, *, shield: bool = False) -> Iterator[None]:
        try:
            with anyio.fail_after(self._step_timeout_s, shield=shield):
                yield
        except TimeoutError:
            raise TimeoutError(f"a step takes longer than step_timeout_s={self._step_timeout_s:g}") from None
