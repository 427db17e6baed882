"""The simulated device: the same figures every time, nothing lost, and policies that do what they are for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.simulation import DEVICES, SCENARIOS, Outcome, compare, main

COUNT = 400


def run(name: str, seed: int = 0, load: float = 1.0) -> dict[str, Outcome]:
    scenario = SCENARIOS[name]
    return compare(scenario, DEVICES["cpu"], COUNT, seed, load * scenario.load)


@pytest.mark.parametrize("name", SCENARIOS)
def test_every_request_ends_and_everything_comes_back(name: str) -> None:
    for outcome in run(name).values():
        assert outcome.end_s.keys() == outcome.first_token_s.keys() == {one.sequence_id for one in outcome.requests}
        assert all(outcome.first_token_s[one.sequence_id] > one.arrival_s for one in outcome.requests)
        statistics = outcome.statistics
        assert (statistics.running, statistics.waiting, statistics.in_flight_steps) == (0, 0, 0)
        assert statistics.pages_available == statistics.pages_total


def test_a_seed_gives_the_same_figures() -> None:
    assert [one.end_s for one in run("bursts").values()] == [one.end_s for one in run("bursts").values()]
    assert [one.end_s for one in run("bursts", seed=1).values()] != [one.end_s for one in run("bursts").values()]


def test_priority_keeps_interactive_requests_from_waiting() -> None:
    outcomes, urgent = run("bursts", load=1.5), SCENARIOS["bursts"].groups["interactive"]
    assert outcomes["priority"].percentile(urgent, 99) < 0.2 * outcomes["fcfs"].percentile(urgent, 99)


def test_a_flood_delays_its_own_tenant_only() -> None:
    outcomes, others = run("flood"), SCENARIOS["flood"].groups["others"]
    assert outcomes["tenants"].percentile(others, 99) < 0.4 * outcomes["one queue"].percentile(others, 99)
    assert outcomes["tenants"].fairness >= outcomes["one queue"].fairness


def test_a_threshold_lets_short_prompts_pass_long_ones() -> None:
    outcomes, short = run("long", load=1.4), SCENARIOS["long"].groups["short"]
    limited, free = outcomes["threshold 128"], outcomes["no limit"]
    assert limited.percentile(short, 50) < free.percentile(short, 50)


def test_cache_aware_order_finds_more() -> None:
    outcomes = run("cache", load=2.0)
    assert outcomes["cache-aware"].hit_rate > outcomes["fcfs"].hit_rate


def test_the_command_writes_figures_and_a_picture(tmp_path: Path) -> None:
    main(["--requests", "60", "--json", str(tmp_path / "a.json"), "--plot", str(tmp_path / "a.svg")])
    assert json.loads((tmp_path / "a.json").read_text()).keys() == SCENARIOS.keys()
    assert (tmp_path / "a.svg").read_text().count("<path") > 20
