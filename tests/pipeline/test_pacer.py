"""How many decode steps go into one dispatch."""

from __future__ import annotations

import pytest

from asurge.pipeline.pacer import Pacer


def test_nothing_is_grouped_before_a_step_was_seen() -> None:
    assert Pacer().draws == 1


@pytest.mark.parametrize(("step_s", "draws"), [(0.030, 1), (0.013, 1), (0.012, 2), (0.002, 12), (1e-5, 2500)])
def test_a_group_fills_its_time_with_whole_steps(step_s: float, draws: int) -> None:
    pacer = Pacer(0.025)
    pacer.see(1, step_s)
    assert pacer.draws == draws


def test_a_groups_time_counts_for_each_of_its_steps() -> None:
    pacer = Pacer(0.025)
    pacer.see(4, 0.020)
    assert pacer.draws == 5


def test_one_slow_step_changes_little_and_many_change_all() -> None:
    pacer = Pacer(0.025)
    pacer.see(1, 0.0025)
    pacer.see(1, 0.0125)
    assert pacer.draws == 5
    for _ in range(50):
        pacer.see(1, 0.0125)
    assert pacer.draws in (1, 2)


def test_a_step_without_a_time_groups_nothing() -> None:
    pacer = Pacer(0.025)
    pacer.see(1, 0.0)
    assert pacer.draws == 1
