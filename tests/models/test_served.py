"""Families with a way of their own, served: pages, chunks and decode steps give what the golden whole gives."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from asurge.config import EngineConfig
from asurge.models import load_model
from asurge.plan import PageTable, PlanRow, RowSampling, StepPlan
from asurge.runner import DeviceRunner
from asurge.scheduler import Request, Scheduler
from tests.models.cases import GOLDEN
from tests.models.forward import hidden_states, relative

SMALL = EngineConfig(dtype="float32", max_num_seqs=2, max_num_batched_tokens=32, page_size=8, silent_mode=True)


@pytest.mark.parametrize(
    "case", ["gemma2", "gemma3", "llama4", "llama4-chunks", "mixtral", "olmo2", "phi3", "qwen3-moe", "smollm3"]
)
def test_served_tokens_are_the_golden_ones(case: str) -> None:
    golden = np.load(GOLDEN / case / "golden.npz")
    prompt, expected = golden["prompt"].astype(np.int32), golden["tokens"].tolist()
    runner = DeviceRunner(load_model(GOLDEN / case, dtype="float32", progress=False), SMALL, max_model_len=128)
    scheduler, found = Scheduler(runner.limits), list[int]()
    scheduler.add(Request("a", prompt.tolist(), len(expected), RowSampling()))
    while (plan := scheduler.plan()) is not None:
        result = runner.dispatch(plan).wait()
        assert result.error is None, result.error
        for update in scheduler.apply(result):
            found += update.token_ids
    assert found == expected
    runner.shutdown()


@pytest.mark.parametrize("case", ["gemma3", "mistral-window", "olmo2"])
def test_sums_of_hidden_states_are_those_of_the_whole(case: str) -> None:
    """Two prompts side by side, one in two chunks; of the second chunk all tokens count, of the other prompt the last."""
    model = load_model(GOLDEN / case, dtype="float32", progress=False)
    prompt = np.load(GOLDEN / case / "golden.npz")["prompt"].astype(np.int32)
    expected = np.asarray(hidden_states(model)(prompt), np.float64)
    runner = DeviceRunner(model, SMALL, max_model_len=128)

    def chunk(slot: int, begin: int, end: int, pooled: int) -> PlanRow:
        tables = len(runner.limits.windows)
        pages = np.arange(1, 1 + 2 * tables * 5, dtype=np.int32).reshape(2, tables, 5)[slot]
        held = tuple(PageTable(0, one) for one in pages)
        row = PlanRow(f"{slot}", 0, slot, begin, prompt[begin:end], False, held, RowSampling())
        return dataclasses.replace(row, pooled=pooled)

    def run(*rows: PlanRow) -> dict[int, np.ndarray]:
        result = runner.dispatch(StepPlan(0, (), rows)).wait()
        assert result.error is None, result.error
        return dict(result.pooled)

    (first,) = run(chunk(0, 0, 16, 0), chunk(1, 0, 13, 1)).items()
    (second,) = run(chunk(0, 16, 40, 24)).items()
    assert (first[0], second[0]) == (1, 0)
    assert relative(first[1], expected[12]) < 1e-4
    assert relative(second[1], expected[16:].sum(axis=0)) < 1e-4
    runner.shutdown()
