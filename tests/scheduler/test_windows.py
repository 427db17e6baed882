"""Pages behind a sliding window go to others, and nobody notices: over a device that sees no further than the window."""

from __future__ import annotations

import random
from collections import deque

import pytest

from asurge.plan import PlanRow, RowSampling, RunnerLimits, StepResult
from asurge.scheduler import Pace, Request, Scheduler
from tests.fakes import PagedDevice, continuation, next_token, page_of
from tests.idle import assert_idle
from tests.scheduler.driver import Driver


class WindowedDevice(PagedDevice):
    """Samples from the last tokens only, and reads no others."""

    def _draw(self, row: PlanRow, step: int) -> int:
        if not row.samples:
            return 0
        (window,) = self.limits.windows
        assert window is not None
        end = row.start + (step + 1 if row.token_ids is None else row.num_tokens)
        size, seen = self.limits.page_size, range(max(end - window, 0), end)
        pages = [page_of(row, 0, at // size) for at in seen]
        self.last_token[row.slot] = next_token([int(self.pages[page, at % size]) for page, at in zip(pages, seen, strict=True)])  # fmt: skip
        return int(self.last_token[row.slot])


def limits(window: int, *, pages: int = 14, slots: int = 3) -> RunnerLimits:
    return RunnerLimits(pages, 4, slots, 12, 48, prefill_quantum=4, max_decode_steps=3, windows=(window,))


@pytest.mark.parametrize("window", [2, 3, 4, 5, 9])
def test_any_history_gives_the_windowed_reference(window: int) -> None:
    """Arrivals, groups of steps, preemptions, aborts and lost state, with results some steps late."""
    preemptions = hits = 0
    for seed in range(30):
        rng = random.Random(seed)
        scheduler = Scheduler(limits(window, pages=rng.choice([6, 14]), slots=4))
        device = WindowedDevice(scheduler.limits)
        flying, live, texts = deque[StepResult](), dict[str, Request](), dict[str, list[int]]()
        for turn in range(200):
            chance = rng.random()
            if chance < 0.2 and turn < 150:
                prompt = [*range(2, rng.choice([3, 12, 20])), rng.randrange(2, 900)]
                request = Request(f"r{turn}", prompt, rng.randint(1, 24), RowSampling())
                scheduler.add(request)
                live[request.sequence_id], texts[request.sequence_id] = request, []
            elif chance < 0.22 and live:
                name = rng.choice(sorted(live))
                scheduler.finish(name)
                del live[name]
            elif (
                chance < 0.65
                and len(flying) < 3
                and (plan := scheduler.plan(Pace(samples := rng.randint(1, 3), samples))) is not None
            ):
                flying.append(device.execute(plan))
            elif flying:
                apply(scheduler, flying.popleft(), live, texts, window)
            scheduler.check()
        while live or flying:
            if (plan := scheduler.plan()) is not None:
                flying.append(device.execute(plan))
            apply(scheduler, flying.popleft(), live, texts, window)
            scheduler.check()
        statistics = scheduler.statistics()
        assert_idle(statistics)
        preemptions += statistics.preemptions
        hits += statistics.prefix_cache_hits
    assert preemptions > 0
    assert hits > 500


def apply(
    scheduler: Scheduler, result: StepResult, live: dict[str, Request], texts: dict[str, list[int]], window: int
) -> None:
    for update in scheduler.apply(result):
        name = update.sequence_id
        texts[name].extend(update.token_ids)
        request = live[name]
        assert texts[name] == continuation(request.prompt_token_ids, len(texts[name]), window=window)
        if update.finish_reason is not None:
            most = scheduler.limits.longest
            assert len(texts[name]) == min(request.max_tokens, most - len(request.prompt_token_ids))
            del live[name]


def test_a_sequence_holds_no_more_pages_than_its_window_needs() -> None:
    scheduler = Scheduler(limits(9))
    device = WindowedDevice(scheduler.limits)
    scheduler.add(Request("a", list(range(2, 14)), 30, RowSampling()))
    held: list[int] = []
    while (plan := scheduler.plan()) is not None:
        held.append(len(plan.rows[0].page_tables[0].pages))
        scheduler.apply(device.execute(plan))
        scheduler.check()
    assert max(held[1:]) <= 9 // 4 + 2
    assert scheduler.statistics().pages_cached > 5, "what was given up can still be found"


def test_without_a_window_everything_is_kept() -> None:
    driver = Driver(RunnerLimits(14, 4, 1, 12, 48, prefill_quantum=4))
    driver.add("a", range(2, 14), 20)
    driver.run_out()
    assert all(plan.rows[0].page_tables[0].first == 0 for plan in driver.plans)
