"""Scheduling policies: the order of requests, and how they share a step."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asurge.config import CacheConfig, EngineConfig, SchedulerConfig
from asurge.errors import ConfigError
from tests.fakes import limits
from tests.scheduler.driver import Driver, numbers

NOT_POSITIVE = (0, -1.0, True, "1", float("inf"), float("nan"))
LIMITS = limits(num_pages=200, max_num_seqs=2, max_num_batched_tokens=64, max_model_len=256)


def order(driver: Driver) -> list[str]:
    """Run until all requests have ended; return their ids in the order in which they began."""
    driver.run_out()
    return driver.started


def test_first_come_first_served_whatever_the_priority() -> None:
    driver = Driver(LIMITS)
    for name, priority in (("a", 5), ("b", 0), ("c", 1), ("d", 0)):
        driver.add(name, numbers(first=10 * priority + 2), priority=priority)
    assert order(driver) == ["a", "b", "c", "d"]


def test_lower_numbers_first_and_by_arrival_among_equals() -> None:
    driver = Driver(LIMITS, policy="priority")
    for name, priority in (("a", 5), ("b", 0), ("c", 1), ("d", 0)):
        driver.add(name, priority=priority)
    assert order(driver) == ["b", "d", "c", "a"]


def test_a_higher_priority_takes_the_slot_of_the_lowest_running() -> None:
    driver = Driver(LIMITS, policy="priority")
    driver.add("low", max_tokens=20, priority=2)
    driver.add("middle", max_tokens=20, priority=1)
    driver.step()
    driver.add("urgent", priority=0)
    driver.step()
    assert [row.sequence_id for row in driver.plans[-1].rows] == ["middle", "urgent"]
    assert driver.scheduler.statistics().preemptions == 1
    driver.run_out()


def test_equal_priorities_never_preempt_each_other() -> None:
    driver = Driver(LIMITS, policy="priority")
    for name in "abc":
        driver.add(name, priority=1)
    driver.run_out()
    assert driver.scheduler.statistics().preemptions == 0


def test_preemption_happens_only_if_it_admits_the_request() -> None:
    """All pages of the lower ones would not be enough, because a higher one holds the rest."""
    driver = Driver(dataclasses.replace(LIMITS, num_pages=21, max_num_seqs=3), policy="priority")
    driver.add("holder", numbers(40), 20, priority=0)
    driver.add("low", numbers(first=100), 20, priority=2)
    driver.step()
    driver.add("big", numbers(60, first=200), priority=1)
    driver.step()
    assert driver.scheduler.statistics().preemptions == 0
    driver.run_out()


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 30), st.integers(1, 12)), min_size=1, max_size=12))
@settings(max_examples=60, deadline=None)
def test_no_request_starts_while_a_higher_priority_waits(wishes: list[tuple[int, int, int]]) -> None:
    driver = Driver(LIMITS, policy="priority")
    for index, (priority, size, count) in enumerate(wishes):
        driver.add(f"{priority}-{index}", numbers(size), count, priority=priority)
    assert order(driver) == sorted(driver.started, key=lambda name: tuple(map(int, name.split("-"))))


def test_a_flood_of_one_tenant_does_not_delay_others() -> None:
    driver = Driver(LIMITS)
    for index in range(20):
        driver.add(f"flood{index}", numbers(first=2 + 10 * index), tenant="flood")
    driver.add("one", numbers(first=900), tenant="other")
    assert order(driver).index("one") <= 2  # the two slots, and then its turn


@pytest.mark.parametrize("weight", [1.0, 3.0])
def test_tenants_that_wait_are_served_by_their_weights(weight: float) -> None:
    driver = Driver(LIMITS, tenant_weights={"b": weight})
    for index in range(60):
        driver.add(f"a{index}", numbers(first=2 + index), tenant="a")
        driver.add(f"b{index}", numbers(first=500 + index), tenant="b")
    while driver.scheduler.num_waiting > 50:
        driver.step()
    served = Counter(name[0] for name in driver.started)
    assert served["b"] / served["a"] == pytest.approx(weight, rel=0.15)


def test_idle_tenants_gain_no_credit() -> None:
    driver = Driver(LIMITS)
    for index in range(12):
        driver.add(f"a{index}", numbers(first=2 + 10 * index), tenant="a")
    driver.add("a-long", numbers(first=800), 60, tenant="a")
    for _ in range(30):
        driver.step()
    for index in range(12):
        driver.add(f"b{index}", numbers(first=300 + 10 * index), tenant="b")
        driver.add(f"c{index}", numbers(first=600 + 10 * index), tenant="c")
    begun = len(driver.started)
    turns = order(driver)[begun:]
    assert abs(sum(name[0] == "b" for name in turns[:12]) - sum(name[0] == "c" for name in turns[:12])) <= 2


def test_cache_aware_order_prefers_the_longest_cached_prefix_within_limits() -> None:
    driver = Driver(dataclasses.replace(LIMITS, max_num_seqs=1), cache_aware=True, max_overtakes=3)
    driver.add("warm", numbers(32))
    driver.run_out()
    driver.add("cold", numbers(32, first=500))
    for index in range(6):
        driver.add(f"warm{index}", numbers(32))
    assert order(driver) == ["warm", "warm0", "warm1", "warm2", "cold", "warm3", "warm4", "warm5"]


def test_a_long_prompt_leaves_room_for_short_ones_beside_it() -> None:
    driver = Driver(LIMITS, long_prefill_token_threshold=16)
    driver.add("long", numbers(200))
    driver.add("short", numbers(20, first=500))
    for _ in range(3):
        driver.step()
    first, _, third = driver.plans
    assert {row.sequence_id: row.num_tokens for row in first.prefill} == {"long": 16, "short": 16}
    assert [row.num_tokens for row in third.prefill] == [60], "nobody else has a prompt: all that the decode row leaves"


def test_deadlines_end_requests_in_every_state() -> None:
    driver = Driver(LIMITS)
    driver.add("running", max_tokens=50, deadline_s=10.0)
    driver.add("prefilling", numbers(200, first=300), deadline_s=11.0)
    driver.add("waiting", numbers(first=700), deadline_s=12.0)
    driver.add("endless", numbers(first=800))
    scheduler = driver.scheduler
    plan = driver.plan()
    assert scheduler.next_deadline_s == 10.0
    assert scheduler.expire(9.99) == []
    assert scheduler.expire(12.0) == ["running", "prefilling", "waiting"]
    scheduler.check()
    assert scheduler.next_deadline_s is None
    assert driver.step(plan) == []
    assert list(driver.run_out()) == ["endless"]


def test_an_id_used_again_has_its_own_deadline() -> None:
    driver = Driver(LIMITS)
    driver.add("a", deadline_s=1.0)
    driver.scheduler.finish("a")
    driver.add("a", deadline_s=5.0)
    assert driver.scheduler.next_deadline_s == 5.0
    assert driver.scheduler.expire(2.0) == []


@pytest.mark.parametrize(("capacity", "cached"), [(None, 8), (3, 3), (0, 0)])
def test_the_cache_keeps_as_many_pages_as_it_may(capacity: int | None, cached: int) -> None:
    driver = Driver(LIMITS, cache=CacheConfig(prefix_cache_capacity=capacity))
    driver.add("a", numbers(32), 1)
    driver.run_out()
    assert driver.scheduler.statistics().pages_cached == cached


@pytest.mark.parametrize(
    "bad",
    [
        {"policy": "lifo"},
        {"max_overtakes": -1},
        {"long_prefill_token_threshold": 0},
        *({"tenant_weights": {"a": value}} for value in NOT_POSITIVE),
        *({"max_mixed_step_s": value} for value in NOT_POSITIVE),
    ],
)
def test_bad_settings_are_named(bad: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(bad))):
        SchedulerConfig(**bad)


def test_settings_may_be_mappings() -> None:
    """Settings as mappings, as a command line has them."""
    config = EngineConfig(scheduler={"policy": "priority"}, cache={"prefix_cache_capacity": 3})  # type: ignore[arg-type]
    assert (config.scheduler, config.cache) == (
        SchedulerConfig(policy="priority"),
        CacheConfig(prefix_cache_capacity=3),
    )
    for wrong in ({"policies": "x"}, "priority", {"policy": "lifo"}):
        with pytest.raises(ConfigError, match=r"scheduler|policy"):
            EngineConfig(scheduler=wrong)  # type: ignore[arg-type]
