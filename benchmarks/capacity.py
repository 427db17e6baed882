"""Measure how much context fits when some layers have a sliding window: ``python -m benchmarks.capacity``.

The real scheduler takes in as many sequences of one length as it can, from a pool of a given size, without a device: once with
all layers in one page table, once in the layout that the runner chooses. Takes a minute, and gives the same figures everywhere.
"""

from __future__ import annotations

import argparse
import dataclasses

import numpy as np

from asurge.plan import RowSampling, RunnerLimits, StepResult
from asurge.runner.page_layout import PageLayout, layout_for
from asurge.scheduler import Request, Scheduler

LENGTHS, OUTPUT = (512, 2048, 8192, 32768), 1024
SHAPE = RunnerLimits(
    0, page_size=64, max_num_seqs=256, max_num_batched_tokens=2048, max_model_len=32768 + 1024, prefill_quantum=32
)


@dataclasses.dataclass(frozen=True, slots=True)
class Model:
    """Windows of its layers, and bytes of a token's keys and values in one of them."""

    seen: tuple[int | None, ...]
    token_bytes: int


MODELS = {
    "Gemma 3 1B": Model(tuple(None if layer % 6 == 5 else 512 for layer in range(26)), 2 * 256 * 2),
    "Gemma 3 27B": Model(tuple(None if layer % 6 == 5 else 1024 for layer in range(62)), 2 * 16 * 128 * 2),
    "Gemma 2 9B": Model(tuple(None if layer % 2 else 4096 for layer in range(42)), 2 * 8 * 256 * 2),
}


def context_that_fits(
    layout: PageLayout, token_bytes: int, budget_bytes: int, length: int, requests: int = SHAPE.max_num_seqs
) -> int:
    """The most tokens of context in one step, of prompts of one length and their answers, before any sequence is preempted."""
    pages = budget_bytes // (layout.depth * SHAPE.page_size * token_bytes)
    limits = dataclasses.replace(SHAPE, num_pages=pages, windows=layout.windows)
    if length >= limits.longest:
        return 0
    scheduler = Scheduler(limits)
    for index in range(requests):
        scheduler.add(Request(str(index), [index + 10] * length, OUTPUT, RowSampling()))
    most = 0
    while (plan := scheduler.plan()) is not None and not scheduler.statistics().preemptions:
        most = max(most, sum(row.start + row.num_tokens for row in plan.rows))
        if not plan.prefill and not scheduler.num_waiting:
            break
        scheduler.apply(StepResult(plan, np.full((len(plan.rows), 1), 7, np.int32)))
    return most


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--gib", type=float, default=16.0, help="memory for pages")
    given = parser.parse_args()
    for name, model in MODELS.items():
        layouts = layout_for([None] * len(model.seen), SHAPE), layout_for(model.seen, SHAPE)
        tables = len(layouts[1].windows)
        print(f"{name}: {layouts[1].depth} layers a page, {tables} tables, {given.gib:g} GiB")
        for length in LENGTHS:
            one, several = (
                context_that_fits(layout, model.token_bytes, int(given.gib * 2**30), length) for layout in layouts
            )
            times = f"{several / one:.2f} times" if one else "none before"
            print(f"  prompts of {length:6,}: {one:9,} tokens in one table, {several:9,} in {tables}, {times}")


if __name__ == "__main__":
    main()
