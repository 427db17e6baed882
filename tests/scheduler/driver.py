"""A scheduler and its device, one step at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from asurge.config import CacheConfig, SchedulerConfig
from asurge.plan import RowSampling, RunnerLimits, StepPlan, StepResult
from asurge.scheduler import Pace, Request, Scheduler, SequenceUpdate
from tests.fakes import limits
from tests.idle import assert_idle
from tests.scheduler.device import TracingDevice

BOOM = RuntimeError("boom")
LIMITS = limits()


def numbers(size: int = 8, first: int = 2) -> range:
    """A prompt; those with the same first token begin alike."""
    return range(first, first + size)


def request(name: str, prompt: Sequence[int] = numbers(), max_tokens: int = 4, **treated: Any) -> Request:
    return Request(name, list(prompt), max_tokens, RowSampling(), **treated)


class Driver:
    """Checks the scheduler at every turn. No row that counts may have read anything but its own context."""

    def __init__(self, limits: RunnerLimits = LIMITS, *, cache: CacheConfig | None = None, **config: Any) -> None:
        self.scheduler = Scheduler(limits, SchedulerConfig(**config), cache)
        self.device = TracingDevice(limits)
        self.plans: list[StepPlan] = []

    @property
    def started(self) -> list[str]:
        """Ids of the requests that have begun, in order."""
        return list(dict.fromkeys(row.sequence_id for plan in self.plans for row in plan.prefill))

    def add(self, name: str, prompt: Sequence[int] = numbers(), max_tokens: int = 4, **treated: Any) -> None:
        self.scheduler.add(request(name, prompt, max_tokens, **treated))

    def plan(self, decode_steps: int = 1, bound: int | None = None, unread: int = 1) -> StepPlan:
        plan = self.scheduler.plan(Pace(decode_steps, unread, bound))
        self.scheduler.check()
        assert plan is not None
        self.plans.append(plan)
        return plan

    def execute(self) -> StepResult:
        """Plan a step and run it; its result is to be applied later."""
        return self.device.execute(self.plan())

    def fail(self, plan: StepPlan, *, state_lost: bool = False, state_epoch: int | None = None) -> StepResult:
        return self.device.fail(plan, BOOM, state_lost=state_lost, state_epoch=state_epoch)

    def apply(self, result: StepResult) -> list[SequenceUpdate]:
        updates = self.scheduler.apply(result)
        self.scheduler.check()
        if result.error is None:
            counted = {update.sequence_id for update in updates}
            assert not counted & self.device.read_garbage[result.plan.step_id]
        return updates

    def step(self, plan: StepPlan | None = None) -> list[SequenceUpdate]:
        return self.apply(self.device.execute(plan or self.plan()))

    def run_out(self) -> dict[str, list[int]]:
        """All texts, until nobody is left."""
        texts: dict[str, list[int]] = {}
        while self.scheduler.has_work:
            for update in self.step():
                texts.setdefault(update.sequence_id, []).extend(update.token_ids)
        self.assert_empty()
        return texts

    def assert_empty(self) -> None:
        assert_idle(self.scheduler.statistics())
        self.scheduler.check()
