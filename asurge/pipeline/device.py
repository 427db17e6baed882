"""Blocking calls of the device, in threads, with a limit on their time."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from typing import TypeVar

import anyio

T = TypeVar("T")


class DeviceThreads:
    """A thread that dispatches, and one that reads: they must never queue behind the application's other thread work.

    A call that takes longer than ``step_timeout_s`` counts as hung, and is left to itself. Any other is waited for, even by
    who is cancelled: what it sends to the device must not outlive the device's state, and a thread that comes back into an
    interpreter that is ending aborts the process.
    """

    def __init__(self, step_timeout_s: float) -> None:
        self._step_timeout_s = step_timeout_s
        self._dispatching, self._reading = _DeviceThread("asurge-dispatch"), _DeviceThread("asurge-read")

    @property
    def hang(self) -> bool:
        """Whether a call that took too long has still not returned."""
        return self._dispatching.is_busy or self._reading.is_busy

    async def dispatch(self, work: Callable[[], T]) -> T:
        """Do some work that sends something to the device.

        Raises:
            TimeoutError: it hangs.
        """
        return await self._run(self._dispatching, work)

    async def read(self, work: Callable[[], T]) -> T:
        """Wait for what comes from the device.

        Raises:
            TimeoutError: it hangs.
        """
        return await self._run(self._reading, work)

    def stop(self) -> None:
        """End the threads, once they have returned from what they do."""
        self._dispatching.stop()
        self._reading.stop()

    async def _run(self, thread: _DeviceThread, work: Callable[[], T]) -> T:
        try:
            with anyio.fail_after(self._step_timeout_s, shield=True):
                return await thread.run(work)
        except TimeoutError:
            raise TimeoutError(f"a step takes longer than step_timeout_s={self._step_timeout_s:g}") from None


class _DeviceThread:
    """A daemon thread, started when it is needed: Python waits for all others before it ends, also for one that hangs."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._work: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._given = self._returned = 0

    @property
    def is_busy(self) -> bool:
        return self._given != self._returned

    async def run(self, work: Callable[[], T]) -> T:
        if self._thread is None:
            self._thread = threading.Thread(target=_serve, args=(self._work,), name=self._name, daemon=True)
            self._thread.start()
        loop = asyncio.get_running_loop()
        outcome: asyncio.Future[T] = loop.create_future()

        def settle(result: T | None, error: BaseException | None) -> None:
            if outcome.done():  # nobody waits any more
                return
            if error is not None:
                outcome.set_exception(error)
            else:
                outcome.set_result(result)  # type: ignore[arg-type]

        def do() -> None:
            result, failed = None, None
            try:
                result = work()
            except BaseException as error:
                # A future takes it for its own.
                failed = RuntimeError(repr(error)) if isinstance(error, StopIteration) else error
            self._returned += 1
            with suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(settle, result, failed)

        self._given += 1
        self._work.put(do)
        return await outcome

    def stop(self) -> None:
        self._work.put(None)


def _serve(queue: SimpleQueue[Callable[[], None] | None]) -> None:
    while (do := queue.get()) is not None:
        do()
        del do  # and all it holds, while the next is waited for
