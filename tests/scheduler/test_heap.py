"""Heaps of the scheduler, which must find what a walk over all members finds, in little memory."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from asurge.config import SchedulerConfig
from asurge.plan import RowSampling
from asurge.scheduler import Request, Scheduler
from asurge.scheduler.heap import LazyHeap
from asurge.scheduler.request import Sequence
from asurge.scheduler.waiting import Tenants, WaitingQueue
from tests.fakes import limits

NAMES = st.integers(0, 9).map(str)


class Heaps(RuleBasedStateMachine):
    """Against the least of a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.keys: dict[str, int] = {}
        self.heap = LazyHeap[str](lambda name: (self.keys[name], name))

    @rule(name=NAMES, key=st.integers(0, 20))
    def enter(self, name: str, key: int) -> None:
        self.keys[name] = key  # also a smaller one
        self.heap.add(name)

    @precondition(lambda self: self.keys)
    @rule(data=st.data(), by=st.integers(0, 20))
    def grow(self, data: Any, by: int) -> None:
        self.keys[data.draw(st.sampled_from(sorted(self.keys)))] += by

    @rule(name=NAMES)
    def leave(self, name: str) -> None:
        self.heap.discard(name)
        self.keys.pop(name, None)

    @rule()
    def look(self) -> None:
        least = min(((key, name) for name, key in self.keys.items()), default=(0, None))
        assert self.heap.first() == least[1]

    @invariant()
    def is_bounded(self) -> None:
        assert len(self.heap) <= 2 * len(self.keys) + 8
        assert set(self.heap) == self.keys.keys()


TestHeaps = Heaps.TestCase
TestHeaps.settings = settings(max_examples=50, stateful_step_count=40, deadline=None)


def test_ties_keep_the_order_of_insertion() -> None:
    heap = LazyHeap[int](lambda member: 0)
    for member in range(100):
        heap.add(member)
    for member in range(90):
        heap.discard(member)  # which makes the heap anew
        assert heap.first() == member + 1


class NaiveTenants:
    """Walks over all tenants, and forgets none."""

    def __init__(self) -> None:
        self.counters: dict[str, float] = {}
        self.open: dict[str, int] = {}

    def enter(self, tenant: str) -> None:
        if not self.open.get(tenant):
            least = min((self.counters[other] for other, count in self.open.items() if count), default=0.0)
            self.counters[tenant] = max(self.counters.get(tenant, 0.0), least)
        self.open[tenant] = self.open.get(tenant, 0) + 1

    def leave(self, tenant: str) -> None:
        self.open[tenant] -= 1
        if not any(self.open.values()):
            self.open.clear()
            self.counters.clear()


