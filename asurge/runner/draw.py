"""Draws apart from the forward pass: for rows whose logits are shaped before the draw, or told about after it.

A second dispatch behind the step, over the hidden states it left. Masks that depend on the tokens drawn before are
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
from asurge.ops.packed import LIVE_ROWS
from asurge.ops.sampling import few_at_a_time, sample
from asurge.ops.shaping import (
    MASK_BITS,
    LogitsProcessor,
    Logprobs,
    add_bias,
    allow,
    count,
    logprobs,
    penalize,
    record,
    typical,
)
from asurge.plan import MAX_LOGIT_BIAS, MAX_LOGPROBS, History, PlanRow, Shaping, StepPlan, TokenLogprobs
from asurge.runner.packing import fold_seed
from asurge.runner.step import Leaves, Rebuild

_INTEGERS = ("at", "slot", "counted", "position", "top_k", "seed", "told")
_FLOATS = ("temperature", "top_p", "min_p", "typical_p", "repetition", "frequency", "presence")
_FIELDS = {name: index for index, name in enumerate(_INTEGERS + _FLOATS)}
_TOLD = 3 + 2 * MAX_LOGPROBS
"""Of each row: token, its logprob and rank, and the likeliest tokens and their logprobs."""

_HISTORY_CHUNK = 1024
_UNUSED = float("nan")
"""The argument of a logits processor that a row does not use."""


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

    @property
    def words(self) -> int:
        """Of a mask of allowed tokens."""
        return -(-self.vocab_size // MASK_BITS)

    @property
    def columns(self) -> int:
        """Elements of a packed row."""
        return len(_FIELDS) + len(self.processors) + self.words + 2 * MAX_LOGIT_BIAS


class Drawer:
    """Owns the counts of tokens by slot, and draws. Device memory for the counts is taken by the first draw."""

    def __init__(self, spec: DrawSpec) -> None:
        self._spec = spec
        self.shapes = tuple(DrawShape(rows) for rows in sorted({min(8, max(spec.slots, 2)), max(spec.slots, 2)}))
        self._empty = {shape: _empty(spec, shape) for shape in self.shapes}
        self._seen: jax.Array | None = None
        self._programs: Mapping[Shape, jax.stages.Compiled] = {}

    def programs(
        self, leaves: Leaves, last: jax.ShapeDtypeStruct, last_token: jax.Array
    ) -> dict[Shape, Callable[[], jax.stages.Lowered]]:
        """What is to be compiled, by shape."""
        spec = self._spec
        seen = jax.ShapeDtypeStruct((spec.slots + 1, spec.vocab_size), jnp.uint16)

        def lower(shape: DrawShape) -> jax.stages.Lowered:
            packed = jax.ShapeDtypeStruct((shape.draw_rows, spec.columns), jnp.int32)
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
            last_token, told = self._run(shape, leaves, last, last_token, self._empty[shape])
            told.block_until_ready()
        self.reset()
        return last_token

    def reset(self) -> None:
        """Forget all counts and give their memory back."""
        self._seen = None

    @property
    def is_lost(self) -> bool:
        """Whether a failed dispatch took the counts along."""
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
            drawn_at: for each plan row the device row of ``last [rows, hidden]`` that it draws from.
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
            _fill(packed[at], row, int(drawn_at[index]))
            if masks is not None and row.sampling.shaping is not None and row.sampling.shaping.masked:
                _mask_of(packed[at], self._spec)[:] = masks[index].view(np.int32)
        return self._run(shape, leaves, last, last_token, packed)

    def read(self, plan: StepPlan, told: jax.Array) -> tuple[npt.NDArray[np.int32], TokenLogprobs | None]:
        """Wait for a plan's draws: tokens ``[rows, 1]``, and logprobs ``[rows]`` if any row asked."""
        fresh = np.asarray(told)
        host = np.zeros((len(plan.rows), _TOLD), np.int32)
        drawing = _order(plan)
        host[drawing] = fresh[: len(drawing)]
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
        last_token, self._seen, told = self._programs[shape](leaves, last, last_token, self._counts(), packed)
        told.copy_to_host_async()
        return last_token, told

    def _counts(self) -> jax.Array:
        if self._seen is None:
            self._seen = jnp.asarray(np.zeros((self._spec.slots + 1, self._spec.vocab_size), np.uint16))
        return self._seen


