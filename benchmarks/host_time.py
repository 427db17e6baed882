"""Host time of a decode step, without a device: ``python -m benchmarks.host_time``.

Times what lies between two steps: planning, packing the upload, and taking in the result, for 64 and 256 running sequences
of a few hundred tokens. Prints microseconds, the median over the steps.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np

from asurge.plan import RowSampling, RunnerLimits, StepPlan, StepResult
from asurge.runner.buckets import ShapeBuckets
from asurge.runner.step_inputs import TableShape, pack
from asurge.scheduler import Request, Scheduler

T = TypeVar("T")
PAGE_SIZE, MAX_MODEL_LEN, QUANTUM = 64, 4096, 32
PROMPT, STEPS, WINDOW = 200, 300, 128
STAGES = ("plan", "pack", "apply")


def measure(running: int, windows: int = 0) -> dict[str, float]:
    """Microseconds of each stage of a step with ``running`` decode rows, and ``windows`` page tables with a window."""
    columns, count = MAX_MODEL_LEN // PAGE_SIZE, 1 + windows
    tables = TableShape(count, columns)
    limits = RunnerLimits(
        running * columns * count + 1,
        PAGE_SIZE,
        running,
        1024,
        MAX_MODEL_LEN,
        QUANTUM,
        windows=(None, *[WINDOW] * windows),
    )
    buckets = ShapeBuckets(running, 1024, QUANTUM, skips_padding=True)
    scheduler = Scheduler(limits)
    rng = np.random.default_rng(0)
    for index in range(running):
        prompt = rng.integers(10, 1000, PROMPT).tolist()
        scheduler.add(Request(str(index), prompt, STEPS * 2, RowSampling(), frozenset({0})))
    times: dict[str, list[float]] = {stage: [] for stage in STAGES}

    def timed(stage: str, call: Callable[[], T]) -> T:
        began = time.perf_counter()
        result = call()
        times[stage].append(time.perf_counter() - began)
        return result

    def step(plan: StepPlan) -> None:
        timed("pack", lambda: pack(plan, buckets.pick(plan), tables, running))
        tokens = np.full((len(plan.rows), 1), 7, np.int32)
        timed("apply", lambda: scheduler.apply(StepResult(plan, tokens)))

    while True:
        plan = timed("plan", scheduler.plan)
        assert plan is not None
        step(plan)
        if plan.prefill:
            times = {stage: [] for stage in STAGES}
        elif len(times["plan"]) == STEPS:
            break
    medians = {stage: statistics.median(values) * 1e6 for stage, values in times.items()}
    return medians | {"total": sum(medians.values())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--windows", type=int, default=0, help="page tables with a window beside the one without")
    given = parser.parse_args()
    found = {running: measure(running, given.windows) for running in (64, 256)}
    for running, figures in found.items():
        print(f"{running} running:", ", ".join(f"{stage} {us:.0f} us" for stage, us in figures.items()))
    if given.json:
        given.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
