"""Step shapes hold whatever the scheduler plans, and are few."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from asurge.plan import PlanRow, RowSampling, StepPlan
from asurge.runner.buckets import ShapeBuckets, StepShape, place
from tests.fakes import one_table


def plan_of(decode: int, chunks: list[int]) -> StepPlan:
    def row(tokens: int | None) -> PlanRow:
        ids = None if tokens is None else np.zeros(tokens, np.int32)
        return PlanRow("row", 0, 0, 9, ids, True, one_table((1,)), RowSampling())

    return StepPlan(0, tuple(row(None) for _ in range(decode)), tuple(row(chunk) for chunk in chunks))


@settings(deadline=None)
@given(
    seqs=st.sampled_from([1, 2, 4, 7, 64]),
    budget=st.sampled_from([16, 32, 100, 512]),
    quantum=st.sampled_from([16, 32]),
    skips_padding=st.booleans(),
    data=st.data(),
)
def test_buckets_hold_every_plan_within_the_budget(
    seqs: int, budget: int, quantum: int, skips_padding: bool, data: st.DataObject
) -> None:
    buckets = ShapeBuckets(seqs, max(budget, quantum), quantum, skips_padding=skips_padding)
    decode = data.draw(st.integers(0, seqs))
    chunks, left = [], (budget - decode) // quantum * quantum
    while left > 0 and len(chunks) < seqs - decode and data.draw(st.booleans()):
        chunks.append(data.draw(st.integers(1, left)))
        left -= -(-chunks[-1] // quantum) * quantum
    plan = plan_of(decode, chunks)
    shape = buckets.pick(plan)
    assert shape in buckets.shapes
    placed = place(plan, shape)
    assert len({part.at for part in placed}) == len(placed)
    assert max((part.at for part in placed), default=0) < shape.rows
    assert all(part.length == 1 for part in placed if part.at < shape.decode_rows)
    assert all(0 < part.length <= max(shape.prefill_len, 1) for part in placed)
    assert sum(part.length for part in placed) == decode + sum(chunks)
    assert [part.row for part in placed if part.last] == list(plan.rows)


@settings(deadline=None)
@given(
    decode=st.integers(0, 40),
    chunks=st.lists(st.integers(1, 300), max_size=6),
    skips_padding=st.booleans(),
)
@example(decode=33, chunks=[], skips_padding=False)
@example(decode=0, chunks=[300, 300], skips_padding=True)
def test_the_cheapest_bucket_that_holds_a_plan_is_selected(decode: int, chunks: list[int], skips_padding: bool) -> None:
    buckets = ShapeBuckets(32, 256, 32, skips_padding=skips_padding)
    fitting = [shape for shape in buckets.shapes if shape.holds(decode, chunks)]
    if fitting:
        picked = buckets.pick(plan_of(decode, chunks))
        assert picked.tokens == min(shape.tokens for shape in fitting)
    else:
        with pytest.raises(ValueError, match=f"no step shape holds {decode} decode rows"):
            buckets.pick(plan_of(decode, chunks))


def test_long_chunks_continue_in_the_next_rows() -> None:
    plan = plan_of(1, [70, 5])
    placed = [(part.at, part.begin, part.length, part.last) for part in place(plan, StepShape(4, 8, 32))]
    assert placed == [(0, 0, 1, True), (4, 0, 32, False), (5, 32, 32, False), (6, 64, 6, True), (7, 0, 5, True)]


def test_there_are_few_buckets() -> None:
    assert len(ShapeBuckets(64, 512, 16).shapes) <= 10
    assert ShapeBuckets(64, 512, 16).shapes[0] == StepShape(2)


@pytest.mark.parametrize("seqs", [1, 2, 3, 64])
def test_three_buckets_suffice_where_padding_is_skipped(seqs: int) -> None:
    shapes = ShapeBuckets(seqs, 512, 32, skips_padding=True).shapes
    most = max(seqs, 2)
    assert shapes == tuple(dict.fromkeys((StepShape(2), StepShape(most), StepShape(most, 16, 32))))


@pytest.mark.parametrize("skips_padding", [False, True])
@pytest.mark.parametrize(("seqs", "budget", "quantum"), [(1, 16, 16), (64, 512, 32), (256, 2048, 16)])
def test_shapes_are_in_order_and_no_batch_is_of_one(seqs: int, budget: int, quantum: int, skips_padding: bool) -> None:
    shapes = ShapeBuckets(seqs, budget, quantum, skips_padding=skips_padding).shapes
    assert [shape.tokens for shape in shapes] == sorted(shape.tokens for shape in shapes)
    assert len(set(shapes)) == len(shapes)
    assert all(shape.tokens >= 2 for shape in shapes)
