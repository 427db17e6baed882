"""The interface of storage formats of weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, Unpack

import jax
import numpy as np

from asurge.ops.grouped import MatrixType, RawMatrix
from asurge.ops.packed import Choice, Surroundings

Parts = Mapping[str, jax.Array]
"""The arrays in which a format keeps weights of several layers, by name."""


class RawSource(Protocol):
    """A weight ``[columns, depth]`` that is still in its checkpoint."""

    shape: tuple[int, ...]

    def read_into(self, host: np.ndarray) -> None:
        """Read it as floating-point numbers."""
        ...

    def raw_types(self) -> list[MatrixType] | None:
        """The matrices it consists of, one below the other; None where any has no type of the kernels."""
        ...

    def raw(self) -> list[RawMatrix]:
        """These matrices as they are stored."""
        ...

    def note_read(self) -> None:
        """Count it as read, where it was read by its `raw` matrices."""
        ...


class WeightFormat(Protocol):
    """A storage format of weights for the CPU kernels, with its products.

    Attributes:
        name: as people know it.
        depth: what the depth of a product must be a multiple of.
        looks_up: whether a table in this format can also be an embedding.
    """

    name: str
    depth: int
    looks_up: bool

    @property
    def head(self) -> WeightFormat:
        """The format of the head, and of an embedding that is also the head."""
        ...

    def pack(self, weights: Sequence[jax.Array | RawSource], *, gated: bool, free: bool = True) -> Parts:
        """Pack weights ``[columns, depth]`` of layers that do the same, in the order in which products read them.

        Args:
            gated: columns are gates and as many that they are for.
            free: free those that are on the device.
        """
        ...

    def linear(self, x: jax.Array, parts: Parts, **surroundings: Unpack[Surroundings]) -> jax.Array:
        """``x [rows, depth]`` by the weights of a layer, with its `Surroundings`."""
        ...

    def argmax(self, x: jax.Array, parts: Parts, *, candidates: int, **choice: Unpack[Choice]) -> jax.Array:
        """The column with the largest product for each row, int32 ``[rows]``, as `Choice` says."""
        ...

    def take(self, parts: Parts, tokens: jax.Array, depth: int) -> jax.Array:
        """Rows of a table that is also an embedding: bf16 ``[tokens, depth]``."""
        ...

    def read_bytes(self, columns: int, depth: int, item_bytes: int) -> int:
        """Bytes that a product reads of a weight whose numbers have ``item_bytes`` where they are not quantised."""
        ...
