"""Steps that a test plans itself."""

from __future__ import annotations

import numpy as np

from asurge.plan import PlanRow, RowSampling, StepPlan, StepResult
from asurge.runner import DeviceRunner
from tests.fakes import one_table


def row(slot: int, start: int, tokens: list[int] | None, samples: bool, pages: range) -> PlanRow:
    ids = None if tokens is None else np.asarray(tokens, np.int32)
    return PlanRow(f"slot{slot}", 0, slot, start, ids, samples, one_table(pages), RowSampling())


def run(runner: DeviceRunner, decode: list[PlanRow], prefill: list[PlanRow]) -> StepResult:
    result = runner.dispatch(StepPlan(0, tuple(decode), tuple(prefill))).wait()
    assert result.error is None, result.error
    return result
