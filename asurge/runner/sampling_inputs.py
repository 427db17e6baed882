"""The inputs of a dispatch that samples as one int32 array, and what it reports as another: one upload, one download.

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
from asurge.ops.sampling import SamplingInputs
from asurge.plan import MAX_LOGIT_BIAS, MAX_LOGPROBS, LogitsShaping, PlanRow, TokenLogprobs, mask_words
from asurge.runner.packed_fields import SAMPLING_TYPES, PackedFields, Views

FIELDS = PackedFields(
    dict.fromkeys(("at", "slot", "counted", "position", "reports"), np.int32)
    | SAMPLING_TYPES
    | dict.fromkeys(("typical_p", "repetition", "frequency", "presence"), np.float32)
)
_UNUSED = float("nan")
"""The argument of a logits processor that a row does not use."""

LOGPROB_COLUMNS = 2 + 2 * MAX_LOGPROBS
"""Columns of a sampled token: its logprob and rank, and the likeliest tokens and their logprobs."""


@dataclasses.dataclass(frozen=True, slots=True)
class SampleLayout:
    """Layout of a packed row.

    ``slots`` do not include the scratch slot, which takes what counts for nobody.

    Attributes:
        processors: how many logits processors the engine has.
    """

    vocab_size: int
    slots: int
    processors: int = 0

    @property
    def arguments(self) -> slice:
        """Columns of the logits processors."""
        return slice(len(FIELDS), len(FIELDS) + self.processors)

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
        """Logit biases of a packed row."""
        return slice(self.bias_ids.stop, self.bias_ids.stop + MAX_LOGIT_BIAS)

    @property
    def columns(self) -> int:
        """Elements of a packed row."""
        return self.biases.stop

    def empty(self, rows: int) -> npt.NDArray[np.int32]:
        """Rows whose tokens count for nobody."""
        packed = np.zeros((rows, self.columns), np.int32)
        views = FIELDS.views(packed)
        FIELDS.write(views, slice(None), slot=self.slots, counted=self.slots, top_p=1.0, typical_p=1.0, repetition=1.0)
        views[np.float32][:, self.arguments] = _UNUSED
        packed[:, self.mask] = -1
        packed[:, self.bias_ids] = self.vocab_size
        return packed

    def fill(self, views: Views, index: int, row: PlanRow, at: int, mask: npt.NDArray[np.uint32] | None) -> None:
        """Write a row's parameters into one of the rows of `empty`; parameters that it does not use stay neutral.

        Args:
            views: of the packed rows (`FIELDS`).
            index: which of them.
            at: the device row whose hidden state it samples from.
            mask: of allowed tokens; None allows all.
        """
        sampling = row.sampling
        FIELDS.write(views, index, at=at, slot=row.slot)
        if sampling.temperature > 0:
            FIELDS.write(views, index, position=row.start + row.num_tokens)
            FIELDS.write_sampling(views, index, sampling)
        if sampling.shaping is not None:
            self._fill_shaping(views, index, row.slot, sampling.shaping)
            if mask is not None and sampling.shaping.masked:
                views[np.uint32][index, self.mask] = mask

    def _fill_shaping(self, views: Views, index: int, slot: int, shaping: LogitsShaping) -> None:
        FIELDS.write(views, index, reports=shaping.logprobs is not None, typical_p=shaping.typical_p)
        if shaping.counts:
            FIELDS.write(
                views,
                index,
                counted=slot,
                repetition=shaping.repetition_penalty,
                frequency=shaping.frequency_penalty,
                presence=shaping.presence_penalty,
            )
        integers, floats = views[np.int32][index], views[np.float32][index]
        for processor, argument in shaping.processors:
            floats[self.arguments][processor] = argument
        if shaping.logit_bias:
            ids, biases = zip(*shaping.logit_bias, strict=True)
            integers[self.bias_ids][: len(ids)] = ids
            floats[self.biases][: len(biases)] = biases


@dataclasses.dataclass(frozen=True, slots=True)
class SampleRows:
    """Packed rows, unpacked on the device: ``[rows]`` each, unless stated otherwise.

    Attributes:
        at: the row of the hidden states to sample from.
        slot: where the sampled token is written; the scratch slot if it counts for nobody.
        counted: the slot whose counts penalise tokens and take in the sampled token; the scratch slot if none do.
        sampling: how the token is sampled.
        reports: whether logprobs are wanted.
        arguments: float32 ``[rows, processors]``; NaN where a processor is not used.
        mask: uint32 ``[rows, words]``.
        bias_ids, biases: ``[rows, MAX_LOGIT_BIAS]``.
    """

    at: jax.Array
    slot: jax.Array
    counted: jax.Array
    sampling: SamplingInputs
    reports: jax.Array
    typical_p: jax.Array
    repetition: jax.Array
    frequency: jax.Array
    presence: jax.Array
    arguments: jax.Array
    mask: jax.Array
    bias_ids: jax.Array
    biases: jax.Array


def unpack_rows(packed: jax.Array, layout: SampleLayout) -> SampleRows:
    """The inverse of `SampleLayout.fill`, on the device."""
    fields, floats = FIELDS.unpack(packed[:, : len(FIELDS)]), lax.bitcast_convert_type(packed, jnp.float32)
    sampling = {name: fields.pop(name) for name in SamplingInputs._fields}
    return SampleRows(
        **fields,
        sampling=SamplingInputs(**sampling),
        arguments=floats[:, layout.arguments],
        mask=lax.bitcast_convert_type(packed[:, layout.mask], jnp.uint32),
        bias_ids=packed[:, layout.bias_ids],
        biases=floats[:, layout.biases],
    )


def pack_logprobs(found: Logprobs) -> jax.Array:
    """Pack logprobs into one array, int32 ``[rows, 2 + 2 * n]``."""
    chosen, values = (lax.bitcast_convert_type(part, jnp.int32) for part in (found.chosen, found.values))
    return jnp.concatenate((chosen[:, None], found.rank[:, None], found.ids, values), axis=1)


def unpack_logprobs(packed: npt.NDArray[np.int32]) -> TokenLogprobs:
    """The inverse of `pack_logprobs`, on the host."""
    number = (packed.shape[1] - 2) // 2
    floats = np.ascontiguousarray(packed).view(np.float32)
    return TokenLogprobs(floats[:, 0], packed[:, 1], packed[:, 2 : 2 + number], floats[:, 2 + number :])
