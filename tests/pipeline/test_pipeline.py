"""The coroutines, over a fake device that records what happens when."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Generator, Sequence
from itertools import groupby
from typing import Any

import pytest

from asurge.errors import DeadlineExceededError, EngineDeadError, EngineOverloadedError, RequestFailedError
from asurge.outputs import FinishReason
from asurge.params import OutputKind
from asurge.pipeline import STAGES, Completion, Generation, PromptInfo, Stage
from asurge.pipeline import pipeline as pipeline_module
from asurge.plan import RowSampling, RunnerLimits, StepPlan, StepResult
from asurge.scheduler import Request, SequenceUpdate
from tests.fakes import FakeRunner, Panic, continuation
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


async def test_other_tasks_run_between_many_deliveries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline_module, "DELIVERIES_A_TURN", 4)
    runner = FakeRunner(RunnerLimits(65, 4, 16, 128, 64, prefill_quantum=4))
    turns: list[str] = []

    async def other() -> None:
        while True:
            turns.append("other")
            await asyncio.sleep(0)

    async with serving(runner) as (pipeline, _, _):
        deliver = pipeline._deliver

        def delivering(update: SequenceUpdate) -> None:
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


async def test_an_idle_engine_runs_no_steps() -> None:
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
        return runner.device.fail(plan, RuntimeError("boom"), state_lost=True)

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


async def test_failed_sampling_that_loses_state_empties_the_prefix_cache() -> None:
    """The next step is dispatched, on fresh pages, before anybody reads that this one has failed."""

    def lose(plan: StepPlan, result: StepResult) -> StepResult:
        if plan.step_id != 3:
            return result
        return runner.device.fail(plan, MemoryError("at the sample"), state_lost=True)

    runner = FakeRunner(LIMITS, on_sampling=lose, overlapped_until=6)
    async with serving(runner) as (pipeline, scheduler, _):
        told = submit(pipeline, "told", max_tokens=20, apart=True)
        with pytest.raises(RequestFailedError, match="at the sample"):
            await read(told)
        assert runner.events.index(("dispatch", 4)) < runner.events.index(("read", 3))
        output = await read(submit(pipeline, "later"))
        assert output.outputs[0].token_ids == continuation(PROMPT, 6)
        assert output.num_cached_tokens == 0
        scheduler.check()


async def test_a_dead_pipeline_fails_all_requests() -> None:
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
    """The dispatch of the first step hangs, or of the second while the first one's result does not come either."""
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


ERRORS = [Panic("in Rust"), ValueError("cannot decode"), StopIteration(), asyncio.CancelledError(), GeneratorExit()]


class Failing(Spelling):
    """Fails where it is told to."""

    def __init__(self, where: str, error: BaseException) -> None:
        self.where, self.error = where, error

    def push(self, token_ids: Sequence[int]) -> str:
        if self.where == "push":
            raise self.error
        return super().push(token_ids)

    def flush(self) -> str:
        if self.where == "flush":
            raise self.error
        return super().flush()


@pytest.mark.parametrize("error", ERRORS, ids=repr)
@pytest.mark.parametrize("where", ["push", "flush"])
async def test_a_tokenizer_that_fails_ends_its_request_only(where: str, error: BaseException) -> None:
    async with serving() as (pipeline, scheduler, _):
        good = submit(pipeline, "good", max_tokens=8)
        bad = submit(pipeline, "bad", max_tokens=3, detokenizer=Failing(where, error))
        with pytest.raises(RequestFailedError) as caught:
            await read(bad)
        assert caught.value.__cause__ is error
        assert (await read(good)).outputs[0].token_ids == continuation(PROMPT, 8)
        assert (pipeline.failure, pipeline.statistics().failed) == (None, 1)
        await until(lambda: scheduler.num_in_flight == 0)
        assert not scheduler.has_work
        scheduler.check()


class FailingObserver:
    """Fails at one of its methods, after it was told."""

    def __init__(self, where: str, error: BaseException) -> None:
        self.where, self.error, self.told = where, error, 0

    def _told(self, where: str) -> None:
        if where == self.where:
            self.told += 1
            raise self.error

    def gained(self, tokens: int, since_s: float | None) -> None:
        self._told("gained")

    def ended(self, generation: Generation, reason: FinishReason) -> None:
        self._told("ended")

    def refused(self) -> None:
        self._told("refused")

    def stepped(self, tokens: int) -> None:
        self._told("stepped")

    def saw(self, stage: Stage, step_id: int, begin_s: float, end_s: float) -> None:
        self._told(stage)


@pytest.mark.parametrize("error", ERRORS, ids=repr)
@pytest.mark.parametrize("where", ["gained", "ended", "refused", "stepped", *STAGES])
async def test_an_observer_that_fails_is_logged_once_and_fails_no_request(
    where: str, error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(queued=2) as (pipeline, scheduler, _):
        observer, other = FailingObserver(where, error), FailingObserver("", error)
        for one in (observer, other):
            pipeline.request_observers.add(one)
        pipeline.step_observers.set(observer)
        generations = [submit(pipeline, name, apart=True) for name in "ab"]
        for name in "cd":
            with pytest.raises(EngineOverloadedError):
                submit(pipeline, name)
        for generation in generations:
            assert (await read(generation)).outputs[0].token_ids == continuation(PROMPT, 6)
        await until(lambda: scheduler.num_in_flight == 0)
        assert pipeline.failure is None
        assert observer.told > 1
        scheduler.check()
    assert [record.exc_info[1] for record in caplog.records if record.exc_info] == [error]


async def test_a_log_handler_that_fails_fails_no_request(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise OSError("no space left on device")

    monkeypatch.setattr(logging.getLogger("asurge.engine"), "handlers", [Full()])
    async with serving() as (pipeline, _, _runner):
        pipeline.request_observers.add(FailingObserver("gained", OSError("no space left on device")))
        assert (await read(submit(pipeline))).outputs[0].token_ids == continuation(PROMPT, 6)


async def test_an_observer_may_be_removed_during_a_notification() -> None:
    class Leaving(FailingObserver):
        def gained(self, tokens: int, since_s: float | None) -> None:
            self.told += 1
            pipeline.request_observers.remove(self)
            pipeline.request_observers.remove(self)  # again, which changes nothing

    async with serving() as (pipeline, _, _runner):
        one, two = Leaving("", ValueError()), Leaving("", ValueError())
        for observer in (one, two):
            pipeline.request_observers.add(observer)
        await read(submit(pipeline))
        assert (one.told, two.told, len(pipeline.request_observers)) == (1, 1, 0)


async def test_a_panic_in_the_pipeline_fails_all_requests(monkeypatch: pytest.MonkeyPatch) -> None:
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
            "late", PromptInfo(None, list(PROMPT)), [Completion("late")], arrival_s=0.0, clock=pipeline.clock
        )
        pipeline.submit(late, [request])
        with pytest.raises(DeadlineExceededError, match="late"):
            await read(late)
        assert scheduler.num_running == 1
        runner.release()
        assert (await read(patient)).outputs[0].token_ids == continuation(PROMPT, 6)
        scheduler.check()
