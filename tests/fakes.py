"""Stand-ins with the behaviour that tests need to see: a device that really keeps pages, and one that keeps time."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from asurge.plan import NULL_PAGE, PageTable, PlanRow, Pooling, RunnerLimits, StepPlan, StepResult

VOCAB = 1000


class Panic(BaseException):
    """The exception of libraries in Rust that panic, which is no `Exception`."""


def limits(**changes: Any) -> RunnerLimits:
    """A small pool of small pages, for a few short sequences."""
    defaults = dict(
        num_pages=33, page_size=4, max_num_seqs=4, max_num_batched_tokens=16, max_model_len=64, prefill_quantum=4
    )
    return RunnerLimits(**(defaults | changes))


def next_token(token_ids: Sequence[int]) -> int:
    """A model: the next token is a fixed function of all tokens before it, in [2, VOCAB)."""
    digest = hashlib.sha256(np.asarray(token_ids, np.int32).tobytes()).digest()
    return 2 + int.from_bytes(digest[:4], "little") % (VOCAB - 2)


def continuation(
    prompt: Sequence[int], count: int, stops: frozenset[int] = frozenset(), *, window: int | None = None
) -> list[int]:
    """What `next_token` writes behind a prompt, alone and unbatched; of a ``window`` it sees the last tokens only."""
    tokens = list(prompt)
    while len(tokens) < len(prompt) + count:
        tokens.append(next_token(tokens if window is None else tokens[-window:]))
        if tokens[-1] in stops:
            break
    return tokens[len(prompt) :]


def embedding(prompt: Sequence[int], pooling: Pooling) -> np.ndarray:
    """Embed a prompt, where each token's hidden state is `next_token` of all up to it: ``[1]``."""
    states = [next_token(prompt[: at + 1]) for at in range(len(prompt))]
    if pooling == "last":
        return np.asarray(states[-1:], np.float32)
    return np.asarray([sum(states)], np.float32) / np.float32(len(states))


def page_of(row: PlanRow, table: int, column: int) -> int:
    """The page that a row has there: it must have one."""
    first, pages = row.page_tables[table]
    assert first <= column < first + len(pages), "a page was given up too early, or never taken"
    return int(pages[column - first])


def one_table(pages: Sequence[int]) -> tuple[PageTable, ...]:
    """The page tables of a row that has one, from its first column on."""
    return (PageTable(0, np.asarray(pages, np.int32)),)