def _empty(spec: DrawSpec, shape: DrawShape) -> npt.NDArray[np.int32]:
    """Rows that draw nothing that counts."""
    packed = np.zeros((shape.draw_rows, spec.columns), np.int32)
    floats = packed.view(np.float32)
    packed[:, [_FIELDS["slot"], _FIELDS["counted"]]] = spec.slots
    floats[:, [_FIELDS["top_p"], _FIELDS["typical_p"], _FIELDS["repetition"]]] = 1.0
    begin = len(_FIELDS) + len(spec.processors)
    floats[:, len(_FIELDS) : begin] = _UNUSED
    packed[:, begin : begin + spec.words] = -1
    packed[:, -2 * MAX_LOGIT_BIAS : -MAX_LOGIT_BIAS] = spec.vocab_size
    return packed


def _order(plan: StepPlan) -> list[int]:
    """The rows that draw, like beside like: what only some of them need is done for few."""
    drawing = [index for index, row in enumerate(plan.rows) if row.samples]
    return sorted(drawing, key=lambda at: (plan.rows[at].sampling.shaping is None, plan.rows[at].sampling.temperature))


def _mask_of(packed: npt.NDArray[np.int32], spec: DrawSpec) -> npt.NDArray[np.int32]:
    begin = len(_FIELDS) + len(spec.processors)
    return packed[begin : begin + spec.words]


def _fill(packed: npt.NDArray[np.int32], row: PlanRow, at: int) -> None:
    """What a row asks for; the rest of an empty row stays neutral."""
    sampling, floats = row.sampling, packed.view(np.float32)
    packed[_FIELDS["at"]], packed[_FIELDS["slot"]] = at, row.slot
    if sampling.temperature > 0:
        packed[_FIELDS["position"]] = row.start + row.num_tokens
        packed[_FIELDS["top_k"]] = sampling.top_k
        packed.view(np.uint32)[_FIELDS["seed"]] = fold_seed(sampling.seed)
        floats[_FIELDS["temperature"]] = sampling.temperature
        floats[_FIELDS["top_p"]] = sampling.top_p
        floats[_FIELDS["min_p"]] = sampling.min_p
    if sampling.shaping is not None:
        _fill_shaping(packed, floats, row.slot, sampling.shaping)


def _fill_shaping(packed: npt.NDArray[np.int32], floats: npt.NDArray[np.float32], slot: int, shaping: Shaping) -> None:
    packed[_FIELDS["told"]] = shaping.logprobs is not None
    floats[_FIELDS["typical_p"]] = shaping.typical_p
    if shaping.counts:
        packed[_FIELDS["counted"]] = slot
        floats[_FIELDS["repetition"]] = shaping.repetition_penalty
        floats[_FIELDS["frequency"]] = shaping.frequency_penalty
        floats[_FIELDS["presence"]] = shaping.presence_penalty
    for index, argument in shaping.processors:
        floats[len(_FIELDS) + index] = argument
    if shaping.logit_bias:
        ids, biases = zip(*shaping.logit_bias, strict=True)
        packed[-2 * MAX_LOGIT_BIAS :][: len(ids)] = ids
        floats[-MAX_LOGIT_BIAS:][: len(biases)] = biases


