"""Draws apart from the forward pass: for rows whose logits are shaped before the draw, or reported after it.

A second dispatch after the step, over the hidden states it left. Masks that depend on the tokens drawn before are
computed by the host while the forward pass runs, so the device does not wait for them (`docs/architecture.md`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax import lax

from asurge.ops.attention import up_to_last
from asurge.ops.logits import LogitsProcessor, add_bias, allow, count, logprobs, penalize, record, typical
from asurge.ops.packed import LIVE_ROWS
from asurge.ops.sampling import Sampler, few_at_a_time, sample
from asurge.plan import MAX_LOGPROBS, History, StepPlan, TokenLogprobs
from asurge.runner.compilation import begin_fetch
from asurge.runner.sampling_inputs import (
    LOGPROB_COLUMNS,
    DrawInputs,
    DrawLayout,
    pack_logprobs,
    unpack_draws,
    unpack_logprobs,
)
from asurge.runner.step import Leaves, Rebuild

_HISTORY_CHUNK = 1024


@dataclasses.dataclass(frozen=True, slots=True)
class DrawShape:
    """How many rows a dispatch draws for."""

    draw_rows: int


@dataclasses.dataclass(frozen=True, slots=True)
class HistoryShape:
    """How many tokens a dispatch enters into one slot's counts."""

    history_tokens: int


Shape = DrawShape | HistoryShape


@dataclasses.dataclass(frozen=True)
class DrawSpec:
    """What all shapes of one engine's draws have in common. ``slots`` do not include the scratch slot."""

    rebuild: Rebuild
    vocab_size: int
    slots: int
    processors: tuple[LogitsProcessor, ...] = ()
    sample: Sampler = sample

    @property
    def layout(self) -> DrawLayout:
        """Layout of the packed rows."""
        return DrawLayout(self.vocab_size, self.slots, len(self.processors))


