"""Metrics as time series, on a clock of their own and of a real engine."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from asurge import Engine, SamplingParams, blocking
from asurge.engine.history import MetricsHistory
from asurge.errors import EngineDeadError, EngineNotRunningError
from tests.bench.virtual import run
from tests.conftest import TINY

GREEDY = SamplingParams(max_tokens=20, temperature=0.0, ignore_eos=True)


class Work:
    """Metrics of an engine that is busy until a moment of the loop's time."""

    def __init__(self, until_s: float = 0.0) -> None:
        self.until_s, self.reads, self.failure = until_s, 0, False

    def read(self) -> dict[str, float]:
        self.reads += 1
        if self.failure:
            raise EngineDeadError("the engine failed")
        return {"active_requests": float(self.busy()), "total_tokens": asyncio.get_running_loop().time()}

    def busy(self) -> bool:
        return asyncio.get_running_loop().time() < self.until_s


def history(work: Work, size: int = 100) -> MetricsHistory:
    return MetricsHistory(
        work.read, work.busy, interval_s=10.0, size=size, clock=lambda: 1e9 + asyncio.get_running_loop().time()
    )


def test_samples_are_taken_at_an_interval_until_the_work_ends() -> None:
    async def main() -> dict[str, list[float]]:
        work = Work(until_s=25.0)
        samples = history(work)
        samples.wake()
        await asyncio.sleep(500.0)
        return samples.series()

    assert run(main) == {
        "time": [1e9, 1e9 + 10, 1e9 + 20, 1e9 + 30],
        "active_requests": [1.0, 1.0, 1.0, 0.0],
        "total_tokens": [0.0, 10.0, 20.0, 30.0],
    }


def test_many_short_requests_cost_one_sample_an_interval() -> None:
    async def main() -> int:
        work = Work()
        samples = history(work)
        for _ in range(995):  # 99.5 s: samples at 0, 10, ... 90
            work.until_s = asyncio.get_running_loop().time() + 0.01
            samples.wake()
            await asyncio.sleep(0.1)
        return work.reads

    assert run(main) == 10


def test_the_oldest_samples_give_way() -> None:
    async def main() -> list[float]:
        samples = history(Work(until_s=95.0), size=3)
        samples.wake()
        await asyncio.sleep(500.0)
        return samples.series()["total_tokens"]

    assert run(main) == [80.0, 90.0, 100.0]


def test_a_closed_history_and_a_failed_engine_are_sampled_no_more() -> None:
    async def main(fails: bool) -> tuple[list[float], int]:
        work = Work(until_s=1000.0)
        samples = history(work)
        samples.wake()
        await asyncio.sleep(15.0)
        work.failure = fails
        if not fails:
            samples.close()
        await asyncio.sleep(500.0)
        return samples.series()["total_tokens"], work.reads

    assert run(main, False) == ([0.0, 10.0], 2)
    assert run(main, True) == ([0.0, 10.0], 3)


def test_a_history_without_samples_has_no_times() -> None:
    assert history(Work()).series() == {"time": []}


async def test_an_engine_has_a_history_that_ends_with_its_work(tiny: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiny._life.history, "_interval_s", 0.0)
    await tiny.generate(["a", "b"], GREEDY, use_tqdm=False)
    async with asyncio.timeout(30):
        while tiny._life.history._timer is not None:
            await asyncio.sleep(0.001)
    series, summary = tiny.metrics_history(), tiny.get_metrics_summary()
    assert set(series) == {"time", *summary}
    assert {len(values) for values in series.values()} == {len(series["time"])}
    assert series["time"] == sorted(series["time"])
    for name in ("total_completed", "total_tokens", "active_requests", "kv_cache_usage", "prefix_cache_hit_rate"):
        assert series[name][-1] == summary[name]
    assert max(series["kv_cache_usage"]) > 0 == series["kv_cache_usage"][-1]
    assert max(series["active_requests"]) >= 2


def test_a_blocking_engine_keeps_its_history_after_its_end(tiny_folder: Path) -> None:
    engine = blocking.Engine(str(tiny_folder), **TINY)
    assert engine.metrics_history() == {"time": []}
    with engine:
        engine.generate("a", GREEDY, use_tqdm=False)
        assert engine.metrics_history()["active_requests"][0] == 1
    assert engine.metrics_history()["active_requests"][0] == 1
    with pytest.raises(EngineNotRunningError):
        engine.get_metrics_summary()