def _make_draw(
    spec: DrawSpec,
) -> Callable[[Leaves, jax.Array, jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array, jax.Array]]:
    """``(leaves, last, last_token, seen, packed) -> (last_token, seen, told [rows, _TOLD])``."""

    def draw(
        leaves: Leaves, last: jax.Array, last_token: jax.Array, seen: jax.Array, packed: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        model, rows = spec.rebuild(leaves), packed.shape[0]
        given = {name: packed[:, _FIELDS[name]] for name in _INTEGERS}
        given |= {name: _floats(packed[:, _FIELDS[name]]) for name in _FLOATS}
        drawing = given["slot"] < spec.slots
        live = up_to_last(drawing, LIVE_ROWS)
        hidden = last[given["at"]]

        def draw() -> tuple[jax.Array, jax.Array]:
            logits = model.logits(hidden, live)[:, : spec.vocab_size]
            return few_at_a_time(partial(_draw, spec, seen), logits, packed, live=drawing)

        def greedy() -> tuple[jax.Array, jax.Array]:
            return model.greedy(hidden, live, _words(spec, packed)), jnp.zeros((rows, _TOLD - 1), jnp.int32)

        tokens, told = lax.cond(_is_plain(spec, packed, given), greedy, draw)
        seen = count(seen, given["counted"], tokens)
        return last_token.at[given["slot"]].set(tokens), seen, jnp.concatenate((tokens[:, None], told), axis=1)

    return draw


def _is_plain(spec: DrawSpec, packed: jax.Array, given: dict[str, jax.Array]) -> jax.Array:
    """Whether all rows are greedy, and nothing but masks shapes them: then a kernel needs no logits at all."""
    ids, arguments = packed[:, -2 * MAX_LOGIT_BIAS : -MAX_LOGIT_BIAS], _arguments(spec, packed)
    quiet = (given["temperature"] == 0) & (given["told"] == 0) & (given["counted"] == spec.slots)
    return quiet.all() & (ids == spec.vocab_size).all() & jnp.isnan(arguments).all()


def _words(spec: DrawSpec, packed: jax.Array) -> jax.Array:
    """The masks, uint32 ``[rows, vocab / 32]``."""
    begin = len(_FIELDS) + len(spec.processors)
    return lax.bitcast_convert_type(packed[:, begin : begin + spec.words], jnp.uint32)


def _arguments(spec: DrawSpec, packed: jax.Array) -> jax.Array:
    """Those of the logits processors, ``[rows, processors]``."""
    return _floats(packed[:, len(_FIELDS) : len(_FIELDS) + len(spec.processors)])


def _draw(spec: DrawSpec, seen: jax.Array, raw: jax.Array, packed: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Tokens ``[rows]`` from logits ``[rows, vocab]``, and their logprobs, packed."""
    given = {name: packed[:, _FIELDS[name]] for name in _INTEGERS}
    given |= {name: _floats(packed[:, _FIELDS[name]]) for name in _FLOATS}
    tokens = sample(
        _shape(spec, raw, seen, packed, given),
        given["temperature"],
        given["top_k"],
        given["top_p"],
        given["min_p"],
        lax.bitcast_convert_type(given["seed"], jnp.uint32),
        given["position"],
        vocab_size=spec.vocab_size,
    )
    told: jax.Array = lax.cond(
        jnp.any(given["told"] > 0),
        lambda: pack_logprobs(logprobs(raw, tokens, MAX_LOGPROBS)),
        lambda: jnp.zeros((packed.shape[0], _TOLD - 1), jnp.int32),
    )
    return tokens, told


def _shape(
    spec: DrawSpec, logits: jax.Array, seen: jax.Array, packed: jax.Array, given: dict[str, jax.Array]
) -> jax.Array:
    """Masks, penalties, bias, the engine's processors, and the typical set; each only if one of the rows asks."""
    arguments, words = _arguments(spec, packed), _words(spec, packed)
    ids, biases = packed[:, -2 * MAX_LOGIT_BIAS : -MAX_LOGIT_BIAS], _floats(packed[:, -MAX_LOGIT_BIAS:])
    slot, temperature = given["counted"], given["temperature"]

    def if_any(wanted: jax.Array, change: Callable[[jax.Array], jax.Array], logits: jax.Array) -> jax.Array:
        changed: jax.Array = lax.cond(jnp.any(wanted), change, lambda same: same, logits)
        return changed

    penalties = (given["repetition"], given["frequency"], given["presence"])
    masked, counted, biased = words != np.uint32(0xFFFFFFFF), slot < spec.slots, ids < spec.vocab_size
    processed, typed = ~jnp.isnan(arguments), given["typical_p"] < 1

    def shape(logits: jax.Array) -> jax.Array:
        logits = if_any(masked, lambda x: allow(x, words), logits)
        logits = if_any(counted, lambda x: penalize(x, seen[slot], *penalties), logits)
        logits = if_any(biased, lambda x: add_bias(x, ids, biases), logits)
        for index, process in enumerate(spec.processors):
            logits = if_any(processed[:, index], _processed(process, arguments[:, index]), logits)
        return if_any(typed, lambda x: typical(x, temperature, given["typical_p"]), logits)

    # A branch that changes nothing copies all the same, so there is one around those of each kind.
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


def _floats(bits: jax.Array) -> jax.Array:
    return lax.bitcast_convert_type(bits, jnp.float32)


def pack_logprobs(told: Logprobs) -> jax.Array:
    """int32 ``[rows, 2 + 2 * n]``: one array to download."""
    chosen, values = (lax.bitcast_convert_type(part, jnp.int32) for part in (told.chosen, told.values))
    return jnp.concatenate((chosen[:, None], told.rank[:, None], told.ids, values), axis=1)


def unpack_logprobs(told: npt.NDArray[np.int32]) -> TokenLogprobs:
    """The inverse of `pack_logprobs`, on the host."""
    number = (told.shape[1] - 2) // 2
    floats = np.ascontiguousarray(told).view(np.float32)
    return TokenLogprobs(floats[:, 0], told[:, 1], told[:, 2 : 2 + number], floats[:, 2 + number :])
