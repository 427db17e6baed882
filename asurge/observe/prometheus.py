"""Prometheus: what engines do, under asurge's names and under those that dashboards of vLLM read."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from asurge.engine.status import EngineStatus
from asurge.observe.requests import LABELS, Histograms, RequestFigures
from asurge.scheduler import SchedulerStatistics

_OWN, _VLLM = "asurge_", "vllm:"
_KERNELS = (
    "kernel_threads",
    "kernel_threads_active",
    "kernel_threads_put_aside",
    "kernel_wait_seconds",
    "kernel_quota_sleep_seconds",
)
_ONLY_OURS = frozenset(("compilations", "fallbacks", "steps_in_flight", *_KERNELS))


class EngineMetrics:
    """Metrics of engines, by the names they are served under.

    Args:
        vllm_names: report each metric under vLLM's name too, for dashboards and autoscalers that know it.
    """

    def __init__(self, max_model_len: int, *, vllm_names: bool = True) -> None:
        self.registry = CollectorRegistry()
        self.requests: dict[str, RequestFigures] = {}
        self._engines: dict[str, EngineStatus] = {}
        self._ends: list[Callable[[], None]] = []
        self._histograms = Histograms(self.registry, max_model_len)
        self.registry.register(_Engines(self._engines))
        self._exposed = _Exposed(self.registry, vllm_names=vllm_names)

    def watch(self, name: str, engine: EngineStatus) -> RequestFigures:
        """Report a started engine from now on, until `close`."""
        figures = RequestFigures(self._histograms, name)
        self._ends.append(engine.observe_requests(figures))
        self._engines[name], self.requests[name] = engine, figures
        return figures

    def close(self) -> None:
        """Stop reporting engines; to be called once."""
        for end in self._ends:
            end()

    def exposition(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self._exposed)


class _Engines:
    """Collects the counters of engines, on demand."""

    def __init__(self, engines: Mapping[str, EngineStatus]) -> None:
        self._engines = engines

    def collect(self) -> Iterator[Metric]:
        alive = {name: engine for name, engine in self._engines.items() if engine.is_running}
        now = {name: engine.statistics() for name, engine in alive.items()}
        totals = {name: engine.get_metrics_summary() for name, engine in alive.items()}

        def gauge(name: str, text: str, values: Mapping[str, float]) -> Metric:
            return _filled(GaugeMetricFamily(_OWN + name, text, labels=LABELS), values)

        def counter(name: str, text: str, values: Mapping[str, float]) -> Metric:
            return _filled(CounterMetricFamily(_OWN + name, text, labels=LABELS), values)

        def total(name: str) -> dict[str, float]:
            return {engine: summary[name] for engine, summary in totals.items()}

        yield gauge("num_requests_running", "Sequences that hold a slot.", {n: s.running for n, s in now.items()})
        yield gauge("num_requests_waiting", "Sequences that wait for a slot.", {n: s.waiting for n, s in now.items()})
        usage = {n: 1 - s.pages_available / max(s.pages_total, 1) for n, s in now.items()}
        yield gauge("kv_cache_usage_perc", "Share of the KV pages in use, 0 to 1.", usage)
        yield self._cache_config(now)
        yield gauge(
            "steps_in_flight",
            "Steps that have been dispatched and not read yet.",
            {n: s.in_flight_steps for n, s in now.items()},
        )
        yield counter("prompt_tokens", "Prompt tokens.", {n: s.prompt_tokens for n, s in now.items()})
        cached = {n: s.prefix_cache_hits for n, s in now.items()}
        yield counter("prompt_tokens_cached", "Prompt tokens found in the prefix cache.", cached)
        yield counter("generation_tokens", "Generated tokens.", {n: s.generated_tokens for n, s in now.items()})
        yield counter(
            "num_preemptions",
            "Preemptions: sequences that lost their KV pages and are recomputed.",
            {n: s.preemptions for n, s in now.items()},
        )
        queries = {n: s.prefix_cache_queries for n, s in now.items()}
        yield counter("prefix_cache_queries", "Prompt tokens looked up in the prefix cache.", queries)
        yield counter("prefix_cache_hits", "Prompt tokens found in the prefix cache.", cached)
        yield counter(
            "compilations",
            "Compilations by XLA while serving; should stay 0.",
            total("compilations"),
        )
        yield gauge(
            "fallbacks",
            "Parts that run in plain XLA instead of faster kernels; see Engine.fallbacks.",
            total("fallbacks"),
        )
        yield gauge(
            "kernel_threads",
            "Threads of the CPU kernels; 0 where they do not serve the model.",
            total("kernel_threads"),
        )
        yield gauge(
            "kernel_threads_active",
            "Active threads of the CPU kernels: fewer than kernel_threads while the machine has other work.",
            total("kernel_threads_active"),
        )
        yield counter(
            "kernel_threads_put_aside",
            "Preempted kernel threads that were moved to another processor.",
            total("kernel_threads_put_aside"),
        )
        yield counter(
            "kernel_wait_seconds",
            "Seconds that the CPU kernels waited for threads of their own.",
            total("kernel_wait_seconds"),
        )
        yield counter(
            "kernel_quota_sleep_seconds",
            "Seconds that callers of the CPU kernels slept to stay within a quota of processor time.",
            total("kernel_quota_sleep_seconds"),
        )

    def _cache_config(self, now: Mapping[str, SchedulerStatistics]) -> Metric:
        labels = ("block_size", "num_gpu_blocks", "cache_dtype", "enable_prefix_caching")
        family = GaugeMetricFamily(
            _OWN + "cache_config_info", "Configuration of the KV cache, as labels.", labels=(*LABELS, *labels)
        )
        for name, statistics in now.items():
            config = self._engines[name].config
            caching = config.enable_prefix_caching and config.cache.enable_prefix_caching
            values = config.page_size, statistics.pages_total, config.kv_cache_dtype, caching
            family.add_metric((name, "0", *map(str, values)), 1)
        return family


class _Exposed(Collector):
    """What is exposed of a registry: its metrics without their creation times, an eighth of a scrape that nobody reads
    (``disable_created_metrics`` would take them from the host application's metrics too); and once more under vLLM's names."""

    def __init__(self, registry: CollectorRegistry, *, vllm_names: bool) -> None:
        self._registry, self._vllm_names = registry, vllm_names

    def collect(self) -> Iterator[Metric]:
        metrics = list(self._registry.collect())
        for metric in metrics:
            metric.samples = [sample for sample in metric.samples if sample.name != f"{metric.name}_created"]
        yield from metrics
        if self._vllm_names:
            yield from (_renamed(metric) for metric in metrics if metric.name.removeprefix(_OWN) not in _ONLY_OURS)


def _renamed(metric: Metric) -> Metric:
    other = copy.copy(metric)
    other.name = _VLLM + metric.name.removeprefix(_OWN)
    other.samples = [sample._replace(name=_VLLM + sample.name.removeprefix(_OWN)) for sample in metric.samples]
    return other


def _filled(family: GaugeMetricFamily | CounterMetricFamily, values: Mapping[str, float]) -> Metric:
    for name, value in values.items():
        family.add_metric((name, "0"), value)
    return family
