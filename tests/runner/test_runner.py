"""The compiled steps against a plain forward pass, through every way a sequence can be cut up."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest

from asurge.config import EngineConfig
from asurge.errors import ConfigError
from asurge.models import Decoder, load_model
from asurge.plan import LogitsShaping, PlanRow, RowSampling, RunnerLimits, StepPlan
from asurge.runner import DeviceRunner
from asurge.runner.memory import num_pages
from tests.checkpoints import random_tokens
from tests.conftest import TINY
from tests.fakes import one_table
from tests.models.forward import forward
from tests.runner.steps import row, run
from tests.scheduler.driver import Driver

PROMPT = random_tokens(45, seed=3)
STEPS = 12


@pytest.fixture(scope="module")
def model(tiny_folder: Path) -> Decoder:
    return load_model(tiny_folder, dtype="float32", progress=False)


@pytest.fixture(scope="module")
def runner(model: Decoder) -> DeviceRunner:
    return DeviceRunner(model, EngineConfig(**TINY), max_model_len=128)


@pytest.fixture(scope="module")
def expected(model: Decoder) -> list[int]:
    """Greedy continuation by whole forward passes."""
    run = forward(model)
    tokens = np.zeros(len(PROMPT) + STEPS, np.int32)
    tokens[: len(PROMPT)] = PROMPT
    for at in range(len(PROMPT), len(tokens)):
        tokens[at] = np.asarray(run(tokens))[at - 1].argmax()
    return [int(token) for token in tokens[len(PROMPT) :]]


@pytest.mark.parametrize("chunk", [5, 16, 32])
def test_chunked_prefill_and_decode_equal_the_whole(runner: DeviceRunner, expected: list[int], chunk: int) -> None:
    pages = range(1, 9)
    for start in range(0, len(PROMPT), chunk):
        part = PROMPT[start : start + chunk]
        result = run(runner, [], [row(0, start, part, start + chunk >= len(PROMPT), pages)])
    tokens = [int(result.token_ids[0, 0])]
    # All decode steps are dispatched before any is read: their tokens never visit the host in between.
    handles = [
        runner.dispatch(StepPlan(step, (row(0, len(PROMPT) + step, None, True, pages),), ()))
        for step in range(STEPS - 1)
    ]
    tokens += [int(handle.wait().token_ids[0, 0]) for handle in handles]
    assert tokens == expected


def group(slot: int, start: int, pages: range, samples: int, stops: frozenset[int] = frozenset()) -> PlanRow:
    return PlanRow(f"slot{slot}", 0, slot, start, None, True, one_table(pages), RowSampling(), samples, stops)


def test_a_group_of_decode_steps_equals_single_ones(runner: DeviceRunner, expected: list[int]) -> None:
    """Rows of one group sample as many tokens as each asks for, and none behind a stop token."""
    stop = next(token for at, token in enumerate(expected) if at > 1 and token not in expected[:at])
    end = expected.index(stop) + 1
    tables = [range(1, 9), range(9, 17), range(17, 25)]
    for at in range(3):
        run(runner, [], [row(at, 0, PROMPT[:32], False, tables[at])])
        run(runner, [], [row(at, 32, PROMPT[32:], True, tables[at])])
    rows = [
        group(0, len(PROMPT), tables[0], 8),
        group(1, len(PROMPT), tables[1], 5),
        group(2, len(PROMPT), tables[2], 8, frozenset({stop, 5000})),
    ]
    result = run(runner, rows, [])
    assert result.token_ids.tolist() == [
        expected[1:9],
        expected[1:6] + [-1] * 3,
        expected[1:end] + [-1] * (9 - end),
    ]
    # What comes next takes each row's own last token, wherever in the group it was sampled.
    after = run(runner, [row(1, len(PROMPT) + 5, None, True, tables[1])], [])
    assert after.token_ids.tolist() == [[expected[6]]]


def test_results_do_not_depend_on_other_rows_or_mixed_steps(runner: DeviceRunner, expected: list[int]) -> None:
    """Two sequences a few steps apart, decoding beside each other's prefill."""
    tables = [range(1, 9), range(9, 17), range(17, 25)]
    tokens: list[list[int]] = [[], [], []]
    for step in range(STEPS + 12):
        decode, prefill = [], []
        for slot in range(3):
            local = step - 3 * slot
            if local == 0:
                prefill.append(row(slot, 0, PROMPT[:20], False, tables[slot]))
            elif local == 1:
                prefill.append(row(slot, 20, PROMPT[20:], True, tables[slot]))
            elif 1 < local <= STEPS:
                decode.append(row(slot, len(PROMPT) + local - 2, None, True, tables[slot]))
        if not decode and not prefill:
            continue
        result = run(runner, decode, prefill)
        for one, [token] in zip(result.plan.rows, result.token_ids.tolist(), strict=True):
            if one.samples:
                tokens[one.slot].append(token)
    assert tokens == [expected] * 3


def test_a_plan_that_fits_no_shape_fails_without_losing_state(runner: DeviceRunner) -> None:
    rows = tuple(row(slot, 0, None, True, range(1, 2)) for slot in range(40))
    result = runner.dispatch(StepPlan(0, rows, ())).wait()
    assert isinstance(result.error, ValueError)
    assert not result.state_lost


def test_a_failure_on_the_device_is_reported_and_healed(model: Decoder, expected: list[int]) -> None:
    runner = DeviceRunner(model, EngineConfig(**{**TINY, "max_num_seqs": 2}), max_model_len=128)
    for keys, values in runner._pages:
        keys.delete()
        values.delete()
    runner._last_token.delete()
    result = run(runner, [], [row(0, 0, PROMPT[:32], False, range(1, 9))])  # finds its state gone: starts anew
    assert not result.state_lost
    result = run(runner, [], [row(0, 32, PROMPT[32:], True, range(1, 9))])
    assert result.token_ids[0, 0] == expected[0]


