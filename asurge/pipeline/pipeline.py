"""The pipeline of steps, scheduler -> model step -> collect -> detokenize, as coroutines on one event loop.

The scheduler is called, not messaged, by `submit` and `abort`: both run on the loop and return at once, and
admission errors must reach the caller. Plans, dispatched steps and updates travel through anyio memory
object streams; the bound on steps in flight is the pipeline's depth. With depth 2, step N+1 is
dispatched while N still runs, before its tokens are read.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from math import inf

import anyio
from anyio import get_cancelled_exc_class
from anyio.lowlevel import checkpoint
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from asurge.containment import contained
from asurge.errors import AsurgeError, EngineDeadError, EngineOverloadedError, RequestFailedError
from asurge.guidance import SequenceConstraint
from asurge.outputs import FinishReason
from asurge.pipeline.completion import Completion
from asurge.pipeline.device import DeviceThreads
from asurge.pipeline.generation import Generation
from asurge.pipeline.masks import Masks
from asurge.pipeline.observer import RequestObservers, Stage, StepObservers
from asurge.pipeline.pacer import Pacer
from asurge.plan import Runner, StepHandle, StepPlan
from asurge.scheduler import Request, Scheduler, SequenceUpdate, duplicate

DELIVERIES_A_TURN = 32
"""Requests that get their text before the loop's other tasks have a turn: about a millisecond."""


_News = tuple[StepPlan, list[SequenceUpdate]]
"""A step, and what it brought to which requests."""


@dataclasses.dataclass(slots=True)
class PipelineStatistics:
    """Totals since the start, times in seconds; and the requests whose end has not been delivered yet."""

    completed: int = 0
    failed: int = 0
    generated_tokens: int = 0
    steps: int = 0
    device_time_s: float = 0.0
    latency_sum_s: float = 0.0
    ttft_sum_s: float = 0.0
    unfinished: int = 0

    def count_completed(self, generation: Generation) -> None:
        """Add a request that ended well."""
        self.completed += 1
        self.latency_sum_s += generation.last_token_s - generation.arrival_s
        if generation.first_token_s is not None:
            self.ttft_sum_s += generation.first_token_s - generation.arrival_s


def _dead(cause: BaseException) -> EngineDeadError:
    error = EngineDeadError(f"the engine failed ({cause!r}): restart it")
    error.__cause__ = cause
    return error


def _failed(request_id: str, cause: BaseException | None) -> RequestFailedError:
    error = RequestFailedError(f"request {request_id!r} failed ({cause!r}); the engine goes on: try again")
    error.__cause__ = cause
    return error


