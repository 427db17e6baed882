from __future__ import annotations

from typing import Any

import pytest

from asurge.bench.workloads import WORKLOADS, Workload, named_workload
from asurge.errors import ConfigError


def test_prompts_have_their_lengths_and_share_their_beginning_within_a_round() -> None:
    workload = Workload(name="x", requests=4, input_len=20, output_len=1, shared_prefix=12, rounds=2)
    rounds = workload.prompts(vocab_size=1000, seed=3)
    assert [len(batch) for batch in rounds] == [4, 4]
    for batch in rounds:
        assert {len(prompt) for prompt in batch} == {20}
        assert len({tuple(prompt[:12]) for prompt in batch}) == 1
        assert len({tuple(prompt) for prompt in batch}) == 4
    assert rounds[0][0][:12] != rounds[1][0][:12]
    assert all(0 <= token < 1000 for batch in rounds for prompt in batch for token in prompt)


def test_a_seed_decides_prompts_and_arrivals() -> None:
    workload = Workload(name="x", requests=50, input_len=4, output_len=1, rate=10.0)
    assert workload.prompts(100, 1) == workload.prompts(100, 1) != workload.prompts(100, 2)
    arrivals = workload.arrivals_s(1)
    assert arrivals == workload.arrivals_s(1) != workload.arrivals_s(2)
    assert arrivals[0] == 0.0
    assert arrivals == sorted(arrivals)
    assert 3.0 < arrivals[-1] < 8.0  # 49 gaps of 0.1 s on average


def test_without_a_rate_all_arrive_at_once() -> None:
    assert named_workload("w2").arrivals_s() == [0.0] * 64


@pytest.mark.parametrize(("name", "open_at_once"), [("w1", 1), ("w2", 64), ("w5", 32), ("w6", 8), ("w7", 256)])
def test_most_open(name: str, open_at_once: int) -> None:
    assert WORKLOADS[name].most_open == open_at_once


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"requests": 0}, "requests=0"),
        ({"output_len": 0}, "output_len=0"),
        ({"concurrency": 0}, "concurrency=0"),
        ({"rate": 0.0}, "rate=0.0"),
        ({"shared_prefix": 8}, "shared_prefix=8"),
        ({"shared_prefix": -1}, "shared_prefix=-1"),
    ],
)
def test_wrong_works_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Workload(**{"name": "x", "requests": 1, "input_len": 8, "output_len": 8, **changes})


def test_an_unknown_name_lists_the_workloads() -> None:
    with pytest.raises(ConfigError, match="w1, w2"):
        named_workload("w99")
