"""`EngineStatus`: what can be asked of an engine while it lives."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from asurge.config import EngineConfig
from asurge.engine.admission import Intake
from asurge.engine.assembly import EngineParts
from asurge.engine.constraints import thinking_tokens
from asurge.errors import EngineDeadError, EngineNotRunningError, EngineStateError
from asurge.pipeline import Pipeline, RequestObserver, StepObserver
from asurge.scheduler import SchedulerStatistics
from asurge.text import Tokenizer

EngineState = Literal["new", "starting", "running", "stopped"]


class EngineStatus:
    """The part of `asurge.Engine` that only observes.

    Attributes:
        config: the settings, as they were given.
    """

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        self._name = config.name or _local_name(config.model) or config.model
        self._state: EngineState = "new"
        self._parts: EngineParts | None = None
        self._pipeline: Pipeline | None = None
        self._intake: Intake | None = None
        self._serving: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}, {self._state}>"

    @property
    def name(self) -> str:
        """The name the model is served under: a folder's own name, where it has no other."""
        return self._name

    @property
    def state(self) -> EngineState:
        """Where the engine is in its life cycle. One that has failed is still ``"running"``: see `failure`."""
        return self._state

    @property
    def failure(self) -> EngineDeadError | None:
        """The error every request has been refused with since the engine failed; None if it has not."""
        return None if self._pipeline is None else self._pipeline.failure

    @property
    def device_hangs(self) -> bool:
        """Whether the engine has failed because the device did not return from a step, and it still has not."""
        return self._pipeline is not None and self._pipeline.failure is not None and self._pipeline.threads.hang

    @property
    def is_running(self) -> bool:
        """Whether the engine has started, has not stopped, and has not failed."""
        return self._state == "running" and self._pipeline is not None and self._pipeline.failure is None

    @property
    def max_model_len(self) -> int:
        """The longest sequence in tokens."""
        return self._started().runner.limits.max_model_len

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer.

        Raises:
            EngineNotRunningError: the engine has not started.
        """
        return self._started().tokenizer

    @property
    def bounds_reasoning(self) -> bool:
        """Whether the model has tokens that enclose its reasoning, which `SamplingParams.thinking_budget` needs.

        Raises:
            EngineNotRunningError: the engine has not started.
        """
        return thinking_tokens(self._started().tokenizer) is not None

    @property
    def num_pending_requests(self) -> int:
        """Requests waiting for a slot."""
        return self._started().scheduler.num_waiting

    @property
    def num_running_requests(self) -> int:
        """Requests that hold a slot."""
        return self._started().scheduler.num_running

    def statistics(self) -> SchedulerStatistics:
        """Pages, queues and cache at this moment."""
        return self._started().scheduler.statistics()

    def get_metrics_summary(self) -> dict[str, float]:
        """Totals and averages since the start; latencies in seconds, throughput in tokens per second."""
        parts, (pipeline, intake) = self._started(), self._running()
        return summarize(parts, pipeline, intake.started_s)

    @property
    def fallbacks(self) -> tuple[str, ...]:
        """What runs in plain XLA although faster kernels were wanted, and why; empty if all is as it should be.

        Raises:
            EngineNotRunningError: the engine has not started.
        """
        return self._started().fallbacks

    def observe_requests(self, observer: RequestObserver) -> Callable[[], None]:
        """Tell an observer what requests gain and how they end (`asurge.observe.RequestFigures`), in addition to any observers
        already added.

        Returns:
            A function that ends this; to be called once.

        Raises:
            EngineNotRunningError: the engine has not started or has stopped.
        """
        pipeline, _ = self._running()
        pipeline.request_observers.add(observer)
        return lambda: pipeline.request_observers.remove(observer)

    def observe_steps(self, observer: StepObserver | None) -> None:
        """Have an observer watch the steps go by (`asurge.bench.trace.StepTrace`); None ends this.

        Raises:
            EngineNotRunningError: the engine has not started or has stopped.
        """
        pipeline, _ = self._running()
        pipeline.step_observers.set(observer)

    def _started(self) -> EngineParts:
        if self._parts is None:
            raise EngineNotRunningError("the engine has not started: use `async with engine`, or await initiate()")
        return self._parts

    def _running(self) -> tuple[Pipeline, Intake]:
        if self._state != "running" or self._pipeline is None or self._intake is None:
            hint = "make a new one" if self._state == "stopped" else "use `async with engine`, or await initiate()"
            raise EngineNotRunningError(f"the engine is not running ({self._state}): {hint}")
        if self._pipeline.failure is not None:
            raise self._pipeline.failure.again()
        return self._pipeline, self._intake

    def _ended(self, _: asyncio.Task[None]) -> None:
        """The engine's task has ended. Where nobody stopped the engine (an application may cancel all tasks), its requests must not
        wait for ever."""
        if self._state == "running" and self._pipeline is not None:
            self._pipeline.fail(asyncio.CancelledError("its task was cancelled"))

    def _here(self) -> tuple[Pipeline, Intake]:
        """`_running`, for coroutines.

        Raises:
            EngineStateError: they are not on the loop on which the engine runs, and would wait for ever.
        """
        found = self._running()
        self._check_loop()
        return found

    def _check_idle(self) -> None:
        """Raises:
        EngineStateError: requests are running.
        """
        self._here()
        now = self.statistics()
        if now.running or now.waiting or now.in_flight_steps:
            raise EngineStateError("weights are replaced only while no request runs: wait, or abort what runs")

    def _check_loop(self) -> None:
        if self._serving is not None and self._serving.get_loop() is not asyncio.get_running_loop():
            raise EngineStateError(
                "this engine was started on another event loop: await it there (with pytest-asyncio: the same loop_scope for the "
                "fixture and its tests), or start another one here"
            )


def _local_name(model: str) -> str | None:
    """The name of a folder or a GGUF file: the path to it is nobody's business but its owner's. None for the demo and for
    repositories."""
    path = Path(model).expanduser()
    if path.is_dir():
        return path.resolve().name
    return path.stem if path.is_file() else None


def summarize(parts: EngineParts, pipeline: Pipeline, started_s: float) -> dict[str, float]:
    """Totals and averages since ``started_s`` on the pipeline's clock; latencies in seconds, throughput in tokens a second."""
    totals, waiting, running = pipeline.statistics(), parts.scheduler.num_waiting, parts.scheduler.num_running
    team = parts.threads.statistics()
    done, uptime = max(totals.completed, 1), max(pipeline.clock() - started_s, 1e-9)
    return {
        "requests_per_second": totals.completed / uptime,
        "average_latency": totals.latency_sum_s / done,
        "average_ttft": totals.ttft_sum_s / done,
        "average_throughput": totals.generated_tokens / uptime,
        "total_completed": totals.completed,
        "total_failed": totals.failed,
        "total_tokens": totals.generated_tokens,
        "active_requests": waiting + running,
        "queue_size": waiting,
        "running_requests": running,
        "fallbacks": len(parts.fallbacks),
        "compilations": parts.compilations(),
        "kernel_threads": team.threads,
        "kernel_threads_active": team.active,
        "kernel_threads_put_aside": team.put_aside,
        "kernel_wait_seconds": team.waited_s,
    }
