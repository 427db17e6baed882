"""Sampling apart from the forward pass: for rows whose logits are shaped before, or reported after it.

A second dispatch after the step, over the hidden states it left. Masks that depend on the tokens sampled before are
computed by the host while the forward pass runs, so the device does not wait for them (`docs/architecture.md`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax import lax

from asurge.ops.attention import up_to_last
from asurge.ops.logits import LogitsProcessor, add_bias, allow, count, logprobs, penalize, record, typical
from asurge.ops.packed import LIVE_ROWS
from asurge.ops.sampling import SampleFunction, few_at_a_time, sample
from asurge.plan import MAX_LOGPROBS, History, StepPlan, TokenLogprobs
from asurge.runner.compilation import begin_fetch
from asurge.runner.program import Program
from asurge.runner.sampling_inputs import (
    FIELDS,
    LOGPROB_COLUMNS,
    SampleLayout,
    SampleRows,
    pack_logprobs,
    unpack_logprobs,
    unpack_rows,
)
from asurge.runner.step import Leaves, Rebuild

_HISTORY_CHUNK = 1024


@dataclasses.dataclass(frozen=True, slots=True)
class SampleShape:
    """Number of rows for which a dispatch samples."""

    sample_rows: int


@dataclasses.dataclass(frozen=True, slots=True)
class HistoryShape:
    """Number of tokens that a dispatch enters into the counts of a slot."""

    history_tokens: int


@dataclasses.dataclass(frozen=True)
class SamplerSpec:
    """Parameters that all shapes of an engine's sampler share. ``slots`` do not include the scratch slot."""

    rebuild: Rebuild
    vocab_size: int
    slots: int
    processors: tuple[LogitsProcessor, ...] = ()
    sample: SampleFunction = sample

    @property
    def layout(self) -> SampleLayout:
        """Layout of the packed rows."""
        return SampleLayout(self.vocab_size, self.slots, len(self.processors))


