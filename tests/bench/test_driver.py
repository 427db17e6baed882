"""Loads over a client with a virtual clock: every figure is exact."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import anyio
import pytest

from asurge.bench.driver import LagMonitor, drive
from asurge.bench.measure import Measurement, check_fits, measure, warm_up
from asurge.bench.plot import throughput_over_time
from asurge.bench.records import Load, Record
from asurge.bench.workloads import Workload
from asurge.errors import BenchmarkError, ConfigError, RequestFailedError
from tests.bench.virtual import ClockworkClient, run

WORKLOAD = Workload(name="test", requests=4, input_len=8, output_len=5)


def loaded(client: ClockworkClient, workload: Workload) -> Load:
    return run(lambda: drive(client, workload, workload.prompts(100)))


def test_all_at_once() -> None:
    client = ClockworkClient(1.0, 0.5)
    load = loaded(client, WORKLOAD)
    assert client.most_open == 4
    assert load.rounds_s == [(0.0, 3.0)]
    assert [record.latency_s for record in load.records] == [3.0] * 4
    assert [record.per_token_s for record in load.records] == [0.5] * 4


def test_concurrency_is_kept_and_waiting_is_not_part_of_a_latency() -> None:
    client = ClockworkClient(1.0, 0.5)
    load = loaded(client, dataclasses.replace(WORKLOAD, concurrency=2))
    assert client.most_open == 2
    assert load.rounds_s == [(0.0, 6.0)]
    assert [record.sent_s for record in load.records] == [0.0, 0.0, 3.0, 3.0]
    assert [record.first_token_s for record in load.records] == [1.0] * 4


def test_rounds_follow_one_another() -> None:
    load = loaded(ClockworkClient(1.0, 0.5), dataclasses.replace(WORKLOAD, requests=2, rounds=3))
    assert load.rounds_s == [(0.0, 3.0), (3.0, 6.0), (6.0, 9.0)]
    assert load.duration_s == 9.0
    assert len(load.records) == 6


def test_requests_arrive_at_the_given_rate() -> None:
    workload = dataclasses.replace(WORKLOAD, requests=20, rate=0.5)
    load = loaded(ClockworkClient(1.0, 0.5), workload)
    assert [record.sent_s for record in load.records] == pytest.approx(workload.arrivals_s())


def test_several_tokens_a_delivery() -> None:
    measured = run(lambda: measure(ClockworkClient(1.0, 0.5, held=2), WORKLOAD, vocab_size=100))
    metrics = measured.metrics
    assert metrics.tokens_per_delivery is not None
    assert metrics.tokens_per_delivery.mean == pytest.approx(5 / 3)
    assert metrics.itl_ms is not None
    assert metrics.itl_ms.p50 == pytest.approx(500)
    assert metrics.tpot_ms is not None
    assert metrics.tpot_ms.p50 == pytest.approx(250)
    assert metrics.duration_s == pytest.approx(2.0)
    assert metrics.output_tokens_per_s == pytest.approx(10.0)


class HalfBroken(ClockworkClient):
    """Fails every second request after its first token."""

    turn = 0

    async def complete(self, prompt: Sequence[int], output_len: int, record: Record, /) -> None:
        self.turn += 1
        if self.turn % 2:
            await super().complete(prompt, output_len, record)
        else:
            record.deliver(anyio.current_time(), 1)
            raise RequestFailedError("the step failed")


class Silent(ClockworkClient):
    async def complete(self, prompt: Sequence[int], output_len: int, record: Record, /) -> None:
        await anyio.sleep(1)


def test_failures_are_noted_and_end_nothing_else() -> None:
    measured: Measurement = run(lambda: measure(HalfBroken(1.0, 0.5), WORKLOAD, vocab_size=100))
    assert (measured.metrics.completed, measured.metrics.failed) == (2, 2)
    assert measured.failures == ("the step failed",)
    assert measured.document()["failures"] == ["the step failed"]


def test_nothing_completed_is_an_error() -> None:
    with pytest.raises(BenchmarkError, match="all 4 requests failed: the request ended without a token"):
        run(lambda: measure(Silent(1.0, 0.5), WORKLOAD, vocab_size=100))


def test_warm_up_is_short() -> None:
    client = ClockworkClient(1.0, 0.5)
    run(lambda: warm_up(client, WORKLOAD, vocab_size=100, rounds=2, seed=1))
    assert len(client.prompts) == 4
    run(lambda: warm_up(client, WORKLOAD, vocab_size=100, rounds=0, seed=1))
    assert len(client.prompts) == 4


def test_a_work_that_would_be_cut_is_refused() -> None:
    check_fits(WORKLOAD, 13)
    with pytest.raises(ConfigError, match="max_model_len=12"):
        check_fits(WORKLOAD, 12)


def test_lag_is_how_late_a_coroutine_wakes() -> None:
    monitor = LagMonitor(0.01)

    async def watch() -> None:
        with anyio.move_on_after(1.0):
            await monitor.run()

    run(watch)
    assert len(monitor.samples_s) in (99, 100)
    assert max(monitor.samples_s) == pytest.approx(0.0, abs=1e-9)


def test_throughput_over_time_counts_every_token() -> None:
    load = loaded(ClockworkClient(1.0, 0.5), WORKLOAD)
    at_s, rates = throughput_over_time(load, bins=6)
    assert at_s == pytest.approx([0.25, 0.75, 1.25, 1.75, 2.25, 2.75])
    assert sum(rate * 0.5 for rate in rates) == pytest.approx(20)
    assert rates[:2] == [0.0, 0.0]