class Queues(RuleBasedStateMachine):
    """Tenants and their waiting requests, against a walk over all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.tenants, self.naive = Tenants({"3": 0.5}), NaiveTenants()
        self.config = SchedulerConfig(policy="priority", cache_aware=False)
        self.queue = WaitingQueue(self.config, self.tenants, lambda sequence: 0)
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self.arrivals = 0

    @rule(tenant=NAMES, priority=st.integers(0, 2))
    def arrive(self, tenant: str, priority: int) -> None:
        request = Request(str(self.arrivals), [2], 5, RowSampling(), tenant=tenant, priority=priority)
        sequence = Sequence(request, self.arrivals, 64, by_priority=True)
        self.arrivals += 1
        self.tenants.enter(tenant)
        self.naive.enter(tenant)
        self.queue.add(sequence)
        self.waiting.append(sequence)

    @precondition(lambda self: self.waiting)
    @rule()
    def admit(self) -> None:
        def order(one: Sequence) -> tuple[int, float, int]:
            line = [other for other in self.waiting if other.request.tenant == one.request.tenant]
            first = min(line, key=lambda other: other.rank)
            return first.rank.priority, self.naive.counters[one.request.tenant], first.arrival

        best = min(self.waiting, key=lambda one: (order(one), one.rank))
        assert self.queue.first() is best
        self.queue.remove(best)
        self.waiting.remove(best)
        self.running.append(best)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), tokens=st.integers(1, 50))
    def serve(self, data: Any, tokens: int) -> None:
        tenant = data.draw(st.sampled_from(self.running)).request.tenant
        self.tenants.charge(tenant, tokens, 1)
        self.naive.counters[tenant] += (tokens + Tenants.OUTPUT_COST) / (0.5 if tenant == "3" else 1.0)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def preempt(self, data: Any) -> None:
        sequence = data.draw(st.sampled_from(self.running))
        self.running.remove(sequence)
        self.waiting.append(sequence)
        self.queue.add(sequence)

    @rule(data=st.data())
    def end(self, data: Any) -> None:
        alive = self.running + self.waiting
        if not alive:
            return
        sequence = data.draw(st.sampled_from(alive))
        if sequence in self.waiting:
            self.waiting.remove(sequence)
            self.queue.remove(sequence)
        else:
            self.running.remove(sequence)
        self.tenants.leave(sequence.request.tenant)
        self.naive.leave(sequence.request.tenant)

    @invariant()
    def counters_agree(self) -> None:
        for tenant, count in self.naive.open.items():
            if count:
                assert self.tenants.served(tenant) == self.naive.counters[tenant]
        assert len(self.queue) == len(self.waiting)


TestQueues = Queues.TestCase
TestQueues.settings = settings(max_examples=50, stateful_step_count=40, deadline=None)


def test_tenants_that_left_are_forgotten_the_last_to_leave_not() -> None:
    tenants = Tenants({})
    tenants.enter("steady")
    most = 0
    for at in range(5000):
        name = f"user {at}"
        tenants.enter(name)
        tenants.charge(name, 100, 10)
        tenants.leave(name)
        most = max(most, len(tenants))
    assert most <= Tenants.MOST_AWAY + 2
    assert tenants.served("user 4999") == 120
    assert tenants.served("user 0") == 0
    tenants.enter("user 4999")
    assert tenants.served("user 4999") == 120, "who was served a moment ago has not had less than those that waited"
    for name in ("user 4999", "steady"):
        tenants.leave(name)
    assert len(tenants) == 0


class Counted(str):
    """A tenant whose name says how often it was looked at."""

    looks = 0

    def __hash__(self) -> int:
        Counted.looks += 1
        return super().__hash__()


@pytest.mark.parametrize("many", [64, 4096])
def test_a_step_of_planning_does_not_look_at_all_that_waits(many: int) -> None:
    """Each request has its own tenant, as where users are tenants: however many wait, a step looks at a few."""
    scheduler = Scheduler(limits(), max_queued_requests=many)
    for at in range(many):
        scheduler.add(Request(str(at), [2, 3], 2, RowSampling(), tenant=Counted(at), deadline_s=1e6 + at))
    Counted.looks = 0
    assert scheduler.plan() is not None
    assert Counted.looks < 200
    assert scheduler.next_deadline_s == 1e6
    scheduler.check()


@given(st.lists(st.tuples(st.integers(0, 3), st.floats(1, 100)), min_size=1, max_size=60))
def test_deadlines_are_bounded_by_what_is_open(requests: list[tuple[int, float]]) -> None:
    scheduler = Scheduler(limits())
    scheduler.add(Request("steady", [2, 3], 2, RowSampling(), deadline_s=0.5))
    alive: dict[str, float] = {"steady": 0.5}
    for at, (ended, deadline_s) in enumerate(requests):
        scheduler.add(Request(str(at), [2], 2, RowSampling(), deadline_s=deadline_s))
        alive[str(at)] = deadline_s
        for name in list(alive)[1 : 1 + ended]:
            scheduler.finish(name)
            del alive[name]
        assert len(scheduler._deadlines) <= 2 * len(alive) + 8
        assert scheduler.next_deadline_s == min(alive.values())
    assert set(scheduler.expire(50.0)) == {name for name, deadline_s in alive.items() if deadline_s <= 50.0}