class PagedDevice:
    """Executes plans one after another over real pages, and checks that each row finds exactly its own tokens.

    Tables with a window are read no further than it reaches; the first table has none. Each row reads its context through its page table, so a page given away too early, shared wrongly, or never
    written shows up as a wrong sample, compared with the tokens of the sequence by the test.

    State that is lost is made anew, empty, when the next step executes, and counts as the next ``state_epoch``.
    """

    def __init__(self, limits: RunnerLimits) -> None:
        self.limits = limits
        self.pages = np.full((limits.num_pages, limits.page_size), -1, np.int64)
        self.last_token = np.full(limits.max_num_seqs, -1, np.int64)
        self.state_epoch, self.is_state_lost = 0, False

    def execute(self, plan: StepPlan) -> StepResult:
        assert plan.decode_steps <= self.limits.max_decode_steps
        assert plan.decode_steps == 1 or not plan.prefill
        quantum = self.limits.prefill_quantum
        cost = len(plan.decode) + sum(-(-row.num_tokens // quantum) * quantum for row in plan.prefill)
        assert 0 < cost <= self.limits.max_num_batched_tokens
        assert len(plan.rows) <= self.limits.max_num_seqs
        assert len({row.slot for row in plan.rows}) == len(plan.rows), "two rows share a slot"
        self.renew()
        tokens = np.full((len(plan.rows), plan.decode_steps), -1, np.int32)
        for step in range(plan.decode_steps):
            going = [at for at, row in enumerate(plan.rows) if _goes_on(row, tokens[at, :step])]
            for at in going:  # as on the device: all writes come before all reads
                self._write(plan.rows[at], step)
            for at in going:
                tokens[at, step] = self._draw(plan.rows[at], step)
        pooled = {at: self._pool(row) for at, row in enumerate(plan.rows) if row.pooled}
        return StepResult(plan, tokens, state_epoch=self.state_epoch, pooled=pooled)

    def renew(self) -> None:
        """Make lost state anew, which is what a dispatch does first."""
        if self.is_state_lost:
            self.state_epoch, self.is_state_lost = self.state_epoch + 1, False

    def fail(self, plan: StepPlan, error: Exception, *, state_lost: bool, state_epoch: int | None = None) -> StepResult:
        """The result of a step that fails without touching a page; or, with the state lost, after it took all of them along.

        Args:
            state_epoch: of a step that had executed; by now there may be a later one, which is not lost with it.
        """
        state_epoch = self.state_epoch if state_epoch is None else state_epoch
        if state_lost and state_epoch == self.state_epoch:
            self.lose_state()
        return StepResult(plan, np.zeros((len(plan.rows), plan.decode_steps), np.int32), error, state_epoch, state_lost)

    def lose_state(self) -> None:
        self.pages[:] = -2
        self.last_token[:] = -2
        self.is_state_lost = True

    def _write(self, row: PlanRow, step: int) -> None:
        tokens = [self.last_token[row.slot]] if row.token_ids is None else row.token_ids
        for at, token in enumerate(tokens, row.start + step):
            for table in range(len(self.limits.windows)):
                page = page_of(row, table, at // self.limits.page_size)
                assert page != NULL_PAGE
                self.pages[page, at % self.limits.page_size] = token

    def _draw(self, row: PlanRow, step: int) -> int:
        if not row.samples:
            return 0
        end = row.start + (step + 1 if row.token_ids is None else row.num_tokens)
        self.last_token[row.slot] = next_token(self.context(row, end, end - 1))
        return int(self.last_token[row.slot])

    def _pool(self, row: PlanRow) -> np.ndarray:
        end = row.start + row.num_tokens
        context = self.context(row, end, end - 1)
        return np.asarray([sum(next_token(context[:at]) for at in range(end - row.pooled + 1, end + 1))], np.float32)

    def context(self, row: PlanRow, end: int, query: int) -> list[int]:
        """All tokens before ``end`` as the tables have them; -1 where two that a query sees disagree."""
        size, context = self.limits.page_size, list[int]()
        for table, window in enumerate(self.limits.windows):
            begin = 0 if window is None else max(query - window + 1, 0)
            seen = [int(self.pages[page_of(row, table, at // size), at % size]) for at in range(begin, end)]
            known = context[begin:] or seen
            context[begin:] = [one if one == other else -1 for one, other in zip(known, seen, strict=True)]
        return context


def _goes_on(row: PlanRow, sampled: np.ndarray) -> bool:
    """Whether a row has another step in a group, after what it has sampled."""
    return len(sampled) < row.decode_steps and row.stop_token_ids.isdisjoint(sampled.tolist())


class FakeRunner:
    """A `Runner` over a `PagedDevice` that records the order of dispatches and reads.

    Steps compute at dispatch. After `hold`, results stay unreadable until `release`. With ``overlapped_until``, the
    result of each step before that one becomes readable only when the next step has been dispatched, so a pipeline
    that reads first hangs. ``on_dispatch`` can raise or return a result of its own; so can ``on_sampling``, where samples are apart.
    """

    def __init__(
        self,
        limits: RunnerLimits,
        *,
        on_dispatch: Callable[[StepPlan, StepResult], StepResult] | None = None,
        on_sampling: Callable[[StepPlan, StepResult], StepResult] | None = None,
        overlapped_until: int = 0,
    ) -> None:
        self.limits = limits
        self.device = PagedDevice(limits)
        self.events: list[tuple[str, int]] = []
        self.masks: dict[int, np.ndarray | None] = {}
        self.on_dispatch, self.on_sampling = on_dispatch, on_sampling
        self.stopped = False
        self._overlapped_until = overlapped_until
        self._dispatched = threading.Condition()
        self._newest = -1
        self._gate = threading.Event()
        self._gate.set()

    def hold(self) -> None:
        self._gate.clear()

    def release(self) -> None:
        self._gate.set()

    def dispatch(self, plan: StepPlan) -> _FakeHandle:
        self.events.append(("dispatch", plan.step_id))
        result = self.device.execute(plan)
        if self.on_dispatch is not None:
            result = self.on_dispatch(plan, result)
        with self._dispatched:
            self._newest = plan.step_id
            self._dispatched.notify_all()
        return _FakeHandle(self, result)

    def shutdown(self) -> None:
        self.stopped = True

    def wait(self, result: StepResult) -> StepResult:
        assert self._gate.wait(timeout=30)
        step = result.plan.step_id
        if step < self._overlapped_until:
            with self._dispatched:
                assert self._dispatched.wait_for(lambda: self._newest > step, timeout=30), f"{step} was read too early"
        self.events.append(("read", result.plan.step_id))
        return result


class _FakeHandle:
    def __init__(self, runner: FakeRunner, result: StepResult) -> None:
        self._runner, self._result = runner, result

    def sample(self, masks: np.ndarray | None = None) -> None:
        self._runner.events.append(("sample", self._result.plan.step_id))
        self._runner.masks[self._result.plan.step_id] = masks
        if self._runner.on_sampling is not None:
            self._result = self._runner.on_sampling(self._result.plan, self._result)

    def wait(self) -> StepResult:
        return self._runner.wait(self._result)
