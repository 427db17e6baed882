"""Any history of arrivals, results, cancellations, failures: nothing is lost, and every text is the reference's."""

from __future__ import annotations

import random
from collections import Counter
from typing import Literal

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, rule

from asurge.config import SchedulerConfig
from asurge.plan import Pooling, RunnerLimits
from tests.fakes import VOCAB
from tests.scheduler.history import History

PREFIXES = [(), tuple(range(2, 14)), tuple(range(2, 10)), tuple(range(102, 114)), (*range(102, 106), *range(6, 14))]


WINDOWS: list[tuple[int | None, ...]] = [(None,), (None, 3), (None, 5, 9), (None, None, 6, 6)]
"""Windows of the page tables of a model."""


def limits(pages: int, slots: int, budget: int, windows: tuple[int | None, ...] = (None,)) -> RunnerLimits:
    """A pool of so many pages for each table."""
    pages = pages * len(windows)
    return RunnerLimits(pages, 4, slots, max(budget, slots), 40, prefill_quantum=4, max_decode_steps=4, windows=windows)


class Simulation(RuleBasedStateMachine):
    """Histories that hypothesis makes up, and shrinks when one breaks."""

    requests = Bundle("requests")

    @initialize(
        pages=st.integers(7, 30),
        slots=st.integers(1, 4),
        budget=st.sampled_from([4, 5, 8, 24]),
        caching=st.booleans(),
        depth=st.integers(1, 3),
        policy=st.sampled_from(["fcfs", "priority"]),
        cache_aware=st.booleans(),
        threshold=st.sampled_from([None, 4, 6]),
        capacity=st.sampled_from([None, 0, 2]),
        windows=st.sampled_from(WINDOWS),
    )
    def start(
        self,
        pages: int,
        slots: int,
        budget: int,
        caching: bool,
        depth: int,
        policy: Literal["fcfs", "priority"],
        cache_aware: bool,
        threshold: int | None,
        capacity: int | None,
        windows: tuple[int | None, ...],
    ) -> None:
        config = SchedulerConfig(
            policy=policy,
            cache_aware=cache_aware,
            max_overtakes=2,
            long_prefill_token_threshold=threshold,
            tenant_weights={"b": 3.0},
        )
        shape = limits(pages, slots, budget, windows)
        self.history = History(shape, config, depth=depth, caching=caching, capacity=capacity)
        self.now = 0.0

    @rule(
        target=requests,
        prefix=st.sampled_from(PREFIXES),
        tail=st.lists(st.integers(2, VOCAB - 1), min_size=1, max_size=8),
        max_tokens=st.integers(1, 24),
        stops=st.booleans(),
        salt=st.sampled_from(["", "other"]),
        priority=st.integers(0, 2),
        tenant=st.sampled_from(["a", "b", "c"]),
        allowed=st.sampled_from([None, None, 1.0, 5.0]),
        pooling=st.sampled_from([None, None, None, "mean", "last"]),
        streamed=st.booleans(),
    )
    def add(
        self,
        prefix: tuple[int, ...],
        tail: list[int],
        max_tokens: int,
        stops: bool,
        salt: str,
        priority: int,
        tenant: str,
        allowed: float | None,
        pooling: Pooling | None,
        streamed: bool,
    ) -> str:
        deadline = None if allowed is None else self.now + allowed
        treated = {
            "priority": priority,
            "tenant": tenant,
            "deadline_s": deadline,
            "pooling": pooling,
            "streamed": streamed,
        }
        return self.history.add([*prefix, *tail], max_tokens, stops=stops, salt=salt, **treated)

    @rule(seconds=st.sampled_from([0.5, 1.0, 6.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.history.expire(self.now)

    @rule(turns=st.lists(st.integers(0, 5), min_size=1, max_size=16))
    def run(self, turns: list[int]) -> None:
        for decode_steps in turns:
            if decode_steps:
                self.history.dispatch(decode_steps=decode_steps)
            else:
                self.history.receive()

    @rule(request=consumes(requests))
    def abort(self, request: str) -> None:
        self.history.abort(request)

    @rule(lost=st.booleans(), at_sampling=st.booleans())
    def fail_at_dispatch(self, lost: bool, at_sampling: bool) -> None:
        self.history.dispatch(fails=True, state_lost=lost, at_sampling=at_sampling)

    @rule(alone=st.booleans())
    def fail_at_read(self, alone: bool) -> None:
        self.history.fail_at_read(alone=alone)

    @rule()
    def lose_state(self) -> None:
        self.history.lose_state()

    def teardown(self) -> None:
        if hasattr(self, "history"):
            self.history.drain()


TestSimulation = Simulation.TestCase
TestSimulation.settings = settings(max_examples=60, stateful_step_count=40, deadline=None, derandomize=True)


def dense_history(seed: int, reached: Counter[str], windows: tuple[int | None, ...] = (None,)) -> None:
    """A long, crowded history in a small pool; ``reached`` counts what it went through."""
    rng = random.Random(seed)
    budget = rng.choice([4, 5, 8, 12, 24])
    config = SchedulerConfig(
        policy=rng.choice(["fcfs", "priority"]),
        cache_aware=rng.random() < 0.5,
        long_prefill_token_threshold=rng.choice([None, None, 4]),
    )
    pages = rng.randint(7, 16 if windows == (None,) else 9)  # tables with a window hold few
    history = History(limits(pages, rng.randint(2, 4), budget, windows), config, depth=rng.randint(1, 4))
    reading = rng.choice([0.0, 0.5, 1.0])
    for turn in range(300):
        chance = rng.random()
        calm = turn // 50 % 3 == 2
        if chance < (0.05 if calm else 0.2):
            tail = [rng.randrange(2, VOCAB) for _ in range(rng.randint(1, 10))]
            pooling = rng.choice([None, None, None, "mean", "last"])
            treated = {
                "priority": rng.randrange(3),
                "tenant": rng.choice("ab"),
                "pooling": pooling,
                "streamed": rng.random() < reading,
            }
            history.add([*rng.choice(PREFIXES), *tail], rng.randint(1, 20), stops=rng.random() < 0.2, **treated)
        elif chance < 0.23 and history.live:
            history.abort(rng.choice(sorted(history.live)))
        elif chance < 0.24:
            history.fail_at_read(alone=rng.random() < 0.5)
        elif chance < 0.245:
            history.lose_state()
        elif chance < 0.65:
            history.dispatch(
                decode_steps=rng.randint(1, 4),
                bound=rng.choice((None, None, 1, 6)),
                fails=rng.random() < 0.06,
                state_lost=rng.random() < 0.03,
                at_sampling=rng.random() < 0.5,
            )
        else:
            history.receive()
    history.drain()
    statistics = history.scheduler.statistics()
    reached["preemptions"] += statistics.preemptions
    reached["hits"] += statistics.prefix_cache_hits
    reached["groups"] += history.groups
    reached["groups while others wait"] += history.groups_while_others_wait
    reached["embeddings"] += history.embeddings
    reached["spoiled"] += sum(map(len, history.device.read_garbage.values()))
    reached["losses"] += history.device.state_epoch
    reached["losses in a row"] += history.losses_in_a_row


@pytest.mark.parametrize(("windows", "histories"), [((None,), 200), ((None, 3, 9), 220)])
def test_dense_histories_reach_what_matters_and_survive_it(windows: tuple[int | None, ...], histories: int) -> None:
    reached = Counter[str]()
    for seed in range(histories):
        dense_history(seed, reached, windows)
    # Guards the test itself: a simulation that never preempts, shares or spoils anything proves nothing.
    assert reached["preemptions"] > 300
    assert reached["hits"] > 10_000
    assert reached["spoiled"] > 300
    assert reached["groups"] > 300
    assert reached["groups while others wait"] > 40
    assert reached["embeddings"] > 1000
    assert reached["losses"] > 300
    assert reached["losses in a row"] > 20