class LogitsSampler:
    """Shapes logits and samples from them. Owns the counts of tokens by slot, for which the first call allocates device memory.

    Args:
        last: the hidden states ``[rows, hidden]`` that a step leaves, as shapes.
        last_token: of each slot and the scratch slot, as a shape.
    """

    def __init__(
        self, spec: SamplerSpec, leaves: Leaves, last: jax.ShapeDtypeStruct, last_token: jax.ShapeDtypeStruct
    ) -> None:
        self._spec, self._layout = spec, spec.layout
        counts = jax.ShapeDtypeStruct((spec.slots + 1, spec.vocab_size), jnp.uint16)
        self._empty: dict[int, npt.NDArray[np.int32]] = {}
        self._samplers: dict[int, Program] = {}
        for rows in sorted({min(8, max(spec.slots, 2)), max(spec.slots, 2)}):
            self._empty[rows] = self._layout.empty(rows)
            packed = jax.ShapeDtypeStruct(self._empty[rows].shape, jnp.int32)
            arguments = (leaves, last, last_token, counts, packed)
            self._samplers[rows] = Program(SampleShape(rows), _make_sampler(spec), arguments, donated=(2, 3))
        chunk = jax.ShapeDtypeStruct((3 + _HISTORY_CHUNK,), jnp.int32)
        self._history = Program(HistoryShape(_HISTORY_CHUNK), _enter, (counts, chunk), donated=(0,))
        self._counts: jax.Array | None = None

    @property
    def programs(self) -> list[Program]:
        """Programs to compile."""
        return [*self._samplers.values(), self._history]

    def warm_up(self, leaves: Leaves, last: jax.Array, last_token: jax.Array) -> jax.Array:
        """Run every program once on padding alone; returns the last tokens, which are donated and unchanged."""
        self._enter_history(self._spec.slots, History(np.zeros(1, np.int32), 1))
        for rows in self._samplers:
            last_token, sampled = self._run(rows, leaves, last, last_token, self._empty[rows])
            sampled.block_until_ready()
        self.reset()
        return last_token

    def reset(self) -> None:
        """Forget all counts and give their memory back."""
        self._counts = None

    @property
    def is_lost(self) -> bool:
        """Whether a failed dispatch took the counts with it."""
        return self._counts is not None and self._counts.is_deleted()

    def sample(
        self,
        plan: StepPlan,
        sampled_at: npt.NDArray[np.int32],
        masks: npt.NDArray[np.uint32] | None,
        leaves: Leaves,
        last: jax.Array,
        last_token: jax.Array,
    ) -> tuple[jax.Array, jax.Array]:
        """Dispatch the sampling of a plan's rows.

        Args:
            sampled_at: for each plan row, the device row of ``last [rows, hidden]`` that it samples from.
            masks: see `asurge.plan.StepHandle.sample`.

        Returns:
            The last tokens by slot, and int32 ``[rows, ...]``, to be read by `read`.
        """
        order = _order(plan)
        rows = next(rows for rows in self._samplers if len(order) <= rows)
        packed = self._empty[rows].copy()
        views = FIELDS.views(packed)
        for at, index in enumerate(order):
            row = plan.rows[index]
            if row.history is not None:
                self._enter_history(row.slot, row.history)
            self._layout.fill(views, at, row, int(sampled_at[index]), None if masks is None else masks[index])
        return self._run(rows, leaves, last, last_token, packed)

    def read(self, plan: StepPlan, sampled: jax.Array) -> tuple[npt.NDArray[np.int32], TokenLogprobs | None]:
        """Wait for a plan's tokens, ``[rows, 1]``, and their logprobs, ``[rows]``, if any row wants them."""
        order = _order(plan)
        host = np.zeros((len(plan.rows), 1 + LOGPROB_COLUMNS), np.int32)
        host[order] = np.asarray(sampled)[: len(order)]
        wanted = any(
            row.sampling.shaping is not None and row.sampling.shaping.logprobs is not None for row in plan.rows
        )
        return host[:, :1], unpack_logprobs(host[:, 1:]) if wanted else None

    def _enter_history(self, slot: int, history: History) -> None:
        """Count what a sequence holds when it comes to a slot."""
        tokens, prompt = history.token_ids, history.prompt
        for begin in range(0, len(tokens), _HISTORY_CHUNK):
            part = tokens[begin : begin + _HISTORY_CHUNK]
            packed = np.full(3 + _HISTORY_CHUNK, self._spec.vocab_size, np.int32)
            packed[:3] = slot, min(max(prompt - begin, 0), len(part)), begin == 0
            packed[3 : 3 + len(part)] = part
            self._counts = self._history(self.counts(), packed)

    def _run(
        self, rows: int, leaves: Leaves, last: jax.Array, last_token: jax.Array, packed: npt.NDArray[np.int32]
    ) -> tuple[jax.Array, jax.Array]:
        last_token, self._counts, sampled = self._samplers[rows](leaves, last, last_token, self.counts(), packed)
        begin_fetch(sampled)
        return last_token, sampled

    def counts(self) -> jax.Array:
        """Occurrences of each token in the text of each slot: uint16 ``[slots + 1, vocab_size]``."""
        if self._counts is None:
            self._counts = jnp.asarray(np.zeros((self._spec.slots + 1, self._spec.vocab_size), np.uint16))
        return self._counts


def _order(plan: StepPlan) -> list[int]:
    """The rows that sample, like next to like: what only some of them need is done for few."""
    sampling = [index for index, row in enumerate(plan.rows) if row.samples]
    return sorted(sampling, key=lambda at: (plan.rows[at].sampling.shaping is None, plan.rows[at].sampling.temperature))


