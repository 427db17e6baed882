"""All that passes between the scheduler and the device: plans, results, and the runner's protocol.

The scheduler plans step N+1 while step N runs, so a plan never holds a token the device has not yet
sampled: a decode row takes the last token of its slot on the device. Steps run in the order they were
dispatched, so pages and slots freed after step N was planned may be given to another sequence in N+1.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

NULL_PAGE = 0
"""The page that padding writes to; never allocated."""

DEVICE_STOPS = 4
"""Stop tokens of a row that the device itself looks for."""


@dataclasses.dataclass(frozen=True, slots=True)
class RowSampling:
    """How one row's next token is drawn. Neutral values: temperature 0 is greedy, top_k 0 and top_p 1 are off."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class PlanRow:
    """The share of one sequence in a step.

    Attributes:
        request_id: whose row this is.
        epoch: how often the sequence had been preempted when planned; results of an older epoch still count.
        slot: the device slot that holds the sequence's last sampled token.
        start: position of the first new token; all before it are in the pages.
        token_ids: the new tokens of a prefill chunk, int32 ``[n]``, n >= 1; None for a decode row, whose
            single token is the slot's last one.
        samples: whether the chunk reaches the end of what is known, so that a token is drawn.
        page_table: ids of all pages that hold positions 0 to start + num_tokens - 1, in order.
        sampling: how to draw.
        draws: tokens that a decode row draws one after another, unless one of them is a stop token.
        stop_token_ids: tokens that end the sequence; the device may look at `DEVICE_STOPS` of them only, and the
            draws behind another one are void.
    """

    request_id: str
    epoch: int
    slot: int
    start: int
    token_ids: npt.NDArray[np.int32] | None
    samples: bool
    page_table: Sequence[int]
    sampling: RowSampling
    draws: int = 1
    stop_token_ids: frozenset[int] = frozenset()

    @property
    def num_tokens(self) -> int:
        """Positions the row writes."""
        return self.draws if self.token_ids is None else len(self.token_ids)


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class StepPlan:
    """One step: decode rows and prefill chunks that run together; or, of decode rows alone, a group of steps."""

    step_id: int
    decode: tuple[PlanRow, ...]
    prefill: tuple[PlanRow, ...]

    @property
    def rows(self) -> tuple[PlanRow, ...]:
        """Decode rows, then prefill rows: the order of a result's tokens."""
        return self.decode + self.prefill

    @property
    def draws(self) -> int:
        """Steps in the group: the most that a row draws."""
        return max((row.draws for row in self.decode), default=1)


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class StepResult:
    """What a step drew.

    Attributes:
        token_ids: int32 ``[rows, draws]`` in the order of ``plan.rows``; meaningless where a row does not sample, -1
            behind a stop token.
        error: why the step failed, or None. Then no token is valid.
        state_lost: the pages' contents are gone (the failure hit donated buffers): recompute everything.
        device_time_s: what the device took: from dispatch, or from the result before if that came later, to this one.
    """

    plan: StepPlan
    token_ids: npt.NDArray[np.int32]
    error: BaseException | None = None
    state_lost: bool = False
    device_time_s: float = 0.0


class StepHandle(Protocol):
    """A dispatched step."""

    def wait(self) -> StepResult:
        """Block until the tokens are on the host. Never raises: failures are in the result."""
        ...


@dataclasses.dataclass(frozen=True, slots=True)
class RunnerLimits:
    """What the scheduler must respect.

    Attributes:
        num_pages: pages in the pool, the null page included.
        page_size: tokens a page holds.
        max_num_seqs: slots.
        max_num_batched_tokens: the token budget of a step.
        max_model_len: longest sequence, in tokens.
        prefill_quantum: a prefill chunk of n tokens costs n rounded up to this many of the budget.
        max_draws: most steps in a group of decode steps.
    """

    num_pages: int
    page_size: int
    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    prefill_quantum: int = 16
    max_draws: int = 1


class Runner(Protocol):
    """The only owner of device state. All methods block and are called from worker threads, one at a time,
    except `StepHandle.wait`, which may overlap the next `dispatch`."""

    @property
    def limits(self) -> RunnerLimits: ...

    def dispatch(self, plan: StepPlan) -> StepHandle:
        """Send one step to the device without waiting for it."""
        ...

    def shutdown(self) -> None:
        """Release device memory. Further calls are errors."""
        ...
