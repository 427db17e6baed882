"""Who comes next, by every policy, and how a step is shared."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asurge.config import CacheConfig, EngineConfig, SchedulerConfig
from asurge.errors import ConfigError
from asurge.plan import RowSampling, RunnerLimits, StepPlan
from asurge.scheduler import Request, Scheduler
from tests.fakes import PagedDevice

NOT_POSITIVE = (0, -1.0, True, "1", float("inf"), float("nan"))
LIMITS = RunnerLimits(num_pages=200, page_size=4, max_num_seqs=2, max_num_batched_tokens=64, max_model_len=256, prefill_quantum=4)  # fmt: skip


class Driver:
    """A scheduler and a device, one step at a time."""

    def __init__(self, limits: RunnerLimits = LIMITS, *, cache: CacheConfig | None = None, **config: Any) -> None:
        self.scheduler = Scheduler(limits, SchedulerConfig(**config), cache)
        self.device = PagedDevice(limits)
        self.started: list[str] = []

    def add(self, name: str, size: int = 8, count: int = 4, *, first: int = 2, **treated: Any) -> None:
        prompt = [first + at for at in range(size)]
        self.scheduler.add(Request(name, prompt, count, RowSampling(), **treated))

    def step(self) -> StepPlan | None:
        plan = self.scheduler.plan()
        self.scheduler.check()
        if plan is not None:
            self.started += [row.request_id for row in plan.prefill if row.request_id not in self.started]
            self.scheduler.apply(self.device.execute(plan))
            self.scheduler.check()
        return plan

    def run(self) -> list[str]:
        while self.step() is not None:
            pass
        return self.started


def test_first_come_first_served_whatever_the_priority() -> None:
    driver = Driver()
    for name, priority in (("a", 5), ("b", 0), ("c", 1), ("d", 0)):
        driver.add(name, priority=priority, first=10 * priority + 2)
    assert driver.run() == ["a", "b", "c", "d"]


def test_lower_numbers_first_and_by_arrival_among_equals() -> None:
    driver = Driver(policy="priority")
    for name, priority in (("a", 5), ("b", 0), ("c", 1), ("d", 0)):
        driver.add(name, priority=priority)
    assert driver.run() == ["b", "d", "c", "a"]


def test_a_higher_priority_takes_the_slot_of_the_lowest_running() -> None:
    driver = Driver(policy="priority")
    driver.add("low", count=20, priority=2)
    driver.add("middle", count=20, priority=1)
    driver.step()
    driver.add("urgent", priority=0)
    plan = driver.step()
    assert plan is not None
    assert [row.request_id for row in plan.rows] == ["middle", "urgent"]
    assert driver.scheduler.statistics().preemptions == 1
    driver.run()


def test_equal_priorities_never_preempt_each_other() -> None:
    driver = Driver(policy="priority")
    for name in "abc":
        driver.add(name, priority=1)
    driver.run()
    assert driver.scheduler.statistics().preemptions == 0


def test_nobody_is_preempted_in_vain() -> None:
    """All pages of the lower ones would not be enough, because a higher one holds the rest."""
    limits = RunnerLimits(num_pages=21, page_size=4, max_num_seqs=3, max_num_batched_tokens=64, max_model_len=256, prefill_quantum=4)  # fmt: skip
    driver = Driver(limits, policy="priority")
    driver.add("holder", size=40, count=20, priority=0)
    driver.add("low", size=8, count=20, priority=2, first=100)
    driver.step()
    driver.add("big", size=60, priority=1, first=200)
    driver.step()
    assert driver.scheduler.statistics().preemptions == 0
    driver.run()


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 30), st.integers(1, 12)), min_size=1, max_size=12))
@settings(max_examples=60, deadline=None)
def test_nobody_starts_while_a_higher_priority_waits(wishes: list[tuple[int, int, int]]) -> None:
    driver = Driver(policy="priority")
    for index, (priority, size, count) in enumerate(wishes):
        driver.add(f"{priority}-{index}", size, count, priority=priority)
    assert driver.run() == sorted(driver.started, key=lambda name: tuple(map(int, name.split("-"))))


def test_a_flood_does_not_keep_other_tenants_waiting() -> None:
    driver = Driver()
    for index in range(20):
        driver.add(f"flood{index}", tenant="flood", first=2 + 10 * index)
    driver.add("one", tenant="other", first=900)
    assert driver.run().index("one") <= 2  # the two slots, and then its turn


@pytest.mark.parametrize("weight", [1.0, 3.0])
def test_tenants_that_wait_are_served_by_their_weights(weight: float) -> None:
    driver = Driver(tenant_weights={"b": weight})
    for index in range(60):
        driver.add(f"a{index}", tenant="a", first=2 + index)
        driver.add(f"b{index}", tenant="b", first=500 + index)
    while driver.scheduler.num_waiting > 50:
        driver.step()
    served = Counter(name[0] for name in driver.started)
    assert served["b"] / served["a"] == pytest.approx(weight, rel=0.15)


def test_idling_saves_nothing_up() -> None:
    driver = Driver()
    for index in range(12):
        driver.add(f"a{index}", tenant="a", first=2 + 10 * index)
    driver.add("a-long", size=8, count=60, tenant="a", first=800)
    for _ in range(30):
        driver.step()
    for index in range(12):
        driver.add(f"b{index}", tenant="b", first=300 + 10 * index)
        driver.add(f"c{index}", tenant="c", first=600 + 10 * index)
    begun = len(driver.started)
    turns = driver.run()[begun:]
    assert abs(sum(name[0] == "b" for name in turns[:12]) - sum(name[0] == "c" for name in turns[:12])) <= 2


def test_whoever_finds_most_in_the_cache_comes_first_but_not_forever() -> None:
    limits = RunnerLimits(num_pages=200, page_size=4, max_num_seqs=1, max_num_batched_tokens=64, max_model_len=256, prefill_quantum=4)  # fmt: skip
    driver = Driver(limits, cache_aware=True, max_overtakes=3)
    driver.add("warm", size=32)
    driver.run()
    driver.add("cold", size=32, first=500)
    for index in range(6):
        driver.add(f"warm{index}", size=32)
    assert driver.run() == ["warm", "warm0", "warm1", "warm2", "cold", "warm3", "warm4", "warm5"]


def test_a_long_prompt_leaves_room_for_short_ones_beside_it() -> None:
    driver = Driver(long_prefill_token_threshold=16)
    driver.add("long", size=200)
    driver.add("short", size=20, first=500)
    plan = driver.step()
    assert plan is not None
    assert {row.request_id: row.num_tokens for row in plan.prefill} == {"long": 16, "short": 16}
    driver.step()
    plan = driver.step()
    assert plan is not None
    assert [row.num_tokens for row in plan.prefill] == [60], "nobody else has a prompt: all that the decode row leaves"


def test_deadlines_end_requests_in_every_state() -> None:
    driver = Driver()
    driver.add("running", count=50, deadline_s=10.0)
    driver.add("prefilling", size=200, deadline_s=11.0, first=300)
    driver.add("waiting", deadline_s=12.0, first=700)
    driver.add("endless", first=800)
    scheduler = driver.scheduler
    plan = scheduler.plan()
    assert plan is not None
    assert scheduler.next_deadline_s == 10.0
    assert scheduler.expire(9.99) == []
    assert scheduler.expire(12.0) == ["running", "prefilling", "waiting"]
    scheduler.check()
    assert scheduler.next_deadline_s is None
    assert scheduler.apply(driver.device.execute(plan)) == []
    assert driver.run() == ["endless"]
    assert scheduler.statistics().pages_available == scheduler.statistics().pages_total


def test_an_id_used_again_has_its_own_deadline() -> None:
    driver = Driver()
    driver.add("a", deadline_s=1.0)
    driver.scheduler.finish("a", "abort")
    driver.add("a", deadline_s=5.0)
    assert driver.scheduler.next_deadline_s == 5.0
    assert driver.scheduler.expire(2.0) == []


@pytest.mark.parametrize(("capacity", "cached"), [(None, 8), (3, 3), (0, 0)])
def test_the_cache_keeps_as_many_pages_as_it_may(capacity: int | None, cached: int) -> None:
    driver = Driver(cache=CacheConfig(prefix_cache_capacity=capacity))
    driver.add("a", size=32, count=1)
    driver.run()
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
    """As a command line has them."""
    config = EngineConfig(scheduler={"policy": "priority"}, cache={"prefix_cache_capacity": 3})  # type: ignore[arg-type]
    assert (config.scheduler, config.cache) == (
        SchedulerConfig(policy="priority"),
        CacheConfig(prefix_cache_capacity=3),
    )
    for wrong in ({"policies": "x"}, "priority", {"policy": "lifo"}):
        with pytest.raises(ConfigError, match=r"scheduler|policy"):
            EngineConfig(scheduler=wrong)  # type: ignore[arg-type]
