"""The inputs of a dispatch of draws as one int32 array, and what it reports as another: one upload, one download.

Layout of a row: fields, arguments of the engine's logits processors, the mask of allowed tokens, ids of biased tokens and their
biases. Floats travel as their bit patterns.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax import lax

from asurge.ops.logits import Logprobs
from asurge.plan import MAX_LOGIT_BIAS, MAX_LOGPROBS, PlanRow, Shaping, TokenLogprobs, mask_words
from asurge.runner.step_inputs import fold_seed

_INTEGERS = ("at", "slot", "counted", "position", "top_k", "seed", "tells")
_FLOATS = ("temperature", "top_p", "min_p", "typical_p", "repetition", "frequency", "presence")
_FIELDS = {name: index for index, name in enumerate(_INTEGERS + _FLOATS)}
_UNUSED = float("nan")
"""The argument of a logits processor that a row does not use."""

LOGPROB_COLUMNS = 2 + 2 * MAX_LOGPROBS
"""Columns of a sampled token: its logprob and rank, and the likeliest tokens and their logprobs."""


@dataclasses.dataclass(frozen=True, slots=True)
class DrawLayout:
    """Where things are in a packed row. ``slots`` do not include the scratch slot, which takes what counts for nobody.

    Attributes:
        processors: how many logits processors the engine has.
    """

    vocab_size: int
    slots: int
    processors: int = 0

    @property
    def arguments(self) -> slice:
        """Columns of the logits processors."""
        return slice(len(_FIELDS), len(_FIELDS) + self.processors)

    @property
    def mask(self) -> slice:
        """Mask of allowed tokens (`asurge.plan.MASK_BITS`)."""
        begin = self.arguments.stop
        return slice(begin, begin + mask_words(self.vocab_size))

    @property
    def bias_ids(self) -> slice:
        """Tokens that have a bias; the vocabulary's size where there are fewer than fit."""
        return slice(self.mask.stop, self.mask.stop + MAX_LOGIT_BIAS)

    @property
    def biases(self) -> slice:
        """What is added to their logits."""
        return slice(self.bias_ids.stop, self.bias_ids.stop + MAX_LOGIT_BIAS)

    @property
    def columns(self) -> int:
        """Elements of a packed row."""
        return self.biases.stop

    def empty(self, rows: int) -> npt.NDArray[np.int32]:
        """Rows whose draws do not count."""
        packed = np.zeros((rows, self.columns), np.int32)
        floats = packed.view(np.float32)
        packed[:, [_FIELDS["slot"], _FIELDS["counted"]]] = self.slots
        floats[:, [_FIELDS["top_p"], _FIELDS["typical_p"], _FIELDS["repetition"]]] = 1.0
        floats[:, self.arguments] = _UNUSED
        packed[:, self.mask] = -1
        packed[:, self.bias_ids] = self.vocab_size
        return packed

    def fill(self, packed: npt.NDArray[np.int32], row: PlanRow, at: int, mask: npt.NDArray[np.uint32] | None) -> None:
        """What a row asks for, in a row of `empty`; what it does not ask for stays neutral.

        Args:
            at: the device row whose hidden state it draws from.
            mask: of allowed tokens; None allows all.
        """
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
            self._fill_shaping(packed, row.slot, sampling.shaping)
            if mask is not None and sampling.shaping.masked:
                packed[self.mask] = mask.view(np.int32)

    def _fill_shaping(self, packed: npt.NDArray[np.int32], slot: int, shaping: Shaping) -> None:
        floats = packed.view(np.float32)
        packed[_FIELDS["tells"]] = shaping.logprobs is not None
        floats[_FIELDS["typical_p"]] = shaping.typical_p
        if shaping.counts:
            packed[_FIELDS["counted"]] = slot
            floats[_FIELDS["repetition"]] = shaping.repetition_penalty
            floats[_FIELDS["frequency"]] = shaping.frequency_penalty
            floats[_FIELDS["presence"]] = shaping.presence_penalty
        for index, argument in shaping.processors:
            floats[self.arguments][index] = argument
        if shaping.logit_bias:
            ids, biases = zip(*shaping.logit_bias, strict=True)
            packed[self.bias_ids][: len(ids)] = ids
            floats[self.biases][: len(biases)] = biases


@dataclasses.dataclass(frozen=True, slots=True)
class DrawInputs:
    """Packed rows, unpacked on the device: ``[rows]`` each, unless stated otherwise.

    Attributes:
        at: the row of the hidden states to draw from.
        slot: where the drawn token is written; the scratch slot if it counts for nobody.
        counted: the slot whose counts penalise tokens and take in what is drawn; the scratch slot if none do.
        position: of the token to be drawn in its sequence.
        seed: uint32.
        tells: whether logprobs are asked for.
        arguments: float32 ``[rows, processors]``; NaN where a processor is not used.
        mask: uint32 ``[rows, words]``.
        bias_ids, biases: ``[rows, MAX_LOGIT_BIAS]``.
    """

    at: jax.Array
    slot: jax.Array
    counted: jax.Array
    position: jax.Array
    top_k: jax.Array
    seed: jax.Array
    tells: jax.Array
    temperature: jax.Array
    top_p: jax.Array
    min_p: jax.Array
    typical_p: jax.Array
    repetition: jax.Array
    frequency: jax.Array
    presence: jax.Array
    arguments: jax.Array
    mask: jax.Array
    bias_ids: jax.Array
    biases: jax.Array


def unpack_draws(packed: jax.Array, layout: DrawLayout) -> DrawInputs:
    """The inverse of `DrawLayout.fill`, on the device."""
    floats = lax.bitcast_convert_type(packed, jnp.float32)
    fields = {name: packed[:, _FIELDS[name]] for name in _INTEGERS} | {
        name: floats[:, _FIELDS[name]] for name in _FLOATS
    }
    fields["seed"] = lax.bitcast_convert_type(fields["seed"], jnp.uint32)
    return DrawInputs(
        **fields,
        arguments=floats[:, layout.arguments],
        mask=lax.bitcast_convert_type(packed[:, layout.mask], jnp.uint32),
        bias_ids=packed[:, layout.bias_ids],
        biases=floats[:, layout.biases],
    )


def pack_logprobs(found: Logprobs) -> jax.Array:
    """int32 ``[rows, 2 + 2 * n]``."""
    chosen, values = (lax.bitcast_convert_type(part, jnp.int32) for part in (found.chosen, found.values))
    return jnp.concatenate((chosen[:, None], found.rank[:, None], found.ids, values), axis=1)


def unpack_logprobs(packed: npt.NDArray[np.int32]) -> TokenLogprobs:
    """The inverse of `pack_logprobs`, on the host."""
    number = (packed.shape[1] - 2) // 2
    floats = np.ascontiguousarray(packed).view(np.float32)
    return TokenLogprobs(floats[:, 0], packed[:, 1], packed[:, 2 : 2 + number], floats[:, 2 + number :])
