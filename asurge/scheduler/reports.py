"""Reports of the scheduler about requests and about itself."""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

from asurge.outputs import FinishReason
from asurge.plan import TokenLogprobs
from asurge.record import hot_dataclass


@hot_dataclass
class SequenceUpdate:
    """Output of one applied step for one sequence. A stop token that ends it is part of ``token_ids``.

    ``logprobs`` are those of a step that samples apart, of ``token_ids``; ``prompt_logprobs`` continue those before.
    ``embedding``, float32 ``[hidden]``, is what was pooled, not normalised.
    """

    sequence_id: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None
    stop_reason: int | None
    num_cached_tokens: int
    error: BaseException | None = None
    logprobs: TokenLogprobs | None = None
    prompt_logprobs: TokenLogprobs | None = None
    embedding: npt.NDArray[np.float32] | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class SchedulerStatistics:
    """The scheduler at one moment; totals count from its start, cache figures are in tokens."""

    waiting: int
    running: int
    in_flight_steps: int
    pages_total: int
    pages_available: int
    pages_cached: int
    preemptions: int
    prefix_cache_queries: int
    prefix_cache_hits: int
    prompt_tokens: int
    generated_tokens: int


@dataclasses.dataclass(slots=True)
class Totals:
    """Counters that only grow."""

    preemptions: int = 0
    prefix_cache_queries: int = 0
    prefix_cache_hits: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