class Drawer:
    """Owns the counts of tokens by slot, and draws. The first draw allocates device memory for the counts."""

    def __init__(self, spec: DrawSpec) -> None:
        self._spec, self._layout = spec, spec.layout
        self.shapes = tuple(DrawShape(rows) for rows in sorted({min(8, max(spec.slots, 2)), max(spec.slots, 2)}))
        self._empty = {shape: self._layout.empty(shape.draw_rows) for shape in self.shapes}
        self._seen: jax.Array | None = None
        self._programs: Mapping[Shape, jax.stages.Compiled] = {}

    def programs(
        self, leaves: Leaves, last: jax.ShapeDtypeStruct, last_token: jax.Array
    ) -> dict[Shape, Callable[[], jax.stages.Lowered]]:
        """What is to be compiled, by shape."""
        spec = self._spec
        seen = jax.ShapeDtypeStruct((spec.slots + 1, spec.vocab_size), jnp.uint16)

        def lower(shape: DrawShape) -> jax.stages.Lowered:
            packed = jax.ShapeDtypeStruct((shape.draw_rows, self._layout.columns), jnp.int32)
            return jax.jit(_make_draw(spec), donate_argnums=(2, 3)).lower(leaves, last, last_token, seen, packed)

        def lower_history() -> jax.stages.Lowered:
            packed = jax.ShapeDtypeStruct((3 + _HISTORY_CHUNK,), jnp.int32)
            return jax.jit(_enter, donate_argnums=0).lower(seen, packed)

        programs: dict[Shape, Callable[[], jax.stages.Lowered]] = {one: partial(lower, one) for one in self.shapes}
        programs[HistoryShape(_HISTORY_CHUNK)] = lower_history
        return programs

    def use(self, programs: Mapping[Shape, jax.stages.Compiled]) -> None:
        """Take what was compiled; it may hold other programs too."""
        self._programs = programs

    def warm_up(self, leaves: Leaves, last: jax.Array, last_token: jax.Array) -> jax.Array:
        """Run every program once on padding alone; returns the last tokens, which are donated and unchanged."""
        self._enter_history(self._spec.slots, History(np.zeros(1, np.int32), 1))
        for shape in self.shapes:
            last_token, drawn = self._run(shape, leaves, last, last_token, self._empty[shape])
            drawn.block_until_ready()
        self.reset()
        return last_token

    def reset(self) -> None:
        """Forget all counts and give their memory back."""
        self._seen = None

    @property
    def is_lost(self) -> bool:
        """Whether a failed dispatch took the counts with it."""
        return self._seen is not None and self._seen.is_deleted()

    def draw(
        self,
        plan: StepPlan,
        drawn_at: npt.NDArray[np.int32],
        masks: npt.NDArray[np.uint32] | None,
        leaves: Leaves,
        last: jax.Array,
        last_token: jax.Array,
    ) -> tuple[jax.Array, jax.Array]:
        """Dispatch the draws of a plan.

        Args:
            drawn_at: for each plan row, the device row of ``last [rows, hidden]`` that it draws from.
            masks: see `asurge.plan.StepHandle.draw`.

        Returns:
            The last tokens by slot, and int32 ``[rows, ...]``, to be read by `read`.
        """
        drawing = _order(plan)
        shape = next(shape for shape in self.shapes if len(drawing) <= shape.draw_rows)
        packed = self._empty[shape].copy()
        for at, index in enumerate(drawing):
            row = plan.rows[index]
            if row.history is not None:
                self._enter_history(row.slot, row.history)
            self._layout.fill(packed[at], row, int(drawn_at[index]), None if masks is None else masks[index])
        return self._run(shape, leaves, last, last_token, packed)

    def read(self, plan: StepPlan, drawn: jax.Array) -> tuple[npt.NDArray[np.int32], TokenLogprobs | None]:
        """Wait for a plan's draws: tokens ``[rows, 1]``, and logprobs ``[rows]`` if any row asked."""
        drawing = _order(plan)
        host = np.zeros((len(plan.rows), 1 + LOGPROB_COLUMNS), np.int32)
        host[drawing] = np.asarray(drawn)[: len(drawing)]
        asked = any(row.sampling.shaping is not None and row.sampling.shaping.logprobs is not None for row in plan.rows)
        return host[:, :1], unpack_logprobs(host[:, 1:]) if asked else None

    def _enter_history(self, slot: int, history: History) -> None:
        """Count what a sequence holds when it comes to a slot."""
        tokens, prompt = history.token_ids, history.prompt
        for begin in range(0, len(tokens), _HISTORY_CHUNK):
            part = tokens[begin : begin + _HISTORY_CHUNK]
            packed = np.full(3 + _HISTORY_CHUNK, self._spec.vocab_size, np.int32)
            packed[:3] = slot, min(max(prompt - begin, 0), len(part)), begin == 0
            packed[3 : 3 + len(part)] = part
            self._seen = self._programs[HistoryShape(_HISTORY_CHUNK)](self._counts(), packed)

    def _run(
        self,
        shape: DrawShape,
        leaves: Leaves,
        last: jax.Array,
        last_token: jax.Array,
        packed: npt.NDArray[np.int32],
    ) -> tuple[jax.Array, jax.Array]:
        last_token, self._seen, drawn = self._programs[shape](leaves, last, last_token, self._counts(), packed)
        begin_fetch(drawn)
        return last_token, drawn

    def _counts(self) -> jax.Array:
        if self._seen is None:
            self._seen = jnp.asarray(np.zeros((self._spec.slots + 1, self._spec.vocab_size), np.uint16))
        return self._seen


def _order(plan: StepPlan) -> list[int]:
    """The rows that draw, like next to like: what only some of them need is done for few."""
    drawing = [index for index, row in enumerate(plan.rows) if row.samples]
    return sorted(drawing, key=lambda at: (plan.rows[at].sampling.shaping is None, plan.rows[at].sampling.temperature))


