"""`EngineStatus`: what can be asked of an engine while it lives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from asurge.config import EngineConfig
from asurge.engine.assembly import EngineParts
from asurge.engine.constraints import thinking_tokens
from asurge.engine.history import MetricsHistory
from asurge.engine.life_cycle import EngineState, LifeCycle
from asurge.errors import EngineDeadError
from asurge.pipeline import Pipeline, RequestObserver, StepObserver
from asurge.scheduler import SchedulerStatistics
from asurge.text import Tokenizer


class EngineStatus:
    """The part of `asurge.Engine` that only observes.

    Attributes:
        config: the settings, as they were given.
    """

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        self._name = config.name or _local_name(config.model) or config.model
        self._life = LifeCycle(MetricsHistory(self.get_metrics_summary, self._busy))

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}, {self._life.state}>"

    @property
    def name(self) -> str:
        """The name the model is served under: a folder's own name, where it has no other."""
        return self._name

    @property
    def state(self) -> EngineState:
        """State of the engine's life cycle; after a failure still ``"running"`` (see `failure`)."""
        return self._life.state

    @property
    def failure(self) -> EngineDeadError | None:
        """The error every request has been refused with since the engine failed; None if it has not."""
        pipeline = self._life.pipeline
        return None if pipeline is None else pipeline.failure

    @property
    def device_hangs(self) -> bool:
        """Whether the engine has failed because the device did not return from a step, and it still has not."""
        pipeline = self._life.pipeline
        return pipeline is not None and pipeline.failure is not None and pipeline.threads.hang

    @property
    def is_running(self) -> bool:
        """Whether the engine has started, has not stopped, and has not failed."""
        return self._life.state == "running" and self.failure is None

    @property
    def max_model_len(self) -> int:
        """The longest sequence in tokens."""
        return self._life.started().runner.limits.max_model_len

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer.

        Raises:
            EngineNotRunningError: the engine has not started.
        """
        return self._life.started().tokenizer

    @property
    def about(self) -> Mapping[str, str]:
        """Metadata of the checkpoint: of a GGUF file its name, size, license, author and the like.

        Raises:
            EngineNotRunningError: the engine has not started.
        """
        return self._life.started().about

    @property
    def bounds_reasoning(self) -> bool:
        """Whether the model has tokens that enclose its reasoning, which `SamplingParams.thinking_budget` needs.

        Raises:
            EngineNotRunningError: the engine has not started.
        """
        return thinking_tokens(self._life.started().tokenizer) is not None

    @property
    def num_pending_requests(self) -> int:
        """Requests waiting for a slot."""
        return self._life.started().scheduler.num_waiting

    @property
    def num_running_requests(self) -> int:
        """Requests that hold a slot."""
        return self._life.started().scheduler.num_running

    def statistics(self) -> SchedulerStatistics:
        """Pages, queues and cache at this moment."""
        return self._life.started().scheduler.statistics()

    def get_metrics_summary(self) -> dict[str, float]:
        """Totals and averages since the start; latencies in seconds, throughput in tokens per second."""
        return summarize(self._life.started(), self._life.running().pipeline)

    def _busy(self) -> bool:
        pipeline, scheduler = self._life.running().pipeline, self._life.started().scheduler
        return pipeline.statistics().unfinished > 0 or scheduler.num_in_flight > 0  # steps in flight hold pages

    def metrics_history(self) -> dict[str, list[float]]:
        """`get_metrics_summary` as time series: a list for each metric, and one of the samples' times as ``time``.

        Samples are taken each second while requests run or wait, and after the last of them; the last 1,000 are kept, also
        after the engine has stopped. Times are in seconds since the epoch, oldest first.
        """
        return self._life.history.series()

    @property
    def fallbacks(self) -> tuple[str, ...]:
        """Reasons why parts run in plain XLA although faster kernels were requested; empty if there are none.

        Raises:
            EngineNotRunningError: the engine has not started.
        """
        return self._life.started().fallbacks

    def observe_requests(self, observer: RequestObserver) -> Callable[[], None]:
        """Add an observer of what requests gain and how they end (`asurge.observe.RequestFigures`).

        Observers that were added before stay.

        Returns:
            A function that ends this; to be called once.

        Raises:
            EngineNotRunningError: the engine has not started or has stopped.
        """
        pipeline = self._life.running().pipeline
        pipeline.request_observers.add(observer)
        return lambda: pipeline.request_observers.remove(observer)

    def observe_steps(self, observer: StepObserver | None) -> None:
        """Have an observer watch the steps go by (`asurge.bench.trace.StepTrace`); None ends this.

        Raises:
            EngineNotRunningError: the engine has not started or has stopped.
        """
        pipeline = self._life.running().pipeline
        pipeline.step_observers.set(observer)


def _local_name(model: str) -> str | None:
    """The name of a folder or a GGUF file: the path to it is nobody's business but its owner's. None for the demo and for
    repositories."""
    path = Path(model).expanduser()
    if path.is_dir():
        return path.resolve().name
    return path.stem if path.is_file() else None


def summarize(parts: EngineParts, pipeline: Pipeline) -> dict[str, float]:
    """Totals and averages since the pipeline was made; latencies in seconds, throughput in tokens a second."""
    totals = pipeline.statistics()
    team, now = parts.threads.statistics(), parts.scheduler.statistics()
    done, uptime = max(totals.completed, 1), max(pipeline.clock() - pipeline.created_s, 1e-9)
    return {
        "requests_per_second": totals.completed / uptime,
        "average_latency": totals.latency_sum_s / done,
        "average_ttft": totals.ttft_sum_s / done,
        "average_throughput": totals.generated_tokens / uptime,
        "total_completed": totals.completed,
        "total_failed": totals.failed,
        "total_tokens": totals.generated_tokens,
        "active_requests": now.waiting + now.running,
        "queue_size": now.waiting,
        "running_requests": now.running,
        "kv_cache_usage": 1 - now.pages_available / max(now.pages_total, 1),
        "prefix_cache_hit_rate": now.prefix_cache_hits / max(now.prefix_cache_queries, 1),
        "preemptions": now.preemptions,
        "fallbacks": len(parts.fallbacks),
        "compilations": parts.compilations(),
        "kernel_threads": team.threads,
        "kernel_threads_active": team.active,
        "kernel_threads_put_aside": team.put_aside,
        "kernel_wait_seconds": team.waited_s,
        "kernel_quota_sleep_seconds": team.quota_sleep_s,
    }
