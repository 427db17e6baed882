"""Figures against values computed by hand."""

from __future__ import annotations

import pytest

from asurge.bench.metrics import distribution, parse_limits, summarize
from asurge.bench.records import Load, Record
from asurge.errors import ConfigError


def record(sent_s: float, deliveries: list[tuple[float, int]], *, inputs: int = 10, error: str | None = None) -> Record:
    ended_s = deliveries[-1][0] if deliveries else sent_s
    return Record(inputs, sent_s, ended_s, deliveries, error=error)


def test_percentiles_interpolate() -> None:
    four, one = distribution([4.0, 2.0, 1.0, 3.0]), distribution([5.0])
    assert four is not None
    assert one is not None
    assert (four.p50, four.p90, one.p99) == (2.5, pytest.approx(3.7), 5.0)
    found = distribution([3.0, None, 1.0], scale=10)
    assert found is not None
    assert (found.mean, found.p50, found.max) == (20.0, 20.0, 30.0)
    assert distribution([None]) is None


def test_times_of_one_request() -> None:
    one = record(1.0, [(1.5, 1), (1.6, 1), (1.9, 2), (2.0, 1)])
    assert one.first_token_s == 0.5
    assert one.latency_s == 1.0
    assert one.output_tokens == 5
    assert one.per_token_s == pytest.approx(0.5 / 4)  # four tokens came after the first delivery
    assert one.gaps_s == pytest.approx([0.1, 0.3, 0.1])


def test_tokens_of_the_first_delivery_take_no_time_of_their_own() -> None:
    assert record(0.0, [(1.0, 3), (3.0, 2)]).per_token_s == 1.0
    assert record(0.0, [(1.0, 3)]).per_token_s is None
    assert record(0.0, []).per_token_s is None
    assert record(0.0, []).first_token_s is None


@pytest.mark.parametrize(
    ("counted", "held"), [(7, [1, 3, 3]), (6, [1, 3, 2]), (3, [1, 1, 1]), (2, [1, 0, 1]), (1, [1, 0, 0])]
)
def test_a_late_count_is_shared_by_the_later_deliveries(counted: int, held: list[int]) -> None:
    one = record(0.0, [(1.0, 1), (2.0, 1), (3.0, 1)])
    one.settle(counted)
    assert [tokens for _, tokens in one.deliveries] == held


def test_a_late_count_of_a_single_delivery() -> None:
    one = record(0.0, [(1.0, 1)])
    one.settle(4)
    assert one.output_tokens == 4
    empty = record(0.0, [])
    empty.settle(4)
    assert empty.output_tokens == 0


def test_summary() -> None:
    records = [
        record(0.0, [(0.1, 1), (0.2, 1), (0.3, 1)]),  # ttft 100 ms, tpot 100 ms
        record(0.0, [(0.3, 1), (0.6, 1), (0.9, 1)]),  # ttft 300 ms, tpot 300 ms
        record(0.0, [(0.2, 1), (0.4, 1)]),  # one token short
        record(0.0, [(0.2, 1)], error="it broke"),
    ]
    metrics = summarize(Load(records, [(0.0, 1.0), (5.0, 6.0)]), 3, {"ttft": 250, "tpot": 250})
    assert (metrics.completed, metrics.failed, metrics.short) == (3, 1, 1)
    assert metrics.duration_s == 2.0  # the pause between rounds does not count
    assert (metrics.input_tokens, metrics.output_tokens) == (30, 8)
    assert metrics.output_tokens_per_s == 4.0
    assert metrics.total_tokens_per_s == 19.0
    assert metrics.requests_per_s == 1.5
    assert metrics.goodput_per_s == 1.0
    assert metrics.ttft_ms is not None
    assert (metrics.ttft_ms.p50, metrics.ttft_ms.max) == pytest.approx((200.0, 300.0))
    assert metrics.tpot_ms is not None
    assert metrics.tpot_ms.mean == pytest.approx(200.0)
    assert metrics.itl_ms is not None
    assert metrics.itl_ms.mean == pytest.approx((100 + 100 + 300 + 300 + 200) / 5)
    assert metrics.round_ms is not None
    assert metrics.round_ms.p50 == 1000.0
    assert metrics.tokens_per_delivery is not None
    assert metrics.tokens_per_delivery.mean == 1.0


def test_without_limits_there_is_no_goodput() -> None:
    assert summarize(Load([record(0.0, [(1.0, 1)])], [(0.0, 1.0)]), 1).goodput_per_s is None


def test_limits() -> None:
    assert parse_limits(["ttft:500", "tpot:50.5"]) == {"ttft": 500.0, "tpot": 50.5}
    for wrong in ("ttft", "ttft:", "ttft:fast", "ttft:0", "ttft:nan", "speed:5"):
        with pytest.raises(ConfigError, match="ttft:500"):
            parse_limits([wrong])