def _make_sampler(
    spec: SamplerSpec,
) -> Callable[[Leaves, jax.Array, jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array, jax.Array]]:
    """``(leaves, last, last_token, counts, packed) -> (last_token, counts, sampled)``, the last one int32
    ``[rows, 1 + LOGPROB_COLUMNS]``."""

    def sample_rows(
        leaves: Leaves, last: jax.Array, last_token: jax.Array, counts: jax.Array, packed: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        model, inputs = spec.rebuild(leaves), unpack_rows(packed, spec.layout)
        sampling = inputs.slot < spec.slots
        live = up_to_last(sampling, LIVE_ROWS)
        hidden = last[inputs.at]

        def from_logits() -> tuple[jax.Array, jax.Array]:
            logits = model.logits(hidden, live)[:, : spec.vocab_size]
            return few_at_a_time(partial(_sample_rows, spec, counts), logits, packed, live=sampling)

        def greedy() -> tuple[jax.Array, jax.Array]:
            tokens = model.greedy(hidden, live, inputs.mask)
            return tokens, jnp.zeros((packed.shape[0], LOGPROB_COLUMNS), jnp.int32)

        tokens, reported = lax.cond(_is_plain(spec, inputs), greedy, from_logits)
        counts = count(counts, inputs.counted, tokens)
        return last_token.at[inputs.slot].set(tokens), counts, jnp.concatenate((tokens[:, None], reported), axis=1)

    return sample_rows


def _is_plain(spec: SamplerSpec, inputs: SampleRows) -> jax.Array:
    """Whether all rows are greedy, and nothing but masks shapes them: then a kernel needs no logits at all."""
    quiet = (inputs.sampling.temperature == 0) & (inputs.reports == 0) & (inputs.counted == spec.slots)
    return quiet.all() & (inputs.bias_ids == spec.vocab_size).all() & jnp.isnan(inputs.arguments).all()


def _sample_rows(
    spec: SamplerSpec, counts: jax.Array, raw: jax.Array, packed: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Tokens ``[rows]`` from logits ``[rows, vocab]``, and their logprobs, packed."""
    inputs = unpack_rows(packed, spec.layout)
    tokens = spec.sample(
        _shape(spec, raw, counts, inputs),
        inputs.sampling,
        vocab_size=spec.vocab_size,
    )
    reported: jax.Array = lax.cond(
        jnp.any(inputs.reports > 0),
        lambda: pack_logprobs(logprobs(raw, tokens, MAX_LOGPROBS)),
        lambda: jnp.zeros((packed.shape[0], LOGPROB_COLUMNS), jnp.int32),
    )
    return tokens, reported


def _shape(spec: SamplerSpec, logits: jax.Array, counts: jax.Array, inputs: SampleRows) -> jax.Array:
    """Masks, penalties, bias, the engine's processors, and the typical set; each only if one of the rows wants it."""

    def if_any(wanted: jax.Array, change: Callable[[jax.Array], jax.Array], logits: jax.Array) -> jax.Array:
        changed: jax.Array = lax.cond(jnp.any(wanted), change, lambda same: same, logits)
        return changed

    penalties = (inputs.repetition, inputs.frequency, inputs.presence)
    masked, counted = inputs.mask != np.uint32(0xFFFFFFFF), inputs.counted < spec.slots
    biased, processed = inputs.bias_ids < spec.vocab_size, ~jnp.isnan(inputs.arguments)
    typed = inputs.typical_p < 1

    def shape(logits: jax.Array) -> jax.Array:
        logits = if_any(masked, lambda x: allow(x, inputs.mask), logits)
        logits = if_any(counted, lambda x: penalize(x, counts[inputs.counted], *penalties), logits)
        logits = if_any(biased, lambda x: add_bias(x, inputs.bias_ids, inputs.biases), logits)
        for index, process in enumerate(spec.processors):
            logits = if_any(processed[:, index], _processed(process, inputs.arguments[:, index]), logits)
        return if_any(typed, lambda x: typical(x, inputs.sampling.temperature, inputs.typical_p), logits)

    # A branch that changes nothing copies all the same, so one more goes around the branches of each kind.
    wanted = masked.any() | counted.any() | biased.any() | processed.any() | typed.any()
    return if_any(wanted, shape, logits)


def _processed(process: LogitsProcessor, arguments: jax.Array) -> Callable[[jax.Array], jax.Array]:
    def change(logits: jax.Array) -> jax.Array:
        used = ~jnp.isnan(arguments)[:, None]
        changed = jax.vmap(process)(logits, jnp.nan_to_num(arguments))
        return jnp.where(used, changed.astype(logits.dtype), logits)

    return change


def _enter(counts: jax.Array, packed: jax.Array) -> jax.Array:
    return record(counts, packed[0], packed[3:], packed[1], packed[2] > 0)
