"""The coroutines, over a fake device that records what happens when."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Generator, Sequence
from itertools import groupby
from typing import Any

import numpy as np
import pytest

from asurge.errors import DeadlineExceededError, EngineDeadError, RequestFailedError
from asurge.params import OutputKind
from asurge.pipeline import Choice, Generation, PromptFacts
from asurge.pipeline import pipeline as pipeline_module
from asurge.plan import RowSampling, RunnerLimits, StepPlan, StepResult
from asurge.scheduler import Request, Update
from tests.fakes import FakeRunner, continuation
from tests.pipeline.serving import LIMITS, PROMPT, Spelling, read, serving, spelled, submit


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0)


async def test_step_n_plus_1_is_dispatched_before_n_is_read() -> None:
    async with serving(FakeRunner(LIMITS, overlapped_until=7), depth=2) as (pipeline, _, runner):
        output = await read(submit(pipeline, max_tokens=8))
    assert output.outputs[0].token_ids == continuation(PROMPT, 8)
    order = {event: at for at, event in enumerate(runner.events)}
    steps = [step for kind, step in runner.events if kind == "dispatch"]
    assert len(steps) == 8
    for step in steps[:-1]:
        assert order["dispatch", step + 1] < order["read", step]


async def test_with_depth_1_nothing_overlaps() -> None:
    async with serving(depth=1) as (pipeline, _, runner):
        output = await read(submit(pipeline))
    assert output.outputs[0].token_ids == continuation(PROMPT, 6)
    assert [kind for kind, _ in runner.events] == ["dispatch", "read"] * 6


async def test_no_more_steps_fly_than_the_depth() -> None:
    runner = FakeRunner(LIMITS)
    runner.hold()
    async with serving(runner, depth=3) as (pipeline, scheduler, _):
        generation = submit(pipeline, max_tokens=8)
        await until(lambda: len(runner.events) == 3)
        for _ in range(50):
            await asyncio.sleep(0)
        assert [kind for kind, _ in runner.events] == ["dispatch"] * 3
        assert scheduler.num_in_flight == 3
        runner.release()
        assert (await read(generation)).num_generated_tokens == 8


async def test_many_requests_each_get_their_own_text() -> None:
    async with serving() as (pipeline, scheduler, _):
        prompts = [list(range(base, base + 1 + base % 7)) for base in range(2, 22)]
        generations = [submit(pipeline, f"r{at}", prompt=prompt) for at, prompt in enumerate(prompts)]
        outputs = await asyncio.gather(*map(read, generations))
        assert [output.get_text() for output in outputs] == [spelled(continuation(prompt, 6)) for prompt in prompts]
        assert scheduler.statistics().pages_available == 32
        scheduler.check()


@pytest.mark.parametrize(("kind", "waits"), [("delta", 8), ("final", 1)])
async def test_a_reader_is_woken_for_what_it_reads(kind: OutputKind, waits: int) -> None:
    class Counted:
        count = 0

        def __await__(self) -> Generator[Any, Any, None]:
            for future in read(generation).__await__():
                self.count += 1
                yield future

    async with serving(depth=1) as (pipeline, _, _):
        generation, counted = submit(pipeline, max_tokens=8, output_kind=kind), Counted()
        await counted
    assert counted.count == waits


async def test_other_tasks_have_a_turn_among_many_deliveries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline_module, "DELIVERIES_A_TURN", 4)
    runner = FakeRunner(RunnerLimits(65, 4, 16, 128, 64, prefill_quantum=4))
    turns: list[str] = []

    async def other() -> None:
        while True:
            turns.append("other")
            await asyncio.sleep(0)

    async with serving(runner) as (pipeline, _, _):
        deliver = pipeline._deliver

        def delivering(update: Update) -> None:
            turns.append("delivery")
            deliver(update)

        monkeypatch.setattr(pipeline, "_deliver", delivering)
        generations = [submit(pipeline, f"r{at}") for at in range(16)]
        task = asyncio.get_running_loop().create_task(other())
        await asyncio.gather(*map(read, generations))
        task.cancel()
    runs = [len(list(run)) for kind, run in groupby(turns) if kind == "delivery"]
    assert sum(runs) == 16 * 6
    assert max(runs) == 4


async def test_a_slow_reader_gets_everything_merged() -> None:
    async with serving() as (pipeline, scheduler, _):
        generation = submit(pipeline, max_tokens=10)
        first = await generation.wait_output()
        await until(lambda: not scheduler.has_work and generation.finished)
        second = await generation.wait_output()
        assert second.finished
        assert first.delta_text + second.delta_text == spelled(continuation(PROMPT, 10))
        assert second.update_seq > first.update_seq + 1


async def test_idle_costs_no_steps() -> None:
    async with serving() as (pipeline, _, runner):
        await read(submit(pipeline))
        steps = len(runner.events)
        for _ in range(200):
            await asyncio.sleep(0)
        assert len(runner.events) == steps


@pytest.mark.parametrize("dispatched", [0, 1, 2])
async def test_an_abort_ends_the_stream_and_frees_the_pages(dispatched: int) -> None:
    runner = FakeRunner(LIMITS)
    runner.hold()
    async with serving(runner) as (pipeline, scheduler, _):
        generation = submit(pipeline, prompt=range(2, 30))
        await until(lambda: len(runner.events) >= dispatched)
        assert pipeline.abort("a")
        assert not pipeline.abort("a")
        assert scheduler.statistics().pages_available == 32
        output = await generation.wait_output()
        assert (output.finished, output.finish_reason) == (True, "abort")
        runner.release()
        again = await read(submit(pipeline))
        assert again.outputs[0].token_ids == continuation(PROMPT, 6)
        scheduler.check()


async def test_a_stop_string_ends_the_text_and_the_request() -> None:
    third = str(continuation(PROMPT, 3)[2])
    async with serving() as (pipeline, scheduler, _):
        output = await read(submit(pipeline, stop=(third,), max_tokens=20))
        assert output.get_text() == spelled(continuation(PROMPT, 2))
        assert (output.finish_reason, output.outputs[0].stop_reason) == ("stop", third)
        await until(lambda: scheduler.num_in_flight == 0)
        assert not scheduler.has_work
        scheduler.check()


async def test_a_failing_step_fails_its_requests_and_the_engine_goes_on() -> None:
    def fail_second(plan: StepPlan, result: StepResult) -> StepResult:
        return StepResult(plan, result.token_ids, RuntimeError("boom")) if plan.step_id == 1 else result

    async with serving(FakeRunner(LIMITS, on_dispatch=fail_second), depth=1) as (pipeline, scheduler, _):
        with pytest.raises(RequestFailedError, match="boom"):
            await read(submit(pipeline))
        output = await read(submit(pipeline, "b"))
        assert output.outputs[0].token_ids == continuation(PROMPT, 6)
        assert pipeline.statistics().failed == 1
        scheduler.check()


async def test_lost_state_is_recomputed_for_those_not_in_the_step() -> None:
    def lose(plan: StepPlan, result: StepResult) -> StepResult:
        if plan.step_id != 3:
            return result
        runner.device.lose_state()
        return StepResult(plan, np.zeros_like(result.token_ids), RuntimeError("boom"), state_lost=True)

    runner = FakeRunner(LIMITS, on_dispatch=lose)
    async with serving(runner, depth=1) as (pipeline, scheduler, _):
        doomed, spared = submit(pipeline, "a", max_tokens=20), submit(pipeline, "b", prompt=range(2, 62), max_tokens=3)
        with pytest.raises(RequestFailedError):
            await read(doomed)
        # Both were in the step, so both fail; the next one finds a working engine and an empty cache.
        with pytest.raises(RequestFailedError):
            await read(spared)
        output = await read(submit(pipeline, "c"))
        assert output.outputs[0].token_ids == continuation(PROMPT, 6)
        scheduler.check()


async def test_a_dead_pipeline_tells_everyone() -> None:
    def die(plan: StepPlan, result: StepResult) -> StepResult:
        raise SystemError("driver")

    async with serving(FakeRunner(LIMITS, on_dispatch=die)) as (pipeline, _, _runner):
        generations = [submit(pipeline, name) for name in "ab"]
        for generation in generations:
            with pytest.raises(EngineDeadError, match="driver"):
                await read(generation)
        with pytest.raises(EngineDeadError):
            submit(pipeline, "c")
        assert isinstance(pipeline.failure, EngineDeadError)


async def test_the_watchdog_notices_a_hung_step() -> None:
    runner = FakeRunner(LIMITS)
    runner.hold()
    async with serving(runner, step_timeout_s=0.01) as (pipeline, _, _runner):
        with pytest.raises(EngineDeadError, match="TimeoutError"):
            await read(submit(pipeline))


@pytest.mark.parametrize("first", [0, 1])
async def test_the_watchdog_notices_a_hung_dispatch(first: int) -> None:
    """Of the first step, or of the second while what the first one brings does not come either."""
    hangs = threading.Event()

    def hang(plan: StepPlan, result: StepResult) -> StepResult:
        if plan.step_id >= first:
            hangs.wait(30)
        return result

    runner = FakeRunner(LIMITS, on_dispatch=hang)
    runner.hold()
    async with serving(runner, step_timeout_s=0.05) as (pipeline, _, _runner):
        try:
            with pytest.raises(EngineDeadError, match=r"step_timeout_s=0\.05"):
                await read(submit(pipeline))
            assert pipeline.failure is not None
        finally:
            hangs.set()


class Panic(BaseException):
    """What libraries in Rust raise when they panic is no Exception either."""


async def test_a_panic_of_a_tokenizer_fails_its_request_only() -> None:
    class Panicking(Spelling):
        def push(self, token_ids: Sequence[int]) -> str:
            raise Panic("in Rust")

    async with serving() as (pipeline, scheduler, _):
        good = submit(pipeline, "good")
        bad = submit(pipeline, "bad", detokenizer=Panicking())
        with pytest.raises(RequestFailedError, match="in Rust"):
            await read(bad)
        assert (await read(good)).outputs[0].token_ids == continuation(PROMPT, 6)
        scheduler.check()


async def test_a_panic_anywhere_else_is_told_to_everyone(monkeypatch: pytest.MonkeyPatch) -> None:
    def panic(*_: object) -> None:
        raise Panic("in Rust")

    async with serving() as (pipeline, scheduler, _):
        monkeypatch.setattr(scheduler, "plan", panic)
        monkeypatch.setattr(scheduler, "finish", panic)
        generations = [submit(pipeline, name) for name in "ab"]
        failures = []
        for generation in generations:
            with pytest.raises(EngineDeadError, match="in Rust") as caught:
                await read(generation)
            failures.append(caught.value)
        for name in "cd":
            with pytest.raises(EngineDeadError) as caught:
                submit(pipeline, name)
            failures.append(caught.value)
        assert len(set(map(id, [*failures, pipeline.failure]))) == 5  # tracebacks do not grow with the refused


async def test_a_request_is_not_cancelled_for_another_of_its_name() -> None:
    async with serving() as (pipeline, _, _runner):
        before = submit(pipeline)
        await read(before)
        after = submit(pipeline)
        assert not pipeline.cancel(before)
        assert (await read(after)).outputs[0].token_ids == continuation(PROMPT, 6)


async def test_a_deadline_passes_while_the_device_is_busy() -> None:
    runner = FakeRunner(LIMITS)
    runner.hold()
    async with serving(runner) as (pipeline, scheduler, _):
        patient = submit(pipeline, "patient")
        await until(lambda: scheduler.num_in_flight == 1)
        request = Request("late", list(PROMPT), 6, RowSampling(), arrival_s=0.0, deadline_s=pipeline.clock())
        late = Generation(
            "late", PromptFacts(None, list(PROMPT)), [Choice("late")], arrival_s=0.0, clock=pipeline.clock
        )
        pipeline.submit(late, [request])
        with pytest.raises(DeadlineExceededError, match="late"):
            await read(late)
        assert scheduler.num_running == 1
        runner.release()
        assert (await read(patient)).outputs[0].token_ids == continuation(PROMPT, 6)
        scheduler.check()