class Pipeline:
    """Runs requests through a scheduler and a runner. Everything but `run` is synchronous and instant."""

    def __init__(
        self,
        scheduler: Scheduler,
        runner: Runner,
        *,
        depth: int = 2,
        step_timeout_s: float = 300.0,
        pacer: Pacer | None = None,
        threads: int = 1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.clock, self.created_s = clock, clock()
        self.failure: EngineDeadError | None = None
        self.step_observers, self.request_observers = StepObservers(), RequestObservers()
        self._scheduler, self._runner = scheduler, runner
        self._depth, self._pacer = depth, pacer or Pacer()
        self._generations: dict[str, Generation] = {}
        self._completions: dict[str, tuple[Completion, Generation]] = {}  # by sequence, those that have not ended
        self._masks = Masks(runner.limits.vocab_size, threads)
        self._applied, self._newly_applied = -1, anyio.Event()
        self._new_deadline, self._wake = anyio.Event(), anyio.Event()
        self._totals = PipelineStatistics()
        self.threads = DeviceThreads(step_timeout_s)

    def submit(
        self, generation: Generation, requests: Sequence[Request], constraints: Sequence[SequenceConstraint | None] = ()
    ) -> None:
        """Admit a request: a sequence for each of its completions, and what constrains each (with ``shaping.masked``).

        Raises:
            DuplicateRequestError, EngineOverloadedError, InvalidRequestError: nothing was queued.
            EngineDeadError: the pipeline has failed.
        """
        if self.failure is not None:
            raise self.failure.again()
        if generation.request_id in self._generations:
            raise duplicate(generation.request_id)
        for index, request in enumerate(requests):
            try:
                self._scheduler.add(request)
            except AsurgeError as error:
                if isinstance(error, EngineOverloadedError):
                    self.request_observers.refused()
                for added in requests[:index]:
                    self._scheduler.finish(added.sequence_id)
                raise
        self._generations[generation.request_id] = generation
        for completion in generation.completions:
            self._completions[completion.sequence_id] = completion, generation
        for request, constraint in zip(requests, constraints, strict=False):
            if constraint is not None:
                self._masks.add(request.sequence_id, constraint)
        if requests[0].deadline_s is not None:
            self._new_deadline.set()
            self._new_deadline = anyio.Event()
        self._wake.set()

    def abort(self, request_id: str) -> bool:
        """End a request in any state and free its pages; False if it is not here (any more)."""
        generation = self._generations.get(request_id)
        return generation is not None and self.cancel(generation)

    def cancel(self, generation: Generation) -> bool:
        """Like `abort`, for this request only: another may have its id by now."""
        if self._generations.get(generation.request_id) is not generation:
            return False
        for completion in generation.completions:
            if not completion.finished:
                self._scheduler.finish(completion.sequence_id)
                self._end(completion, generation, "abort")
        self._wake.set()
        return True

    def abort_all(self) -> None:
        """End every request with finish reason ``abort``."""
        for generation in list(self._generations.values()):
            self.cancel(generation)

    def statistics(self) -> PipelineStatistics:
        return dataclasses.replace(self._totals, unfinished=len(self._generations))

    async def run(self) -> None:
        """Serve until cancelled. A failure ends all requests (`fail`); raised here, it would cancel the host application."""
        try:
            await self._serve()
        except BaseExceptionGroup:
            if self.failure is None:
                raise
        finally:
            self.threads.stop()

    async def _serve(self) -> None:
        plans_in, plans = anyio.create_memory_object_stream[StepPlan](0)
        handles_in, handles = anyio.create_memory_object_stream[StepHandle](self._depth)
        updates_in, updates = anyio.create_memory_object_stream[_News](self._depth)
        async with anyio.create_task_group() as tasks:
            for name, work in (
                ("expire", self._expire),
                ("schedule", partial(self._schedule, plans_in)),
                ("model_step", partial(self._model_step, plans, handles_in)),
                ("collect", partial(self._collect, handles, updates_in)),
                ("detokenize", partial(self._detokenize, updates)),
            ):
                tasks.start_soon(self._watch, work, name=f"asurge.{name}")

    async def _watch(self, work: Callable[[], Awaitable[None]]) -> None:
        """Run one of the coroutines. What it fails with is reported at once: another may hang in the device, and the group
        waits for it."""
        try:
            await work()
        except get_cancelled_exc_class():
            raise
        except BaseException as error:  # panics of libraries in Rust are not Exceptions
            self.fail(error)
            raise

    def fail(self, error: BaseException) -> None:
        """End all requests with `EngineDeadError`, now and from now on."""
        self.failure = self.failure or _dead(error)
        for generation in list(self._generations.values()):
            with suppress(BaseException):  # of a scheduler that is broken
                self._drop(generation, self.failure.again())

    async def _expire(self) -> None:
        """Fail requests whose deadline passes, whatever state they are in; waits for nothing else."""
        while True:
            changed, deadline = self._new_deadline, self._scheduler.next_deadline_s
            with anyio.move_on_after(inf if deadline is None else deadline - self.clock()):
                await changed.wait()
            for sequence_id in self._scheduler.expire(self.clock()):
                if sequence_id in self._completions:
                    generation = self._completions[sequence_id][1]
                    self._drop(generation, generation.late())

    async def _schedule(self, plans: MemoryObjectSendStream[StepPlan]) -> None:
        scheduler = self._scheduler
        async with plans:
            while True:
                begin_s = self.clock()
                plan = None
                if scheduler.num_in_flight < self._depth:
                    plan = scheduler.plan(self._pacer.pace)
                if plan is not None:
                    self._note_started(plan)
                    self._saw("plan", plan, begin_s)
                    await plans.send(plan)
                    continue
                if scheduler.has_work and scheduler.num_in_flight == 0:
                    raise RuntimeError(f"the scheduler stalled: {scheduler.statistics()}")
                await self._wake.wait()
                self._wake = anyio.Event()

    def _note_started(self, plan: StepPlan) -> None:
        now = self.clock()
        for row in plan.prefill:
            completion, _ = self._completions.get(row.sequence_id, (None, None))
            if completion is not None and completion.started_s is None:
                completion.started_s = now

    async def _model_step(
        self, plans: MemoryObjectReceiveStream[StepPlan], handles: MemoryObjectSendStream[StepHandle]
    ) -> None:
        async with plans, handles:
            async for plan in plans:
                handle = await self.threads.dispatch(partial(self._dispatch, plan))
                if plan.samples_apart:
                    await self._sample(plan, handle)
                await handles.send(handle)

    def _dispatch(self, plan: StepPlan) -> StepHandle:
        begin_s = self.clock()
        handle = self._runner.dispatch(plan)
        self._saw("dispatch", plan, begin_s)
        return handle

    def _saw(self, stage: Stage, plan: StepPlan, begin_s: float) -> None:
        self.step_observers.saw(stage, plan.step_id, begin_s, self.clock())

    async def _sample(self, plan: StepPlan, handle: StepHandle) -> None:
        """Send the sampling that follows a running forward pass. Masks depend on all tokens sampled before, which arrive while it
        runs, and are filled while it runs."""
        masked = self._masks.wanted(plan)
        while masked and self._applied < plan.step_id - 1:
            await self._newly_applied.wait()

        def fill_and_sample() -> dict[str, BaseException]:
            begin_s = self.clock()
            masks, failed = self._masks.fill(plan) if masked else (None, {})
            handle.sample(masks)
            self._saw("sample", plan, begin_s)
            return failed

        self._fail_all(await self.threads.dispatch(fill_and_sample))

    async def _collect(
        self, handles: MemoryObjectReceiveStream[StepHandle], updates: MemoryObjectSendStream[_News]
    ) -> None:
        async with handles, updates:
            async for handle in handles:
                result = await self.threads.read(handle.wait)
                self._totals.steps += result.plan.decode_steps
                self.request_observers.stepped(result.plan)
                self._pacer.see(result.plan, result.device_time_s)
                self._totals.device_time_s += result.device_time_s
                begin_s = self.clock()
                self.step_observers.saw("device", result.plan.step_id, begin_s - result.device_time_s, begin_s)
                news = self._scheduler.apply(result)
                self._fail_all(self._masks.accept(news))
                self._applied = result.plan.step_id
                self._newly_applied.set()
                self._newly_applied = anyio.Event()
                self._wake.set()
                self._saw("apply", result.plan, begin_s)
                await updates.send((result.plan, news))

    async def _detokenize(self, updates: MemoryObjectReceiveStream[_News]) -> None:
        async with updates:
            async for plan, news in updates:
                begin_s = self.clock()
                for count, update in enumerate(news, 1):
                    self._deliver(update)
                    if count % DELIVERIES_A_TURN == 0:
                        await checkpoint()
                self._saw("deliver", plan, begin_s)

    def _deliver(self, update: SequenceUpdate) -> None:
        completion, generation = self._completions.get(update.sequence_id, (None, None))
        if completion is None or generation is None:  # aborted since
            return
        self._totals.generated_tokens += len(update.token_ids)
        if update.prompt_logprobs is not None and completion.index == 0 and generation.prompt.logprobs is not None:
            generation.prompt.logprobs.extend(update.prompt_logprobs)
        now = self.clock()
        if update.token_ids:
            since_s = None if completion.last_token_s is None else now - completion.last_token_s
            self.request_observers.gained(len(update.token_ids), since_s)
        try:
            matched = completion.extend(update, now)
        except BaseException as error:  # a tokenizer that cannot decode, or panics, must fail this request only
            self._fail(generation, contained(error))
            return
        if update.finish_reason == "error":
            self._fail(generation, update.error)
        elif matched is not None:
            self._stop(completion, generation, matched)
        elif update.finish_reason is not None:
            self._end(completion, generation, update.finish_reason, update.stop_reason)
        elif self._masks.finished(update.sequence_id):
            self._stop(completion, generation)

    def _stop(self, completion: Completion, generation: Generation, stop_reason: str | None = None) -> None:
        """End a sequence whose end the scheduler does not know of."""
        self._scheduler.finish(completion.sequence_id)
        self._wake.set()
        self._end(completion, generation, "stop", stop_reason)

    def _fail_all(self, failed: Mapping[str, BaseException]) -> None:
        for sequence_id, error in failed.items():
            if sequence_id in self._completions:
                self._fail(self._completions[sequence_id][1], error)

    def _fail(self, generation: Generation, cause: BaseException | None) -> None:
        """Fail a request with all its completions."""
        self._drop(generation, _failed(generation.request_id, cause))

    def _drop(self, generation: Generation, error: AsurgeError) -> None:
        generation.fail(error)
        for completion in generation.completions:
            self._scheduler.finish(completion.sequence_id)
            self._forget(completion)
        self._wake.set()
        del self._generations[generation.request_id]
        self._totals.failed += 1
        self.request_observers.ended(generation, "error")

    def _forget(self, completion: Completion) -> None:
        self._completions.pop(completion.sequence_id, None)
        self._masks.discard(completion.sequence_id)

    def _end(
        self, completion: Completion, generation: Generation, reason: FinishReason, stop_reason: str | int | None = None
    ) -> None:
        self._forget(completion)
        try:
            completion.finish(reason, stop_reason)
        except BaseException as error:  # of a tokenizer, whose last text comes now
            self._fail(generation, contained(error))
            return
        if not generation.finished:
            return
        del self._generations[generation.request_id]
        self.request_observers.ended(generation, reason)
        if reason != "abort":
            self._totals.count_completed(generation)