def _make_draw(
    spec: DrawSpec,
) -> Callable[[Leaves, jax.Array, jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array, jax.Array]]:
    """``(leaves, last, last_token, seen, packed) -> (last_token, seen, drawn)``, the last one int32
    ``[rows, 1 + LOGPROB_COLUMNS]``."""

    def draw(
        leaves: Leaves, last: jax.Array, last_token: jax.Array, seen: jax.Array, packed: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        model, inputs = spec.rebuild(leaves), unpack_draws(packed, spec.layout)
        drawing = inputs.slot < spec.slots
        live = up_to_last(drawing, LIVE_ROWS)
        hidden = last[inputs.at]

        def draw() -> tuple[jax.Array, jax.Array]:
            logits = model.logits(hidden, live)[:, : spec.vocab_size]
            return few_at_a_time(partial(_draw, spec, seen), logits, packed, live=drawing)

        def greedy() -> tuple[jax.Array, jax.Array]:
            tokens = model.greedy(hidden, live, inputs.mask)
            return tokens, jnp.zeros((packed.shape[0], LOGPROB_COLUMNS), jnp.int32)

        tokens, told = lax.cond(_is_plain(spec, inputs), greedy, draw)
        seen = count(seen, inputs.counted, tokens)
        return last_token.at[inputs.slot].set(tokens), seen, jnp.concatenate((tokens[:, None], told), axis=1)

    return draw


def _is_plain(spec: DrawSpec, inputs: DrawInputs) -> jax.Array:
    """Whether all rows are greedy, and nothing but masks shapes them: then a kernel needs no logits at all."""
    quiet = (inputs.temperature == 0) & (inputs.tells == 0) & (inputs.counted == spec.slots)
    return quiet.all() & (inputs.bias_ids == spec.vocab_size).all() & jnp.isnan(inputs.arguments).all()


def _draw(spec: DrawSpec, seen: jax.Array, raw: jax.Array, packed: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Tokens ``[rows]`` from logits ``[rows, vocab]``, and their logprobs, packed."""
    inputs = unpack_draws(packed, spec.layout)
    tokens = spec.sample(
        _shape(spec, raw, seen, inputs),
        inputs.temperature,
        inputs.top_k,
        inputs.top_p,
        inputs.min_p,
        inputs.seed,
        inputs.position,
        vocab_size=spec.vocab_size,
    )
    told: jax.Array = lax.cond(
        jnp.any(inputs.tells > 0),
        lambda: pack_logprobs(logprobs(raw, tokens, MAX_LOGPROBS)),
        lambda: jnp.zeros((packed.shape[0], LOGPROB_COLUMNS), jnp.int32),
    )
    return tokens, told


def _shape(spec: DrawSpec, logits: jax.Array, seen: jax.Array, inputs: DrawInputs) -> jax.Array:
    """Masks, penalties, bias, the engine's processors, and the typical set; each only if one of the rows asks."""

    def if_any(wanted: jax.Array, change: Callable[[jax.Array], jax.Array], logits: jax.Array) -> jax.Array:
        changed: jax.Array = lax.cond(jnp.any(wanted), change, lambda same: same, logits)
        return changed

    penalties = (inputs.repetition, inputs.frequency, inputs.presence)
    masked, counted = inputs.mask != np.uint32(0xFFFFFFFF), inputs.counted < spec.slots
    biased, processed = inputs.bias_ids < spec.vocab_size, ~jnp.isnan(inputs.arguments)
    typed = inputs.typical_p < 1

    def shape(logits: jax.Array) -> jax.Array:
        logits = if_any(masked, lambda x: allow(x, inputs.mask), logits)
        logits = if_any(counted, lambda x: penalize(x, seen[inputs.counted], *penalties), logits)
        logits = if_any(biased, lambda x: add_bias(x, inputs.bias_ids, inputs.biases), logits)
        for index, process in enumerate(spec.processors):
            logits = if_any(processed[:, index], _processed(process, inputs.arguments[:, index]), logits)
        return if_any(typed, lambda x: typical(x, inputs.temperature, inputs.typical_p), logits)

    # A branch that changes nothing copies all the same, so one more goes around the branches of each kind.
    wanted = masked.any() | counted.any() | biased.any() | processed.any() | typed.any()
    return if_any(wanted, shape, logits)


def _processed(process: LogitsProcessor, arguments: jax.Array) -> Callable[[jax.Array], jax.Array]:
    def change(logits: jax.Array) -> jax.Array:
        used = ~jnp.isnan(arguments)[:, None]
        changed = jax.vmap(process)(logits, jnp.nan_to_num(arguments))
        return jnp.where(used, changed.astype(logits.dtype), logits)

    return change


def _enter(seen: jax.Array, packed: jax.Array) -> jax.Array:
    return record(seen, packed[0], packed[3:], packed[1], packed[2] > 0)
