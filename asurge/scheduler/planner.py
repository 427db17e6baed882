"""`Scheduler`: continuous batching under one token budget, with chunked prefill and preemption by recomputation."""

from __future__ import annotations

import dataclasses
from collections import Counter, OrderedDict, deque
from collections.abc import Iterable

from asurge.errors import DuplicateRequestError, EngineOverloadedError, InvalidRequestError
from asurge.outputs import FinishReason
from asurge.plan import PlanRow, RunnerLimits, StepPlan, StepResult
from asurge.scheduler.pages import PagePool
from asurge.scheduler.prefix_cache import PrefixCache, damaged_pages
from asurge.scheduler.reports import SchedulerStatistics, Totals, Update
from asurge.scheduler.request import Phase, Request, Sequence

RETRY_AFTER_S = 1.0


def duplicate(request_id: str) -> DuplicateRequestError:
    """What a request gets whose id is in use."""
    return DuplicateRequestError(
        f"request_id={request_id!r} is still running: use another id, or wait for it to end", param="request_id"
    )


class Scheduler:
    """Plans steps and applies their results.

    `plan` may run ahead of `apply` by any number of steps: it plans from what the steps in flight are going to
    do. Because steps run in the order they were planned, pages and slots are reused as soon as they are
    freed, even while a step that uses them is in flight.
    """

    def __init__(
        self, limits: RunnerLimits, *, enable_prefix_caching: bool = True, max_queued_requests: int = 4096
    ) -> None:
        self.limits = limits
        # The last token of a sequence is drawn but never computed, so it needs no page.
        self._longest = min(limits.max_model_len, (limits.num_pages - 1) * limits.page_size + 1)
        self._max_queued = max_queued_requests
        self._pool = PagePool(limits.num_pages)
        self._cache = PrefixCache(self._pool, limits.page_size, enabled=enable_prefix_caching)
        self._sequences: dict[str, Sequence] = {}
        self._waiting: deque[Sequence] = deque()
        self._running: OrderedDict[Sequence, None] = OrderedDict()  # by arrival, oldest first
        self._free_slots = list(range(limits.max_num_seqs - 1, -1, -1))
        self._in_flight: deque[tuple[StepPlan, tuple[Sequence, ...]]] = deque()
        self._totals = Totals()
        self._next_step, self._next_arrival = 0, 0
        self._first_valid_step = 0  # results of steps before this one are void: their pages were lost

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def num_in_flight(self) -> int:
        """Steps planned whose results were not applied yet."""
        return len(self._in_flight)

    @property
    def has_work(self) -> bool:
        """Whether any request has not ended."""
        return bool(self._sequences)

    def statistics(self) -> SchedulerStatistics:
        return SchedulerStatistics(
            waiting=self.num_waiting,
            running=self.num_running,
            in_flight_steps=self.num_in_flight,
            pages_total=self._pool.num_pages - 1,
            pages_available=self._pool.num_available,
            pages_cached=self._pool.num_cached,
            **dataclasses.asdict(self._totals),
        )

    def add(self, request: Request) -> None:
        """Queue a request.

        Raises:
            DuplicateRequestError: its id is in use.
            EngineOverloadedError: the queue is full.
            InvalidRequestError: its prompt can never run here.
        """
        if request.request_id in self._sequences:
            raise duplicate(request.request_id)
        if len(self._waiting) >= self._max_queued:
            raise EngineOverloadedError(
                f"{len(self._waiting)} requests wait already (max_queued_requests={self._max_queued}): try later",
                retry_after_s=RETRY_AFTER_S,
            )
        size, most = len(request.prompt_token_ids), self._longest - 1
        if not 1 <= size <= most:
            raise InvalidRequestError(f"prompt has {size} tokens: it must have 1 to {most}", param="prompt")
        sequence = Sequence(request, self._next_arrival, self._longest)
        self._next_arrival += 1
        self._sequences[request.request_id] = sequence
        self._waiting.append(sequence)

    def finish(self, request_id: str, reason: FinishReason) -> bool:
        """End a request in any state and free what it holds; False if it is unknown or has ended."""
        sequence = self._sequences.get(request_id)
        if sequence is None:
            return False
        self._end(sequence)
        return True

    def plan(self, max_draws: int = 1) -> StepPlan | None:
        """The next step, or None if nothing can run before a result is applied or a request added.

        Args:
            max_draws: when all that is left to do is to decode, plan up to this many steps as one group.
        """
        group = self._group(max_draws)
        budget = self.limits.max_num_batched_tokens
        draws = min(budget, sum(one.draws_next for one in self._running))
        budget -= draws
        decode: list[tuple[Sequence, PlanRow]] = []
        prefill: list[tuple[Sequence, PlanRow]] = []
        # Oldest first: whoever is preempted for an older one's pages comes later, and has no row in this step yet.
        for sequence in list(self._running):
            if sequence.phase is not Phase.RUNNING:
                continue
            if sequence.draws_next:
                count = min(group, sequence.max_length - sequence.length)
                if draws and self._reserve(sequence, count):
                    decode.append((sequence, sequence.plan_decode(count)))
                    self._cache.register(sequence)
                    draws -= 1
            elif sequence.scheduled < sequence.known:
                budget = self._plan_chunk(sequence, budget, prefill)
        while self._waiting and self._free_slots and budget >= self.limits.prefill_quantum:
            sequence = self._waiting[0]
            if sequence.pending or not self._admit(sequence):
                break
            budget = self._plan_chunk(sequence, budget, prefill)
        if not decode and not prefill:
            return None
        plan = StepPlan(self._next_step, tuple(row for _, row in decode), tuple(row for _, row in prefill))
        self._next_step += 1
        self._in_flight.append((plan, tuple(sequence for sequence, _ in decode + prefill)))
        return plan

    def _group(self, most: int) -> int:
        """How many steps decode rows may run in one go: one, unless nothing waits and there are pages for more."""
        most = min(most, self.limits.max_draws)
        if most == 1 or self._waiting or not all(one.draws_next and not one.draws_apart for one in self._running):
            return 1
        size = self.limits.page_size
        needed = sum(-(-(one.scheduled + most) // size) - len(one.pages) for one in self._running)
        return most if needed <= self._pool.num_available else 1

    def _plan_chunk(self, sequence: Sequence, budget: int, prefill: list[tuple[Sequence, PlanRow]]) -> int:
        """Plan as much of a sequence's known tokens as the budget allows; returns what is left of it."""
        quantum = self.limits.prefill_quantum
        count = min(sequence.known - sequence.scheduled, budget // quantum * quantum)
        if count <= 0 or not self._reserve(sequence, count):
            return budget
        prefill.append((sequence, sequence.plan_chunk(count)))
        self._cache.register(sequence)
        return budget - -(-count // quantum) * quantum

    def _reserve(self, sequence: Sequence, count: int) -> bool:
        """Give a running sequence pages for its next ``count`` tokens, preempting later arrivals if it must.
        If the sequence itself is the last to have arrived, it is the one preempted."""
        needed = -(-(sequence.scheduled + count) // self.limits.page_size) - len(sequence.pages)
        if needed <= 0:
            return True
        while needed > self._pool.num_available:
            victim = next(reversed(self._running))
            self._preempt(victim)
            if victim is sequence:
                return False
        sequence.pages.extend(self._pool.allocate() for _ in range(needed))
        return True

    def _admit(self, sequence: Sequence) -> bool:
        """Move the first waiting sequence to a slot, sharing the pages of its prefix, if pages are there for the
        rest of what is known. Waiting sequences never preempt."""
        # A prompt that is scored is computed, whatever the cache holds of it.
        shared = [] if sequence.request.prompt_logprobs else self._cache.lookup(sequence)
        size = self.limits.page_size
        fresh = -(-sequence.known // size) - len(shared)
        revived = sum(self._pool.is_unused(page) for page in shared)
        if fresh + revived > self._pool.num_available:
            return False
        self._waiting.popleft()
        for page in shared:
            self._pool.share(page)
        sequence.set_pages(shared)
        sequence.scheduled = len(shared) * size
        sequence.slot, sequence.phase = self._free_slots.pop(), Phase.RUNNING
        self._running[sequence] = None
        self._sort_running(sequence)
        if sequence.epoch == 0:
            sequence.cached = sequence.scheduled
            self._totals.prompt_tokens += sequence.known
        if self._cache.enabled:
            self._totals.prefix_cache_queries += sequence.known
            self._totals.prefix_cache_hits += sequence.scheduled
        return True

    def _sort_running(self, newcomer: Sequence) -> None:
        """Keep the running ones in order of arrival: one that comes back after a preemption moves forward."""
        for other in [one for one in self._running if one.arrival > newcomer.arrival]:
            self._running.move_to_end(other)

    def _preempt(self, sequence: Sequence) -> None:
        """Take slot and pages away; the sequence waits in front and is computed anew. Draws in flight count."""
        self._totals.preemptions += 1
        self._vacate(sequence)
        sequence.phase = Phase.WAITING
        sequence.epoch += 1
        sequence.scheduled = 0
        sequence.in_slot = False
        self._waiting.appendleft(sequence)

    def _vacate(self, sequence: Sequence) -> None:
        del self._running[sequence]
        for page in reversed(sequence.pages):  # the end of a prefix is given away before its beginning
            self._pool.release(page)
        sequence.set_pages([])
        sequence.registered = 0
        self._free_slots.append(sequence.slot)
        sequence.slot = -1

    def _end(self, sequence: Sequence) -> None:
        if sequence.phase is Phase.RUNNING:
            self._vacate(sequence)
        elif sequence.phase is Phase.WAITING:
            self._waiting.remove(sequence)
        sequence.phase = Phase.ENDED
        del self._sequences[sequence.request_id]

    def apply(self, result: StepResult) -> list[Update]:
        """Take in the oldest step in flight. Rows of requests that have ended since are dropped."""
        plan, sequences = self._in_flight.popleft()
        assert plan is result.plan, "results must be applied in the order of their plans"
        if plan.step_id < self._first_valid_step:
            return []
        if result.error is not None:
            return self._apply_failure(result, result.error, sequences)
        updates = []
        for index, (sequence, tokens) in enumerate(zip(sequences, result.token_ids.tolist(), strict=True)):
            row = plan.rows[index]
            if sequence.phase is Phase.ENDED or row.epoch < sequence.valid_epoch:
                continue
            scores = result.prompt_logprobs.get(index)
            sequence.told += 0 if scores is None else len(scores.chosen)
            if row.samples:
                update = self._append(sequence, tokens[: row.draws])
                logprobs = None if result.logprobs is None else result.logprobs.take(slice(index, index + 1))
                updates.append(dataclasses.replace(update, logprobs=logprobs, prompt_logprobs=scores))
            elif scores is not None:
                updates.append(Update(sequence.request_id, (), None, None, sequence.cached, prompt_logprobs=scores))
        return updates

    def _append(self, sequence: Sequence, tokens: list[int]) -> Update:
        """Take in what a row drew, up to where the sequence ends."""
        request, stops = sequence.request, sequence.request.stop_token_ids
        count = next((at for at, token in enumerate(tokens, 1) if token in stops), len(tokens))
        taken = tuple(tokens[:count])
        sequence.pending -= len(tokens)
        sequence.token_ids.extend(taken)
        self._totals.generated_tokens += count
        reason: FinishReason | None = None
        stop_reason = None
        if taken[-1] in stops:
            reason, stop_reason = "stop", taken[-1]
        elif sequence.known >= sequence.max_length:
            reason = "length"
        if reason is not None:
            self._end(sequence)
        elif sequence.phase is Phase.RUNNING:
            self._cache.register(sequence)
        return Update(request.request_id, taken, reason, stop_reason, sequence.cached)

    def _apply_failure(self, result: StepResult, error: BaseException, sequences: tuple[Sequence, ...]) -> list[Update]:
        """Fail the requests of a failed step, and have everybody who depends on what it was to write start over.
        A sequence preempted since the step was planned does not fail: it starts over anyway."""
        updates = []
        for sequence, row in zip(sequences, result.plan.rows, strict=True):
            if sequence.phase is not Phase.ENDED and row.epoch == sequence.epoch:
                self._end(sequence)
                updates.append(Update(sequence.request_id, (), "error", None, sequence.cached, error))
        if result.state_lost:
            self._first_valid_step = self._next_step
            self._pool.forget_all()
            self._recompute(list(self._running))
        else:
            later = (plan for plan, _ in self._in_flight)
            damaged = damaged_pages(result.plan, later, self.limits.page_size)
            for page in damaged:
                self._pool.forget(page)
            self._recompute([one for one in self._running if not damaged.isdisjoint(one.pages)])
        return updates

    def _recompute(self, affected: list[Sequence]) -> None:
        """Have running sequences start over. Those that wait may have drawn from pages they no longer hold, so
        their draws in flight are void too."""
        for sequence in self._waiting:
            sequence.void_draws()
        for sequence in reversed(affected):
            self._preempt(sequence)
            sequence.void_draws()

    def check(self) -> None:
        """Assert that pages, slots, queues and pending tokens balance. For tests."""
        self._pool.check(_count_uses(self._running, self.limits.page_size))
        slots = [sequence.slot for sequence in self._running] + self._free_slots
        assert sorted(slots) == list(range(self.limits.max_num_seqs)), "a slot is lost or taken twice"
        assert all(one.phase is Phase.WAITING and not one.pages for one in self._waiting)
        assert {*self._running, *self._waiting} == set(self._sequences.values())
        draws = _count_draws(self._in_flight)
        pending = {one: one.pending for one in self._sequences.values() if one.pending}
        assert draws == pending, "a pending token is not on its way"
        arrivals = [sequence.arrival for sequence in self._running]
        assert arrivals == sorted(arrivals), "running sequences are out of order"


def _count_uses(running: Iterable[Sequence], page_size: int) -> dict[int, int]:
    """How many running sequences hold each page."""
    uses = Counter[int]()
    for sequence in running:
        assert sequence.phase is Phase.RUNNING
        assert sequence.scheduled <= sequence.length <= sequence.max_length
        assert len(sequence.pages) == -(-sequence.scheduled // page_size)
        uses.update(sequence.pages)
    return uses


def _count_draws(in_flight: Iterable[tuple[StepPlan, tuple[Sequence, ...]]]) -> dict[Sequence, int]:
    """How many tokens that count are on their way to each sequence."""
    draws = Counter[Sequence]()
    for plan, sequences in in_flight:
        for sequence, row in zip(sequences, plan.rows, strict=True):
            if sequence.phase is not Phase.ENDED and row.samples and row.epoch >= sequence.valid_epoch:
                draws[sequence] += row.draws
    return draws
