"""Measure one workload: its load, and what the process did meanwhile."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import anyio

from asurge.bench.driver import Client, LagMonitor, drive
from asurge.bench.metrics import Distribution, Metrics, distribution, summarize
from asurge.bench.records import Load, Record
from asurge.bench.roofline import Roofline
from asurge.bench.workloads import Workload
from asurge.errors import BenchmarkError, ConfigError

WARM_UP_TOKENS = 8


@dataclasses.dataclass(frozen=True, slots=True)
class Measurement:
    """A workload and its figures.

    Attributes:
        lag_ms: how late the event loop woke a coroutine while the workload ran.
        failures: the different reasons why requests failed.
    """

    workload: Workload
    load: Load
    metrics: Metrics
    lag_ms: Distribution | None
    failures: tuple[str, ...]

    def document(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "workload": dataclasses.asdict(self.workload),
            "metrics": dataclasses.asdict(self.metrics),
            "event_loop_lag_ms": None if self.lag_ms is None else dataclasses.asdict(self.lag_ms),
            "failures": list(self.failures),
        }


@dataclasses.dataclass(frozen=True, slots=True)
class Surroundings:
    """Measurements that exist only when the engine is in this process.

    Attributes:
        start_s: from opening the engine to its being ready.
        compilations: steps compiled while requests were served; 0 unless something is wrong.
    """

    start_s: float
    peak_resident_bytes: int
    compilations: int
    roofline: Roofline | None

    def document(self) -> dict[str, Any]:
        """JSON-ready."""
        return dataclasses.asdict(self)


async def measure(
    client: Client,
    workload: Workload,
    *,
    vocab_size: int,
    seed: int = 0,
    limits_ms: dict[str, float] | None = None,
    on_done: Callable[[Record], object] = lambda record: None,
) -> Measurement:
    """Run a workload and summarise it.

    Raises:
        BenchmarkError: no request completed.
    """
    prompts, lag = workload.prompts(vocab_size, seed), LagMonitor()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lag.run)
        load = await drive(client, workload, prompts, seed=seed, on_done=on_done)
        tasks.cancel_scope.cancel()
    failures = tuple(dict.fromkeys(record.error for record in load.records if record.error is not None))
    if all(record.error is not None for record in load.records):
        raise BenchmarkError(f"all {len(load.records)} requests failed: {failures[0]}")
    return Measurement(
        workload, load, summarize(load, workload.output_len, limits_ms), distribution(lag.samples_s, 1000), failures
    )


async def warm_up(client: Client, workload: Workload, *, vocab_size: int, rounds: int, seed: int) -> None:
    """Send a few requests of a workload's kind, with short answers, that are not measured."""
    if rounds:
        few = dataclasses.replace(
            workload, requests=min(workload.requests, 2), rounds=rounds, rate=None, output_len=min(workload.output_len, WARM_UP_TOKENS)
        )  # fmt: skip
        await drive(client, few, few.prompts(vocab_size, seed))


async def measure_warm(
    client: Client, workload: Workload, *, vocab_size: int, seed: int, rounds: int = 1
) -> Measurement:
    """`measure` after `warm_up`, with other prompts."""
    await warm_up(client, workload, vocab_size=vocab_size, rounds=rounds, seed=seed + 500)
    return await measure(client, workload, vocab_size=vocab_size, seed=seed)


def check_fits(workload: Workload, max_model_len: int) -> None:
    """Check that all requests of a workload fit the context.

    Raises:
        ConfigError: a request of this workload would be cut.
    """
    if workload.total_len > max_model_len:
        raise ConfigError(
            f"workload {workload.name!r} needs {workload.input_len} + {workload.output_len} tokens, but the longest sequence is "
            f"max_model_len={max_model_len}: use shorter lengths, or raise --max-model-len"
        )
