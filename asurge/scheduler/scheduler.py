"""`Scheduler`: continuous batching under one token budget, with chunked prefill and preemption by recomputation."""

from __future__ import annotations

import dataclasses

from asurge.config import CacheConfig, SchedulerConfig
from asurge.errors import DuplicateRequestError, EngineOverloadedError, InvalidRequestError
from asurge.outputs import FinishReason
from asurge.plan import RunnerLimits, StepPlan, StepResult, TokenLogprobs
from asurge.scheduler.deadlines import Deadlines
from asurge.scheduler.in_flight import LandedStep, SequenceRow, StepsInFlight
from asurge.scheduler.pages import PagePool
from asurge.scheduler.prefix_cache import PrefixCache, damaged_pages
from asurge.scheduler.reports import SchedulerStatistics, SequenceUpdate, Totals
from asurge.scheduler.request import ONE_STEP, Pace, Phase, Request, Sequence
from asurge.scheduler.running import RunningSet
from asurge.scheduler.waiting import Tenants, WaitingQueue

RETRY_AFTER_S = 1.0


def duplicate(request_id: str) -> DuplicateRequestError:
    """The error for a request whose id is in use."""
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
        self,
        limits: RunnerLimits,
        config: SchedulerConfig | None = None,
        cache: CacheConfig | None = None,
        *,
        max_queued_requests: int = 4096,
    ) -> None:
        self.limits = limits
        self.config, cache = config or SchedulerConfig(), cache or CacheConfig()
        self._longest, self._longest_embedded = limits.longest, min(limits.max_model_len, limits.tokens_held)
        self._max_queued = max_queued_requests
        self._pool = PagePool(limits.num_pages, max_cached=cache.prefix_cache_capacity)
        self._cache = PrefixCache(self._pool, limits.page_size, limits.windows, enabled=cache.enable_prefix_caching)
        self._sequences: dict[str, Sequence] = {}
        self._deadlines = Deadlines()
        self._tenants = Tenants(dict(self.config.tenant_weights))
        self._waiting = WaitingQueue(self.config, self._tenants, self._cache.matched)
        self._in_flight = StepsInFlight()
        self._totals = Totals()
        self._running_set = RunningSet(
            limits, self._pool, self._cache, self._waiting, self._totals, by_priority=self.config.policy == "priority"
        )
        self._running = self._running_set.running
        self._next_arrival = 0

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def num_in_flight(self) -> int:
        """Steps planned whose results have not been applied yet."""
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
        if request.sequence_id in self._sequences:
            raise duplicate(request.sequence_id)
        if len(self._waiting) >= self._max_queued:
            raise EngineOverloadedError(
                f"{len(self._waiting)} requests are already waiting (max_queued_requests={self._max_queued}): try later",
                retry_after_s=RETRY_AFTER_S,
            )
        size = len(request.prompt_token_ids)
        most = self._longest - 1 if request.pooling is None else self._longest_embedded
        if not 1 <= size <= most:
            raise InvalidRequestError(f"prompt has {size} tokens: it must have 1 to {most}", param="prompt")
        by_priority = self.config.policy == "priority"
        sequence = Sequence(request, self._next_arrival, self._longest, by_priority=by_priority)
        self._next_arrival += 1
        self._sequences[request.sequence_id] = sequence
        self._tenants.enter(request.tenant)
        self._waiting.add(sequence)
        self._deadlines.add(sequence)

    def finish(self, sequence_id: str) -> bool:
        """End a sequence in any state and free what it holds; False if it is unknown or has ended."""
        sequence = self._sequences.get(sequence_id)
        if sequence is None:
            return False
        self._end(sequence)
        return True

    @property
    def next_deadline_s(self) -> float | None:
        """The earliest deadline of a request that has not ended."""
        return self._deadlines.next_s

    def expire(self, now: float) -> list[str]:
        """End every request whose deadline has passed, in any state, and free what it holds; returns their ids."""
        expired = []
        while (sequence := self._deadlines.missed(now)) is not None:
            self._end(sequence)
            expired.append(sequence.sequence_id)
        return expired

    def plan(self, pace: Pace = ONE_STEP) -> StepPlan | None:
        """The next step, or None if nothing can run before a result is applied or a request added."""
        self._running_set.release_behind_windows()
        self._running_set.make_room()
        group = self._group(pace)
        budget = self.limits.max_num_batched_tokens
        running = [(one, one.samples_next) for one in self._running]
        decode_rows = min(budget, sum([decodes for _, decodes in running]))
        budget -= decode_rows
        if pace.prompt_tokens is not None and any([decodes and one.request.streamed for one, decodes in running]):
            budget = min(budget, max(pace.prompt_tokens, self.limits.prefill_quantum))
        decode: list[SequenceRow] = []
        prefill: list[SequenceRow] = []
        # By rank: a sequence preempted for another's pages comes later, and has no row in this step yet.
        for sequence, decodes in running:
            if sequence.phase is not Phase.RUNNING:
                continue
            if decodes:
                count = group if group == 1 else min(group, sequence.max_length - sequence.length)
                if decode_rows and self._running_set.reserve(sequence, count):
                    decode.append((sequence, sequence.plan_decode(count)))
                    self._tenants.charge(sequence.request.tenant, 0, count)
                    self._cache.register(sequence)
                    decode_rows -= 1
            elif sequence.scheduled < sequence.known:
                budget = self._plan_chunk(sequence, budget, prefill)
        while self._running_set.free_slots and budget >= self.limits.prefill_quantum:
            first = self._waiting.first()
            if first is None or first.pending or not self._running_set.admit(first):
                break
            sequence = first
            budget = self._plan_chunk(sequence, budget, prefill)
        if not decode and not prefill:
            return None
        return self._in_flight.launch(decode, prefill)

    def _group(self, pace: Pace) -> int:
        """How many steps decode rows may run in one go: one, unless nothing waits that could run before they end, and there
        are pages for more."""
        read = any([one.request.streamed for one in self._running])
        most = min(pace.decode_steps if read else pace.unread_decode_steps, self.limits.max_decode_steps)
        if most == 1 or not all(one.samples_next and not one.samples_apart for one in self._running):
            return 1
        if self._waiting:
            if read or self._running_set.free_slots:
                return 1
            most = min(most, *[one.max_length - one.length for one in self._running])
        columns = sum(self.limits.columns(one.scheduled + most) - one.tables.columns for one in self._running)
        return most if columns * len(self.limits.windows) <= self._pool.num_available else 1

    def _plan_chunk(self, sequence: Sequence, budget: int, prefill: list[SequenceRow]) -> int:
        """Plan as much of a sequence's known tokens as the budget allows; returns what is left of it."""
        quantum = self.limits.prefill_quantum
        count = min(sequence.known - sequence.scheduled, budget // quantum * quantum, self._longest_chunk(sequence))
        if count <= 0 or not self._running_set.reserve(sequence, count):
            return budget
        prefill.append((sequence, sequence.plan_chunk(count)))
        self._tenants.charge(sequence.request.tenant, count, 0)
        self._cache.register(sequence)
        return budget - -(-count // quantum) * quantum

    def _longest_chunk(self, sequence: Sequence) -> int:
        """How much of a prompt one step may compute: all, unless it is long and others have prompts to be computed."""
        threshold = self.config.long_prefill_token_threshold
        if threshold is None:
            return sequence.known
        alone = not self._waiting and not any(
            other.scheduled < other.known and not other.samples_next for other in self._running if other is not sequence
        )
        return sequence.known if alone else threshold

    def _end(self, sequence: Sequence) -> None:
        if sequence.phase is Phase.RUNNING:
            self._running_set.vacate(sequence)
        elif sequence.phase is Phase.WAITING:
            self._waiting.remove(sequence)
        sequence.phase = Phase.ENDED
        self._tenants.leave(sequence.request.tenant)
        self._deadlines.discard(sequence)
        del self._sequences[sequence.sequence_id]

    def apply(self, result: StepResult) -> list[SequenceUpdate]:
        """Take in the oldest step in flight. Rows of requests that have ended since are dropped."""
        step = self._in_flight.land(result)
        if step.lost or result.error is not None:
            return self._apply_failure(result, step)
        if step.void:
            return []
        updates = []
        sampled = result.token_ids.tolist()
        for index, (sequence, row, tokens) in enumerate(zip(step.sequences, result.plan.rows, sampled, strict=True)):
            if sequence.phase is Phase.ENDED or row.epoch < sequence.valid_epoch:
                continue
            scores, sums = result.prompt_logprobs.get(index), result.pooled.get(index)
            sequence.told += 0 if scores is None else len(scores.chosen)
            if row.samples:
                logprobs = None if result.logprobs is None else result.logprobs.take(slice(index, index + 1))
                updates.append(self._append(sequence, tokens[: row.decode_steps], logprobs, scores))
            elif scores is not None:
                updates.append(
                    SequenceUpdate(sequence.sequence_id, (), None, None, sequence.cached, prompt_logprobs=scores)
                )
            elif sums is not None and row.epoch == sequence.epoch:
                embedding = sequence.pool(row, sums)
                if embedding is not None:
                    self._end(sequence)
                    updates.append(
                        SequenceUpdate(sequence.sequence_id, (), "stop", None, sequence.cached, embedding=embedding)
                    )
        return updates

    def _append(
        self, sequence: Sequence, tokens: list[int], sampled: TokenLogprobs | None, scored: TokenLogprobs | None
    ) -> SequenceUpdate:
        """Take in what a row sampled, up to where the sequence ends."""
        request, stops = sequence.request, sequence.request.stop_token_ids
        sequence.pending -= len(tokens)
        for at, token in enumerate(tokens, 1):
            if token in stops:
                del tokens[at:]
                break
        taken = tuple(tokens)
        sequence.token_ids.extend(taken)
        self._totals.generated_tokens += len(taken)
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
        return SequenceUpdate(request.sequence_id, taken, reason, stop_reason, sequence.cached, None, sampled, scored)

    def _apply_failure(self, result: StepResult, step: LandedStep) -> list[SequenceUpdate]:
        """Fail the requests of a failed step, and have every sequence that depends on what it was to write start over.
        A sequence preempted since the step was planned does not fail: it starts over anyway; so do all in a void step."""
        updates = []
        for sequence, row in zip(step.sequences, result.plan.rows, strict=True):
            if result.error is not None and sequence.phase is not Phase.ENDED and row.epoch == sequence.epoch:
                self._end(sequence)
                updates.append(SequenceUpdate(sequence.sequence_id, (), "error", None, sequence.cached, result.error))
        if step.lost:
            self._pool.forget_all()
            self._recompute(list(self._running))
        elif not step.void:
            damaged = damaged_pages(result.plan, self._in_flight.plans(), self.limits.page_size)
            for page in damaged:
                self._pool.forget(page)
            self._recompute([one for one in self._running if not damaged.isdisjoint(one.tables)])
        return updates

    def _recompute(self, affected: list[Sequence]) -> None:
        """Have running sequences start over. Waiting ones may have sampled from pages they no longer hold, so
        their tokens in flight are void too."""
        for sequence in self._waiting:
            sequence.void_tokens()
        for sequence in reversed(affected):
            self._running_set.preempt(sequence)
            sequence.void_tokens()

    def forget_cache(self) -> None:
        """Let no further request find pages of earlier ones: what filled them has changed."""
        self._pool.forget_all()

    def check(self) -> None:
        """Assert that pages, slots, queues and pending tokens balance. For tests."""
        self._running_set.check()
        assert all(one.phase is Phase.WAITING and not one.tables.held for one in self._waiting)
        assert {*self._running, *self._waiting} == set(self._sequences.values())
        pending = {one: one.pending for one in self._sequences.values() if one.pending}
        assert self._in_flight.pending() == pending, "a pending token is not on its way"
        assert len(self._waiting) == len(list(self._waiting)), "the queue has lost count"
