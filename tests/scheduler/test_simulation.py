"""Any history of arrivals, results, cancellations, failures: nothing is lost, and every text is the reference's."""

from __future__ import annotations

from collections import deque

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from asurge.errors import EngineOverloadedError
from asurge.plan import RowSampling, RunnerLimits, StepPlan, StepResult
from asurge.scheduler import Request, Scheduler, Update
from tests.fakes import VOCAB
from tests.scheduler.device import TracingDevice, reference

PREFIXES = [tuple(range(2 + base, 2 + base + 12)) for base in (0, 100)]


class Simulation(RuleBasedStateMachine):
    """Steps execute, or fail, in order at dispatch; results are applied up to ``depth`` steps later.

    A text that only looks right does not pass: no row whose token counts may have read a position that was not
    computed from the sequence's own tokens.
    """

    requests = Bundle("requests")

    @initialize(
        pages=st.integers(7, 30),
        slots=st.integers(1, 4),
        budget=st.sampled_from([4, 5, 8, 24]),
        caching=st.booleans(),
        depth=st.integers(1, 3),
    )
    def start(self, pages: int, slots: int, budget: int, caching: bool, depth: int) -> None:
        self.limits = RunnerLimits(
            num_pages=pages,
            page_size=4,
            max_num_seqs=slots,
            max_num_batched_tokens=max(budget, slots),
            max_model_len=40,
            prefill_quantum=4,
        )
        self.scheduler = Scheduler(self.limits, enable_prefix_caching=caching, max_queued_requests=6)
        self.device, self.depth = TracingDevice(self.limits), depth
        self.flying: deque[StepResult] = deque()
        self.live: dict[str, Request] = {}
        self.texts: dict[str, list[int]] = {}
        self.count = 0

    @rule(
        target=requests,
        prefix=st.sampled_from([(), *PREFIXES]),
        tail=st.lists(st.integers(2, VOCAB - 1), min_size=1, max_size=8),
        max_tokens=st.integers(1, 24),
        stops=st.booleans(),
        salt=st.sampled_from(["", "other"]),
    )
    def add(self, prefix: tuple[int, ...], tail: list[int], max_tokens: int, stops: bool, salt: str) -> str:
        prompt = [*prefix, *tail]
        self.count += 1
        request = Request(
            request_id=f"r{self.count}",
            prompt_token_ids=prompt,
            max_tokens=max_tokens,
            sampling=RowSampling(),
            stop_token_ids=frozenset(range(2, VOCAB, 9)) if stops else frozenset(),
            cache_salt=salt,
        )
        try:
            self.scheduler.add(request)
        except EngineOverloadedError:
            assert self.scheduler.num_waiting >= 6
            return ""
        self.live[request.request_id] = request
        self.texts[request.request_id] = []
        return request.request_id

    @rule()
    def plan(self) -> None:
        if len(self.flying) < self.depth:
            self.step()

    @rule()
    def apply(self) -> None:
        if self.flying:
            self.receive(self.flying.popleft())

    @rule(request=consumes(requests))
    def abort(self, request: str) -> None:
        known = request in self.live
        assert self.scheduler.finish(request, "abort") == known
        self.live.pop(request, None)

    @rule(lost=st.booleans())
    def fail_at_dispatch(self, lost: bool) -> None:
        """A step never reaches the device; those behind it do, and compute from what it left."""
        if len(self.flying) < self.depth and (plan := self.scheduler.plan()) is not None:
            self.flying.append(self.device.fail(plan, RuntimeError("dispatch"), state_lost=lost))

    @rule()
    def fail_at_read(self) -> None:
        """The oldest step turns out to have failed on the device, and took all that was behind it along."""
        error = RuntimeError("device")
        self.flying = deque(self.device.fail(step.plan, error, state_lost=True) for step in self.flying)

    @invariant()
    def balanced(self) -> None:
        self.scheduler.check()

    def step(self) -> StepPlan | None:
        plan = self.scheduler.plan()
        if plan is not None:
            self.flying.append(self.device.execute(plan))
        return plan

    def receive(self, result: StepResult) -> None:
        members = {row.request_id for row in result.plan.rows}
        for update in self.scheduler.apply(result):
            name, request = update.request_id, self.live[update.request_id]
            assert name in members
            assert (update.error is not None) == (update.finish_reason == "error")
            if result.error is not None:
                assert update.error is result.error
            else:
                assert name not in self.device.read_garbage[result.plan.step_id]
                self.texts[name].extend(update.token_ids)
                self.check_text(request, update)
            if update.finish_reason is not None:
                del self.live[name]

    def check_text(self, request: Request, update: Update) -> None:
        """A text is the reference's beginning, and all of it when it has ended."""
        text, prompt = self.texts[request.request_id], request.prompt_token_ids
        pool = (self.limits.num_pages - 1) * self.limits.page_size + 1
        limit = min(len(prompt) + request.max_tokens, self.limits.max_model_len, pool)
        expected = reference(prompt, limit, request.stop_token_ids)
        assert text == expected[: len(text)]
        if text != expected:
            assert update.finish_reason is None
        else:
            stopped = text[-1] in request.stop_token_ids
            assert update.finish_reason == ("stop" if stopped else "length")
            assert update.stop_reason == (text[-1] if stopped else None)

    def teardown(self) -> None:
        """Whatever happened, all that is left finishes, and everything comes back."""
        if not hasattr(self, "scheduler"):
            return
        for _ in range(5000):
            if not self.live:
                break
            if len(self.flying) == self.depth or self.step() is None:
                assert self.flying, f"stalled: {self.scheduler.statistics()}"
                self.receive(self.flying.popleft())
            self.scheduler.check()
        while self.flying:
            self.receive(self.flying.popleft())
        assert not self.live
        statistics = self.scheduler.statistics()
        assert statistics.pages_available == statistics.pages_total
        assert (statistics.running, statistics.waiting, statistics.in_flight_steps) == (0, 0, 0)


TestSimulation = Simulation.TestCase
TestSimulation.settings = settings(max_examples=80, stateful_step_count=60, deadline=None, derandomize=True)
