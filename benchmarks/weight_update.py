"""Measure how long updates of an engine's weights hold its event loop: ``python -m benchmarks.weight_update MODEL``.

A coroutine wakes every millisecond while the same checkpoint is put in place again and again; whatever holds the loop, or the
interpreter's lock, makes it late. Prints the longest delays of each update and the collections of garbage among them.
"""

from __future__ import annotations

import argparse
import gc
import time
from typing import Any

import anyio

from asurge import Engine

_PERIOD_S, _LONG_S = 0.001, 0.005


class _Collections:
    """Collects how long Python's garbage collector holds the interpreter."""

    def __init__(self) -> None:
        self.long_s, self._begun_s = list[tuple[int, float]](), 0.0

    def __call__(self, phase: str, info: dict[str, Any]) -> None:
        now = time.perf_counter()
        if phase == "start":
            self._begun_s = now
        elif now - self._begun_s > _LONG_S:
            self.long_s.append((info["generation"], now - self._begun_s))


async def measure(model: str, times: int) -> None:
    collections, delays_s, worst_s = _Collections(), list[float](), list[float]()

    async def wake() -> None:
        while True:
            due = time.perf_counter() + _PERIOD_S
            await anyio.sleep(_PERIOD_S)
            delays_s.append(time.perf_counter() - due)

    async with Engine(model, silent_mode=True, max_num_seqs=4) as engine, anyio.create_task_group() as group:
        gc.callbacks.append(collections)
        group.start_soon(wake)
        for number in range(times):
            delays_s.clear()
            collections.long_s.clear()
            begun = time.perf_counter()
            await engine.update_model_weights(model)
            await anyio.sleep(0.05)
            longest = sorted(delays_s, reverse=True)[:3]
            worst_s.append(longest[0])
            told = ", ".join(f"generation {one}: {took * 1e3:.0f} ms" for one, took in collections.long_s)
            print(
                f"update {number}: {(time.perf_counter() - begun) * 1e3:.0f} ms, longest delays "
                f"{', '.join(f'{one * 1e3:.0f}' for one in longest)} ms; collections: {told or 'none'}"
            )
        gc.callbacks.remove(collections)
        group.cancel_scope.cancel()
    print(
        f"longest delay: {max(worst_s) * 1e3:.0f} ms, median of updates {sorted(worst_s)[len(worst_s) // 2] * 1e3:.0f} ms"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="demo")
    parser.add_argument("--times", type=int, default=16)
    given = parser.parse_args()
    anyio.run(measure, given.model, given.times)


if __name__ == "__main__":
    main()
