"""Everything that passes between the scheduler and the device: plans, results, and the runner's protocol.

The scheduler plans step N+1 while step N runs, so a plan never holds a token the device has not yet
sampled: a decode row takes the last token of its slot on the device. Steps run in the order they were
dispatched, so pages and slots freed after step N was planned may be given to another sequence in N+1.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from asurge.record import hot_dataclass

NULL_PAGE = 0
"""The page that padding writes to; never allocated."""

DEVICE_STOPS = 4
"""Stop tokens of a row that the device itself looks for."""

MASK_BITS = 32
"""Tokens in a word of a mask of allowed tokens, uint32 ``[words]``: bit ``t % 32`` of word ``t // 32`` says whether token t may
come. Bits beyond the vocabulary mean nothing."""

Pooling = Literal["mean", "last"]
"""How the hidden states of a prompt become one vector: the mean of all, or that of its last token."""

MAX_LOGPROBS = 20
"""How many of the likeliest tokens can be reported beside a sampled one."""

MAX_LOGIT_BIAS = 1024
"""How many tokens one request can bias."""


def mask_words(vocab_size: int) -> int:
    """Words of a mask of allowed tokens."""
    return -(-vocab_size // MASK_BITS)


@dataclasses.dataclass(frozen=True, slots=True)
class LogitsShaping:
    """Changes to a row's logits before sampling, and logprobs to report, beyond what every step can do.

    A step with such a row samples apart: the forward pass first, then all its sampling in a dispatch of its own, which
    may wait for what the host has to say (`StepHandle.sample`).

    Attributes:
        logit_bias: token ids and what is added to their logits.
        processors: indices of the engine's logits processors, and the argument each one gets.
        logprobs: how many of the likeliest tokens to report beside the sampled one; None reports nothing.
        masked: a mask of allowed tokens comes with each token.
    """

    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    processors: tuple[tuple[int, float], ...] = ()
    logprobs: int | None = None
    masked: bool = False

    @property
    def counts(self) -> bool:
        """Whether it matters which tokens occurred before."""
        return (self.repetition_penalty, self.frequency_penalty, self.presence_penalty) != (1.0, 0.0, 0.0)


@dataclasses.dataclass(frozen=True, slots=True)
class RowSampling:
    """Sampling parameters of a row. Neutral values: temperature 0 is greedy, top_k 0, top_p 1 and min_p 0 are off.

    Attributes:
        seed: of 32 bits.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0
    shaping: LogitsShaping | None = None


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class History:
    """All tokens of a sequence, int32 ``[n]``; the first ``prompt`` of them are its prompt."""

    token_ids: npt.NDArray[np.int32]
    prompt: int


class PageTable(NamedTuple):
    """The pages of a sequence in one of its page tables, one for each column of ``page_size`` tokens.

    Attributes:
        first: the column of the first page; no layer that uses the table reads the ones before it any more.
        pages: int32 ``[n]``, the pages from there on.
    """

    first: int
    pages: npt.NDArray[np.int32]


