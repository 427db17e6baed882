"""Logprobs of prompts: a few positions at a time, so that memory does not grow with the prompt."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from asurge.ops.logits import logprobs
from asurge.ops.sampling import few_at_a_time
from asurge.plan import MAX_LOGPROBS, StepPlan, TokenLogprobs
from asurge.runner.buckets import StepShape, place
from asurge.runner.compilation import begin_fetch
from asurge.runner.program import Program
from asurge.runner.sampling_inputs import pack_logprobs, unpack_logprobs
from asurge.runner.step import Leaves, Rebuild

SCORE_ROWS = 64


@dataclasses.dataclass(frozen=True, slots=True)
class ScoreShape:
    """Number of prompt positions that a dispatch scores."""

    score_rows: int


class Scores:
    """The prompt logprobs of one step, on their way to the host."""

    def __init__(self, parts: list[jax.Array], owners: npt.NDArray[np.int32]) -> None:
        self._parts, self._owners = parts, owners

    def read(self) -> dict[int, TokenLogprobs]:
        """Wait: by plan row, its scored tokens in order."""
        found = unpack_logprobs(np.concatenate([np.asarray(part) for part in self._parts])[: len(self._owners)])
        return {int(row): found.take(np.flatnonzero(self._owners == row)) for row in np.unique(self._owners)}


class PromptScorer:
    """Reports how likely the model found the tokens of prompts.

    Args:
        flat: the hidden states ``[tokens, hidden]`` that a step leaves, as shapes.
    """

    def __init__(self, rebuild: Rebuild, vocab_size: int, leaves: Leaves, flat: jax.ShapeDtypeStruct) -> None:
        def report(logits: jax.Array, tokens: jax.Array) -> jax.Array:
            return pack_logprobs(logprobs(logits, tokens, MAX_LOGPROBS))

        def score(leaves: Leaves, flat: jax.Array, packed: jax.Array) -> jax.Array:
            logits = rebuild(leaves).logits(flat[packed[0]])[:, :vocab_size]
            return few_at_a_time(report, logits, packed[1])

        packed = jax.ShapeDtypeStruct((2, SCORE_ROWS), jnp.int32)
        self.program = Program(ScoreShape(SCORE_ROWS), score, (leaves, flat, packed))

    def warm_up(self, leaves: Leaves, flat: jax.Array) -> None:
        """Run once on padding alone."""
        self.program(leaves, flat, np.zeros((2, SCORE_ROWS), np.int32)).block_until_ready()

    def dispatch(self, plan: StepPlan, shape: StepShape, leaves: Leaves, flat: jax.Array | None) -> Scores | None:
        """Send what a plan has to score; None if it has nothing."""
        if all(row.targets is None for row in plan.prefill):
            return None
        assert flat is not None
        owners, at, targets = _positions(plan, shape)
        parts = []
        for begin in range(0, len(at), SCORE_ROWS):
            packed = np.zeros((2, SCORE_ROWS), np.int32)
            size = min(SCORE_ROWS, len(at) - begin)
            packed[0, :size], packed[1, :size] = at[begin : begin + size], targets[begin : begin + size]
            part = self.program(leaves, flat, packed)
            begin_fetch(part)
            parts.append(part)
        return Scores(parts, owners) if parts else None


def _positions(
    plan: StepPlan, shape: StepShape
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """List what is to be scored: the plan row, the place among the step's flat tokens, and the token."""
    index_of = {id(row): index for index, row in enumerate(plan.rows)}
    found: list[tuple[int, int, int]] = []
    for part in place(plan, shape):
        if part.row.targets is None:
            continue
        first = shape.first_token(part.at)
        for offset, token in enumerate(part.row.targets[part.begin : part.begin + part.length].tolist()):
            if token >= 0:
                found.append((index_of[id(part.row)], first + offset, token))
    table = np.asarray(found, np.int32).reshape(-1, 3)
    return table[:, 0], table[:, 1], table[:, 2]
