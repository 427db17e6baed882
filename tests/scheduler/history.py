"""A history of a scheduler's calls, checked after each."""

from __future__ import annotations

from collections import deque
from typing import Any

from asurge.config import CacheConfig, SchedulerConfig
from asurge.errors import EngineOverloadedError
from asurge.plan import RowSampling, RunnerLimits, StepResult
from asurge.scheduler import Pace, Request, Scheduler, SequenceUpdate
from tests.fakes import VOCAB, continuation, embedding
from tests.idle import assert_idle
from tests.scheduler.device import TracingDevice

STOPS = frozenset(range(2, VOCAB, 9))
MAX_QUEUED = 6


class History:
    """Steps execute, or fail, in order at dispatch; results are applied up to ``depth`` steps later.

    A text that only looks right does not pass: no row whose token counts may have read a position that was not
    computed from the sequence's own tokens.
    """

    def __init__(
        self,
        limits: RunnerLimits,
        config: SchedulerConfig | None = None,
        *,
        depth: int,
        caching: bool = True,
        capacity: int | None = None,
    ) -> None:
        self.limits, self.depth = limits, depth
        self.groups, self.groups_while_others_wait, self.embeddings, self.losses_in_a_row = 0, 0, 0, 0
        cache = CacheConfig(enable_prefix_caching=caching, prefix_cache_capacity=capacity)
        self.scheduler = Scheduler(limits, config, cache, max_queued_requests=MAX_QUEUED)
        self.device = TracingDevice(limits)
        self.flying: deque[StepResult] = deque()
        self.live: dict[str, Request] = {}
        self.texts: dict[str, list[int]] = {}

    def add(self, prompt: list[int], max_tokens: int, *, stops: bool = False, salt: str = "", **treated: Any) -> str:
        name = f"r{len(self.texts)}"
        ends = STOPS if stops else frozenset[int]()
        max_tokens = 0 if treated.get("pooling") else max_tokens
        request = Request(name, prompt, max_tokens, RowSampling(), ends, salt, **treated)
        try:
            self.scheduler.add(request)
        except EngineOverloadedError:
            assert self.scheduler.num_waiting >= MAX_QUEUED
            return ""
        self.live[name], self.texts[name] = request, []
        return name

    def abort(self, name: str) -> None:
        assert self.scheduler.finish(name) == (name in self.live)
        self.live.pop(name, None)
        self.scheduler.check()

    def expire(self, now: float) -> None:
        """Time passes: exactly those whose deadline is over are gone."""
        over = {name for name, one in self.live.items() if one.deadline_s is not None and one.deadline_s <= now}
        assert set(self.scheduler.expire(now)) == over
        for name in over:
            del self.live[name]
        left = [one.deadline_s for one in self.live.values() if one.deadline_s is not None]
        assert self.scheduler.next_deadline_s == min(left, default=None)
        self.scheduler.check()

    def dispatch(
        self,
        *,
        decode_steps: int = 1,
        bound: int | None = None,
        fails: bool = False,
        state_lost: bool = False,
        at_sampling: bool = False,
    ) -> bool:
        """Plan one step and run it, or have it fail before it reaches the device; or, ``at_sampling``, when its forward pass has run."""
        if len(self.flying) == self.depth:
            return False
        plan = self.scheduler.plan(Pace(decode_steps, decode_steps, bound))
        self.scheduler.check()
        if plan is None:
            return False
        self.groups += plan.decode_steps > 1
        self.groups_while_others_wait += plan.decode_steps > 1 and self.scheduler.num_waiting > 0
        broken = fails or state_lost
        self.device.renew()
        if at_sampling or not broken:
            result = self.device.execute(plan)
        if broken:
            result = self.device.fail(plan, RuntimeError("dispatch"), state_lost=state_lost)
        self.flying.append(result)
        return True

    def fail_at_read(self, *, alone: bool = False) -> None:
        """The oldest step turns out to have failed on the device, and took all that was computed behind it along; or, ``alone``,
        it cannot be read, and nobody knows what it left."""
        if not self.flying:
            return
        first = self.flying[0].state_epoch
        for at, step in enumerate(self.flying):
            if step.state_epoch == first and (at == 0 or not alone):
                lost = self.device.fail(step.plan, RuntimeError("device"), state_lost=True, state_epoch=first)
                self.flying[at] = lost

    def lose_state(self) -> None:
        """Nobody tells of it: only the step after it shows it, by what it ran on."""
        self.device.lose_state()

    def receive(self) -> bool:
        """Apply the oldest result."""
        if not self.flying:
            return False
        result = self.flying.popleft()
        members = {row.sequence_id for row in result.plan.rows}
        steps = self.scheduler._in_flight
        self.losses_in_a_row += steps.is_void(result.plan) and steps.is_loss(result)
        for update in self.scheduler.apply(result):
            name = update.sequence_id
            assert name in members
            assert (update.error is not None) == (update.finish_reason == "error")
            assert update.error is result.error
            if result.error is None:
                assert name not in self.device.read_garbage[result.plan.step_id]
                self.texts[name].extend(update.token_ids)
                self._check(self.live[name], update)
            if update.finish_reason is not None:
                del self.live[name]
        self.scheduler.check()
        return True

    def _check(self, request: Request, update: SequenceUpdate) -> None:
        if request.pooling is None:
            self._check_text(request, update)
            return
        self.embeddings += 1
        assert update.token_ids == ()
        assert update.finish_reason == "stop"
        assert update.embedding is not None
        assert update.embedding.tolist() == embedding(request.prompt_token_ids, request.pooling).tolist()

    def _check_text(self, request: Request, update: SequenceUpdate) -> None:
        """A text is the reference's beginning, and all of it when it has ended."""
        text, prompt = self.texts[request.sequence_id], list(request.prompt_token_ids)
        count = min(request.max_tokens, self.limits.longest - len(prompt))
        expected = continuation(prompt, count, request.stop_token_ids)
        assert text == expected[: len(text)]
        if len(text) < len(expected):
            assert update.finish_reason is None
        else:
            stopped = text[-1] in request.stop_token_ids
            assert update.finish_reason == ("stop" if stopped else "length")
            assert update.stop_reason == (text[-1] if stopped else None)

    def drain(self) -> None:
        """Whatever happened, all that is left finishes, and everything comes back."""
        while self.live or self.flying:
            assert self.dispatch() or self.receive(), f"stalled: {self.scheduler.statistics()}"
        statistics = self.scheduler.statistics()
        assert_idle(statistics)
        assert statistics.in_flight_steps == 0