@hot_dataclass
class PlanRow:
    """The share of one sequence in a step.

    Attributes:
        sequence_id: whose row this is.
        epoch: how often the sequence had been preempted when planned; results of an older epoch still count.
        slot: the device slot that holds the sequence's last sampled token.
        start: position of the first new token; all before it are in the pages.
        token_ids: the new tokens of a prefill chunk, int32 ``[n]``, n >= 1; None for a decode row, whose
            single token is the slot's last one.
        samples: whether the chunk reaches the end of what is known, so that a token is sampled.
        page_tables: as many as `RunnerLimits.windows`; they reach to position start + num_tokens - 1 at least.
        sampling: how to sample.
        decode_steps: tokens that a decode row samples one after another, unless one of them is a stop token.
        stop_token_ids: tokens that end the sequence; the device may look for only `DEVICE_STOPS` of them, and the tokens after
            another one are void.
        history: for a chunk that samples and whose shaping counts tokens: what there is to count.
        targets: for a chunk whose prompt is scored, int32 ``[n]``: the prompt token that follows each of its tokens, -1 where
            none is to be scored.
        pooled: for a chunk of a prompt to be embedded: how many of its last tokens have their hidden states summed.
    """

    sequence_id: str
    epoch: int
    slot: int
    start: int
    token_ids: npt.NDArray[np.int32] | None
    samples: bool
    page_tables: tuple[PageTable, ...]
    sampling: RowSampling
    decode_steps: int = 1
    stop_token_ids: frozenset[int] = frozenset()
    history: History | None = None
    targets: npt.NDArray[np.int32] | None = None
    pooled: int = 0

    @property
    def num_tokens(self) -> int:
        """Positions the row writes."""
        return self.decode_steps if self.token_ids is None else len(self.token_ids)


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class StepPlan:
    """A step: decode rows and prefill chunks that run together; or a group of steps, of decode rows alone."""

    step_id: int
    decode: tuple[PlanRow, ...]
    prefill: tuple[PlanRow, ...]

    @property
    def rows(self) -> tuple[PlanRow, ...]:
        """Decode rows, then prefill rows: the order of a result's tokens."""
        return self.decode + self.prefill

    @property
    def decode_steps(self) -> int:
        """Steps in the group: the most that a row samples."""
        return max((row.decode_steps for row in self.decode), default=1)

    @property
    def samples_apart(self) -> bool:
        """Whether the sampling is a dispatch of its own."""
        return any(row.samples and row.sampling.shaping is not None for row in self.rows)

    @property
    def samples_nothing(self) -> bool:
        """Whether it has rows and none of them samples: prompts that go on in the next step, or are only embedded."""
        return bool(self.rows) and not any(row.samples for row in self.rows)

    @property
    def reads_all(self) -> bool:
        """Whether the hidden states of all its tokens are read, and not only of those after which a token is sampled."""
        return any(row.targets is not None or row.pooled for row in self.prefill)


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class TokenLogprobs:
    """Natural logarithms of the probabilities that the model itself gives, before temperature and all shaping.

    Attributes:
        chosen: float32 ``[tokens]``.
        rank: int32 ``[tokens]``, of the chosen token; 1 is the likeliest.
        ids, values: ``[tokens, MAX_LOGPROBS]``, the likeliest tokens in order.
    """

    chosen: npt.NDArray[np.float32]
    rank: npt.NDArray[np.int32]
    ids: npt.NDArray[np.int32]
    values: npt.NDArray[np.float32]

    def take(self, rows: slice | npt.NDArray[np.intp]) -> TokenLogprobs:
        """Those of some tokens."""
        return TokenLogprobs(self.chosen[rows], self.rank[rows], self.ids[rows], self.values[rows])


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class StepResult:
    """Tokens that a step sampled, and what it reports with them.

    Attributes:
        token_ids: int32 ``[rows, decode_steps]`` in the order of ``plan.rows``; meaningless where a row does not sample, -1 after a stop
            token.
        error: why the step failed, or None. Then no token is valid.
        state_epoch: of the pages and slots it ran on: whenever they are lost and made anew, empty, it is the next one.
        state_lost: that epoch is gone (the failure hit donated buffers): recompute everything.
        device_time_s: what the device took: from dispatch, or from the previous result if that came later, to this one.
        logprobs: for a step that samples apart and has a row that asks, ``[rows]``.
        prompt_logprobs: by row, those of the prompt tokens it scored.
        pooled: by row, the sum of the normalised hidden states of ``PlanRow.pooled`` tokens, float32 ``[hidden]``.
    """

    plan: StepPlan
    token_ids: npt.NDArray[np.int32]
    error: BaseException | None = None
    state_epoch: int = 0
    state_lost: bool = False
    device_time_s: float = 0.0
    logprobs: TokenLogprobs | None = None
    prompt_logprobs: Mapping[int, TokenLogprobs] = dataclasses.field(default_factory=dict)
    pooled: Mapping[int, npt.NDArray[np.float32]] = dataclasses.field(default_factory=dict)

    @property
    def intact(self) -> int:
        """The first epoch that may still be there, as far as this result tells."""
        return self.state_epoch + self.state_lost