def test_after_an_asynchronous_failure_there_is_fresh_state_once(model: Decoder, runner: DeviceRunner) -> None:
    """The device tells of a failed step when it is read, and again for each step that was in flight behind it."""
    steps = [runner.dispatch(StepPlan(at, (), (row(0, 0, PROMPT[:8], True, range(1, 9)),))) for at in range(2)]
    for step in steps:
        step._sampled.delete()  # reading raises, as it does when the computation failed
    before = runner._last_token
    assert steps[0].wait().state_lost
    run(runner, [], [row(0, 0, PROMPT[:8], True, range(1, 9))])
    state_epoch = runner.state_epoch
    assert runner._last_token is not before
    assert steps[1].wait().state_lost
    run(runner, [], [row(0, 0, PROMPT[:8], True, range(1, 9))])
    assert runner.state_epoch == state_epoch


@pytest.mark.parametrize("taken", ["last tokens", "counts"])
def test_a_failed_sampling_that_took_donated_buffers_reports_lost_state(
    runner: DeviceRunner, monkeypatch: pytest.MonkeyPatch, taken: str
) -> None:
    """Also when the next dispatch has made fresh state before the result is read."""
    prompt = PROMPT[:8]
    run(runner, [], [row(0, 0, prompt, True, range(1, 9))])
    before = runner.state_epoch
    shaped = RowSampling(shaping=LogitsShaping(logprobs=1))
    step = runner.dispatch(StepPlan(0, (dataclasses.replace(row(0, 8, None, True, range(1, 9)), sampling=shaped),), ()))
    with monkeypatch.context() as broken:
        if taken == "last tokens":  # right after the dispatch: the copy to the host cannot be begun

            def begin_fetch(array: jax.Array) -> None:
                raise MemoryError("no room")

            broken.setattr("asurge.runner.sampling.begin_fetch", begin_fetch)
        else:

            def sample(*given: object) -> None:
                runner.sampler.counts().delete()
                raise MemoryError("no room")

            broken.setattr(runner.sampler, "sample", sample)
        step.sample()
    after = run(runner, [], [row(0, 0, prompt, True, range(1, 9))])
    result = step.wait()
    assert isinstance(result.error, MemoryError)
    assert result.state_lost
    assert (result.state_epoch, result.intact, after.state_epoch) == (before, before + 1, before + 1)


def test_sampling_that_fails_before_dispatch_keeps_the_state(
    runner: DeviceRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(runner, [], [row(0, 0, PROMPT[:8], True, range(1, 9))])
    before = runner.state_epoch
    shaped = RowSampling(shaping=LogitsShaping(masked=True))
    step = runner.dispatch(StepPlan(0, (dataclasses.replace(row(0, 8, None, True, range(1, 9)), sampling=shaped),), ()))
    step.sample(np.zeros((1, 2), np.uint32))  # masks of another vocabulary
    result = step.wait()
    assert (type(result.error), result.state_lost) == (ValueError, False)
    assert run(runner, [], [row(0, 0, PROMPT[:8], True, range(1, 9))]).state_epoch == before


def test_a_prompt_starts_beside_decode_rows_with_any_token_budget(model: Decoder) -> None:
    runner = DeviceRunner(model, EngineConfig(**{**TINY, "min_input_pad": 32}), max_model_len=128)
    driver = Driver(runner.limits)
    for count in range(4):
        driver.add(str(count), range(10, 45), max_tokens=20)
        plan = driver.plan()
        assert ([one.sequence_id for one in plan.prefill], len(plan.decode)) == ([str(count)], count)
        assert runner.dispatch(plan).wait().error is None
        driver.step(plan)
        while driver.scheduler.statistics().waiting or any(not one.samples_next for one in driver.scheduler._running):
            driver.step()


def test_page_counts() -> None:
    limits = RunnerLimits(0, 64, max_num_seqs=4, max_num_batched_tokens=128, max_model_len=1024)
    assert num_pages(limits, 10**9, 1000) == 4 * 16 + 1  # never more than all slots can use
    assert num_pages(limits, 30_000, 1000) == 30
    with pytest.raises(ConfigError, match=r"a sequence of 961 tokens.*lower max_model_len"):
        num_pages(limits, 16_000, 1000)


def test_page_counts_of_windows() -> None:
    limits = RunnerLimits(0, 64, 4, max_num_batched_tokens=128, max_model_len=1024, windows=(None, 100, 100))
    held = 16 + 2 * 5  # 100 tokens back, with 128 new ones: 227 tokens touch five pages at most
    assert num_pages(limits, 10**9, 1000) == 4 * held + 1
    assert num_pages(limits, (held + 1) * 1000, 1000) == held + 1
    with pytest.raises(ConfigError, match="lower max_model_len"):
        num_pages(limits, held * 1000, 1000)


def test_lost_pages_are_freed_before_others_are_made(runner: DeviceRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    """An accelerator has no room for both."""
    prompt = random_tokens(8, seed=3)
    step = runner.dispatch(StepPlan(0, (), (row(0, 0, prompt, True, range(1, 9)),)))
    step._sampled.delete()
    assert step.wait().state_lost
    old, allocate = jax.tree.leaves(runner._pages), runner._allocate

    def made() -> object:
        assert all(array.is_deleted() for array in old)
        return allocate()

    monkeypatch.setattr(runner, "_allocate", made)
    assert run(runner, [], [row(0, 0, prompt, True, range(1, 9))]).error is None
