"""Size of a dispatch: decode steps in a group, and prompts beside rows that decode."""

from __future__ import annotations

import numpy as np
import pytest

from asurge.pipeline.pacer import Pacer
from asurge.plan import PlanRow, RowSampling, StepPlan


def plan(decode_steps: int = 1, prompt_tokens: int = 0, *, decodes: bool = True) -> StepPlan:
    def row(count: int, tokens: int | None) -> PlanRow:
        ids = None if tokens is None else np.zeros(tokens, np.int32)
        return PlanRow("one", 0, 0, 0, ids, True, (), RowSampling(), count)

    prefill = (row(1, prompt_tokens),) if prompt_tokens else ()
    return StepPlan(0, (row(decode_steps, None),) if decodes else (), prefill)


def test_nothing_is_grouped_before_a_step_was_seen() -> None:
    assert Pacer().pace.decode_steps == 1


@pytest.mark.parametrize(("step_s", "decode_steps"), [(0.030, 1), (0.013, 1), (0.012, 2), (0.002, 12), (1e-5, 2500)])
def test_a_group_fills_its_time_with_whole_steps(step_s: float, decode_steps: int) -> None:
    pacer = Pacer(0.025)
    pacer.see(plan(decode_steps=1), step_s)
    assert pacer.pace.decode_steps == decode_steps


@pytest.mark.parametrize(("step_s", "decode_steps"), [(0.3, 1), (0.06, 4), (0.030, 8)])
def test_groups_of_steps_are_longer_without_streaming_readers(step_s: float, decode_steps: int) -> None:
    pacer = Pacer(0.025, unread_group_s=0.25)
    assert pacer.pace.unread_decode_steps == 1
    pacer.see(plan(decode_steps=1), step_s)
    assert (pacer.pace.unread_decode_steps, pacer.pace.decode_steps) == (decode_steps, 1)


def test_a_groups_time_counts_for_each_of_its_steps() -> None:
    pacer = Pacer(0.025)
    pacer.see(plan(decode_steps=4), 0.020)
    assert pacer.pace.decode_steps == 5


def test_one_slow_step_changes_little_and_many_change_all() -> None:
    pacer = Pacer(0.025)
    pacer.see(plan(decode_steps=1), 0.0025)
    pacer.see(plan(decode_steps=1), 0.0125)
    assert pacer.pace.decode_steps == 5
    for _ in range(50):
        pacer.see(plan(decode_steps=1), 0.0125)
    assert pacer.pace.decode_steps in (1, 2)


def test_a_step_without_a_time_groups_nothing() -> None:
    pacer = Pacer(0.025)
    pacer.see(plan(decode_steps=1), 0.0)
    assert pacer.pace.decode_steps == 1


def test_nothing_bounds_prompts_before_both_kinds_of_steps_were_seen() -> None:
    pacer = Pacer(mixed_s=0.05)
    assert pacer.pace.prompt_tokens is None
    pacer.see(plan(), 0.010)
    assert pacer.pace.prompt_tokens is None
    pacer.see(plan(prompt_tokens=100), 0.060)
    assert pacer.pace.prompt_tokens == 80  # at half a millisecond each, in the 40 ms that decoding leaves


def test_steps_of_prompts_alone_measure_prompts() -> None:
    pacer = Pacer(mixed_s=0.05)
    pacer.see(plan(prompt_tokens=512, decodes=False), 0.256)
    pacer.see(plan(), 0.010)
    assert pacer.pace.prompt_tokens == 80


def test_prompts_get_a_third_of_the_device_at_least() -> None:
    pacer = Pacer(mixed_s=0.05)
    pacer.see(plan(), 0.200)
    pacer.see(plan(prompt_tokens=100), 0.300)
    assert pacer.pace.prompt_tokens == 100


def test_without_a_limit_prompts_take_what_there_is() -> None:
    pacer = Pacer(mixed_s=None)
    pacer.see(plan(), 0.010)
    pacer.see(plan(prompt_tokens=100), 0.060)
    assert pacer.pace.prompt_tokens is None


def test_steps_with_prompts_do_not_count_for_groups() -> None:
    pacer = Pacer(0.025)
    pacer.see(plan(), 0.005)
    pacer.see(plan(prompt_tokens=100), 0.300)
    assert pacer.pace.decode_steps == 5


def test_prompts_that_take_no_time_bound_nothing() -> None:
    pacer = Pacer(mixed_s=0.05)
    pacer.see(plan(), 0.010)
    pacer.see(plan(prompt_tokens=4), 0.001)
    assert pacer.pace.prompt_tokens is None
