"""An engine's figures at one moment."""

from __future__ import annotations

from asurge.assembly import Parts
from asurge.pipeline import Pipeline


def summarize(parts: Parts, pipeline: Pipeline, started_s: float) -> dict[str, float]:
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
