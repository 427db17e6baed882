"""Named fields of the rows of an int32 array, in which floats and unsigned numbers travel as their bit patterns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import numpy.typing as npt
from jax import lax

from asurge.plan import RowSampling

SAMPLING_TYPES: dict[str, type[np.generic]] = {
    "temperature": np.float32,
    "top_k": np.int32,
    "top_p": np.float32,
    "min_p": np.float32,
    "seed": np.uint32,
}
"""The fields of `asurge.ops.sampling.SamplingInputs` that rows bring along, as fields of `asurge.plan.RowSampling`."""

Views = Mapping[type[np.generic], npt.NDArray[Any]]
"""Packed rows ``[rows, fields]``, by the type in which their fields are written."""


class PackedFields:
    """Offset and type of each field in a packed row."""

    def __init__(self, types: Mapping[str, type[np.generic]]) -> None:
        self._types = dict(types)
        self._index = {name: index for index, name in enumerate(types)}
        self._sampling = [(name, kind, self._index[name]) for name, kind in SAMPLING_TYPES.items()]

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, name: str) -> int:
        """The index of a field."""
        return self._index[name]

    def views(self, packed: npt.NDArray[np.int32]) -> Views:
        """Rows to be written, with `write` and `write_sampling`."""
        return {np.int32: packed, np.uint32: packed.view(np.uint32), np.float32: packed.view(np.float32)}

    def write(self, views: Views, row: int | slice, **values: Any) -> None:
        """Write some fields of a row, or the same in several."""
        for name, value in values.items():
            views[self._types[name]][row, self._index[name]] = value

    def write_sampling(self, views: Views, row: int, sampling: RowSampling) -> None:
        """Write how the next token of a row is sampled."""
        for name, kind, index in self._sampling:
            views[kind][row, index] = getattr(sampling, name)

    def unpack(self, packed: jax.Array) -> dict[str, jax.Array]:
        """All fields ``[rows]`` of packed rows ``[rows, fields]``, in their types, on the device."""
        return {name: _as_type(packed[:, index], self._types[name]) for name, index in self._index.items()}


def _as_type(values: jax.Array, kind: type[np.generic]) -> jax.Array:
    return values if kind is np.int32 else lax.bitcast_convert_type(values, kind)
