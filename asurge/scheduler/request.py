"""A request, and the sequence it becomes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence as ImmutableSequence
from enum import Enum
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from asurge.plan import History, PlanRow, Pooling, RowSampling
from asurge.scheduler.pages import Tables

NO_PAGES = Tables(0, [], [])
"""The tables of a waiting sequence."""


@dataclasses.dataclass(frozen=True, slots=True)
class Request:
    """A sequence to be generated, as the engine admits it; one request of a user may have several.

    Attributes:
        sequence_id: unlike any other sequence's, even after its end.
        stop_token_ids: including the model's end tokens, unless they are ignored.
        cache_salt: requests with different ones share no pages.
        prompt_logprobs: asks for those of all prompt tokens after the first.
        pooling: asks for the embedding of the prompt, and for no token: ``max_tokens`` is 0.
        streamed: somebody reads the tokens as they come, so that steps between them have to be short.
        priority: lower numbers come first, where the policy says so.
        tenant: who is charged.
        arrival_s, deadline_s: on the caller's clock; past its deadline a request fails.
    """

    sequence_id: str
    prompt_token_ids: ImmutableSequence[int]
    max_tokens: int
    sampling: RowSampling
    stop_token_ids: frozenset[int] = frozenset()
    cache_salt: str = ""
    prompt_logprobs: bool = False
    pooling: Pooling | None = None
    streamed: bool = True
    priority: int = 0
    tenant: str = ""
    arrival_s: float = 0.0
    deadline_s: float | None = None

    @property
    def needs_all_computed(self) -> bool:
        """Whether every token of the prompt has to be computed, whatever the prefix cache holds."""
        return self.prompt_logprobs or self.pooling == "mean"


class Phase(Enum):
    """Phase of a sequence. A preempted one waits again."""

    WAITING = "waiting"
    RUNNING = "running"
    ENDED = "ended"


class Pace(NamedTuple):
    """Bounds on the work of one step.

    Attributes:
        decode_steps: when all that is left to do is to decode, up to this many steps are planned as one group.
        unread_decode_steps: the same, where nobody reads tokens as they come.
        prompt_tokens: the most prompt tokens beside rows whose tokens somebody reads as they come, within the budget; at least
            one quantum. None: no bound but the budget.
    """

    decode_steps: int = 1
    unread_decode_steps: int = 1
    prompt_tokens: int | None = None


ONE_STEP = Pace()


class Rank(NamedTuple):
    """The order of sequences; the smaller comes first."""

    priority: int
    arrival: int


class Sequence:
    """A request's tokens and pages while it lives in the scheduler.

    Three lengths tell everything, and ``scheduled <= known + pending``::

        |<------------- token_ids: known ------------->|<-- pending -->|
        |<-- in pages or planned to be: scheduled -->|
    """

    __slots__ = (
        "arrival", "cached", "digests", "epoch", "in_slot", "max_length", "overtaken", "pending", "phase", "pooled", "rank",
        "registered", "request", "scheduled", "scored", "slot", "tables", "token_ids", "told", "valid_epoch",
    )  # fmt: skip

    def __init__(self, request: Request, arrival: int, longest: int, *, by_priority: bool = False) -> None:
        self.request = request
        self.arrival = arrival
        self.rank = Rank(request.priority if by_priority else 0, arrival)
        self.overtaken = 0
        self.max_length = min(len(request.prompt_token_ids) + request.max_tokens, longest)
        self.token_ids = list(request.prompt_token_ids)
        self.phase = Phase.WAITING
        self.slot = -1
        self.in_slot = False
        self.epoch = 0
        self.valid_epoch = 0
        self.scheduled = 0
        self.pending = 0
        self.cached = 0
        self.told = 1  # prompt tokens whose logprobs are on the host; the first has none
        self.scored = 1  # including those on their way
        self.pooled: npt.NDArray[np.float32] | None = None  # the sum so far; recomputing the prompt restarts it
        self.tables = NO_PAGES
        self.digests: list[bytes] = []
        self.registered = 0  # columns whose pages were made findable

    @property
    def sequence_id(self) -> str:
        return self.request.sequence_id

    @property
    def known(self) -> int:
        """Tokens whose ids are on the host."""
        return len(self.token_ids)

    @property
    def length(self) -> int:
        """Tokens known, and sampled but not read yet."""
        return self.known + self.pending

    def void_tokens(self) -> None:
        """Disown all sampled tokens in flight: what they were computed from is gone."""
        self.valid_epoch = self.epoch
        self.pending = 0
        self.scored = self.told

    @property
    def samples_next(self) -> bool:
        """Whether a decode row comes next.

        All that is left to compute is then the last sampled token, the slot on the device holds it, and another one may follow
        it.
        """
        length = len(self.token_ids) + self.pending
        return self.in_slot and self.scheduled == length - 1 and length < self.max_length

    @property
    def samples_apart(self) -> bool:
        """Whether a step that samples for this sequence makes its sampling a dispatch of its own."""
        return self.request.sampling.shaping is not None

    def plan_chunk(self, count: int) -> PlanRow:
        """A row of the next ``count`` known tokens; it samples if they are all there is and a token is wanted."""
        tokens = np.asarray(self.token_ids[self.scheduled : self.scheduled + count], np.int32)
        pooling, shaping = self.request.pooling, self.request.sampling.shaping
        ends = self.scheduled + count == self.length
        samples = ends and pooling is None
        history = None
        if samples and shaping is not None and shaping.counts:
            history = History(np.asarray(self.token_ids, np.int32), len(self.request.prompt_token_ids))
        targets = self._score(count) if self.request.prompt_logprobs else None
        pooled = count if pooling == "mean" else int(pooling == "last" and ends)
        return self._row(tokens, count, num_sampled=int(samples), history=history, targets=targets, pooled=pooled)

    def pool(self, row: PlanRow, sums: npt.NDArray[np.float32]) -> npt.NDArray[np.float32] | None:
        """Take in what a chunk adds to the embedding; returns the embedding when the prompt is at its end."""
        self.pooled = sums if self.pooled is None else self.pooled + sums
        if row.start + row.num_tokens < self.known:
            return None
        return self.pooled / np.float32(self.known) if self.request.pooling == "mean" else self.pooled

    def _score(self, count: int) -> npt.NDArray[np.int32] | None:
        """The prompt token after each of the next ``count``, except those that were scored before."""
        prompt = self.request.prompt_token_ids
        begin, end = max(self.scheduled + 1, self.scored), min(self.scheduled + count + 1, len(prompt))
        if begin >= end:
            return None
        targets = np.full(count, -1, np.int32)
        targets[begin - 1 - self.scheduled : end - 1 - self.scheduled] = prompt[begin:end]
        self.scored = end
        return targets

    def plan_decode(self, steps: int) -> PlanRow:
        """A row of the last sampled token and what is sampled from it, ``steps`` tokens in all."""
        return self._row(None, steps, num_sampled=steps)

    def _row(
        self,
        tokens: npt.NDArray[np.int32] | None,
        count: int,
        *,
        num_sampled: int,
        history: History | None = None,
        targets: npt.NDArray[np.int32] | None = None,
        pooled: int = 0,
    ) -> PlanRow:
        """Advances the sequence to where the step will leave it."""
        start = self.scheduled
        self.scheduled += count
        self.pending += num_sampled
        self.in_slot |= num_sampled > 0
        return PlanRow(
            sequence_id=self.sequence_id,
            epoch=self.epoch,
            slot=self.slot,
            start=start,
            token_ids=tokens,
            samples=num_sampled > 0,
            page_tables=self.tables.planned(),
            sampling=self.request.sampling,
            decode_steps=max(num_sampled, 1),
            stop_token_ids=self.request.stop_token_ids,
            history=history,
            targets=targets,
            pooled=pooled,
        )