class StepHandle(Protocol):
    """A dispatched step."""

    def sample(self, masks: npt.NDArray[np.uint32] | None = None) -> None:
        """Send the sampling of a step whose plan ``samples_apart``: once, and before the next dispatch. Never raises.

        Args:
            masks: uint32 ``[rows, vocab / 32]``, rounded up, in the order of ``plan.rows``: the tokens each may sample,
                bit t % 32 of word t // 32 for token t; None allows all.
        """
        ...

    def wait(self) -> StepResult:
        """Block until the tokens are on the host. Never raises: failures are in the result."""
        ...


@dataclasses.dataclass(frozen=True, slots=True)
class RunnerLimits:
    """Limits of a runner that the scheduler must respect.

    Attributes:
        num_pages: pages in the pool, the null page included.
        page_size: tokens a page holds, in the layers that use its table.
        max_num_seqs: slots.
        max_num_batched_tokens: the token budget of a step.
        max_model_len: longest sequence, in tokens.
        prefill_quantum: a prefill chunk of n tokens costs n, rounded up to a multiple of this, of the budget.
        max_decode_steps: most steps in a group of decode steps.
        vocab_size: token ids that can be sampled.
        hidden_size: numbers in a hidden state.
        windows: by page table: no layer that uses it sees more tokens back than this, itself included; None: some layer
            sees all. A sequence has a page in every table for each ``page_size`` tokens, until they fall behind the table's
            window.
    """

    num_pages: int
    page_size: int
    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    prefill_quantum: int = 16
    max_decode_steps: int = 1
    vocab_size: int = 0
    hidden_size: int = 0
    windows: tuple[int | None, ...] = (None,)

    @property
    def longest(self) -> int:
        """Length of the longest sequence that can run, in tokens: the model's limit, or what the pool holds.

        Its last token is sampled but never computed, so it needs no page.
        """
        return min(self.max_model_len, self.tokens_held + 1)

    @property
    def tokens_held(self) -> int:
        """Tokens that a sequence alone can have computed, as far as pages go."""
        columns = self.columns(self.max_model_len)
        while columns and self.pages_held(columns) > self.num_pages - 1:
            columns -= 1
        return columns * self.page_size

    def columns(self, tokens: int) -> int:
        """Columns of a page table that this many tokens take."""
        return -(-tokens // self.page_size)

    def pages_held(self, columns: int) -> int:
        """The most pages that a sequence of ``columns`` columns holds at once, in all tables."""
        return sum(self.columns_held(window, columns) for window in self.windows)

    def columns_held(self, window: int | None, columns: int, *, step: int | None = None) -> int:
        """Return the most pages that a sequence of ``columns`` columns holds at once in one table.

        They are all its pages, or those that the window and a step touch.

        Args:
            step: the step's tokens; None: as many as a step can have.
        """
        if window is None:
            return columns
        step = max(self.max_num_batched_tokens, self.max_decode_steps) if step is None else step
        return min(columns, self.columns(window + step - 2) + 1)


class Runner(Protocol):
    """The only owner of device state.

    All methods block and are called from worker threads, one at a time, except `StepHandle.wait`, which may overlap the next
    `dispatch`.
    """

    @property
    def limits(self) -> RunnerLimits: ...

    def dispatch(self, plan: StepPlan) -> StepHandle:
        """Send one step to the device without waiting for it."""
        ...

    def shutdown(self) -> None:
        """Release device memory. Further calls are errors."""
        ...
