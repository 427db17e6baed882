"""An event loop whose time passes only when nothing else is left to do, and at once."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import anyio

from asurge.bench.records import Record

T = TypeVar("T")


class _Selector(selectors.SelectSelector):
    now_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        assert timeout is not None, "everything waits and nothing will wake it"
        self.now_s += timeout
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._virtual = _Selector()
        super().__init__(self._virtual)

    def time(self) -> float:
        return self._virtual.now_s


def run(function: Callable[..., Awaitable[T]], *arguments: object) -> T:
    return anyio.run(function, *arguments, backend_options={"loop_factory": VirtualLoop})


class ClockworkClient:
    """Delivers the first token after ``first_s`` and each further delivery, of ``held`` tokens, after ``step_s``."""

    def __init__(self, first_s: float, step_s: float, held: int = 1) -> None:
        self.first_s, self.step_s, self.held = first_s, step_s, held
        self.open, self.most_open = 0, 0
        self.prompts: list[list[int]] = []

    async def complete(self, prompt: Sequence[int], output_len: int, record: Record, /) -> None:
        self.prompts.append(list(prompt))
        self.open += 1
        self.most_open = max(self.open, self.most_open)
        await anyio.sleep(self.first_s)
        record.deliver(anyio.current_time(), 1)
        left = output_len - 1
        while left > 0:
            await anyio.sleep(self.step_s)
            record.deliver(anyio.current_time(), min(self.held, left))
            left -= self.held
        self.open -= 1
