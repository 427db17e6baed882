"""The interface of storage formats of weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypedDict

import jax
import jax.numpy as jnp
import numpy as np

from asurge.ops.grouped import RawMatrix
from asurge.ops.norm import Activation

Parts = Mapping[str, jax.Array]
"""The arrays in which a format keeps weights of several layers, by name."""


class RawSource(Protocol):
    """A weight ``[columns, depth]`` that is still in its checkpoint."""

    shape: tuple[int, ...]

    def read_into(self, host: np.ndarray) -> None:
        """Read it as floating-point numbers."""
        ...

    def raw(self) -> list[RawMatrix] | None:
        """The matrices it consists of, one below the other, as they are stored; None where they are floating-point numbers."""
        ...

    def note_read(self) -> None:
        """Count it as read, where it was read by its `raw` matrices."""
        ...


class Surroundings(TypedDict, total=False):
    """Operations that a kernel fuses before and after a product; see `asurge.ops.packed.packed_linear`."""

    norm: jax.Array | None
    epsilon: float
    bias: jax.Array | None
    residual: jax.Array | None
    live: jax.Array | None
    gated: bool
    activation: Activation
    dtype: jnp.dtype
    layer: int | jax.Array
    row_layers: jax.Array | None


class Choice(TypedDict, total=False):
    """Options of the kernel that finds the largest product; see `asurge.ops.packed.packed_argmax`."""

    norm: jax.Array | None
    epsilon: float
    live: jax.Array | None
    allowed: jax.Array | None
    candidates: int


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

    def linear(self, x: jax.Array, parts: Parts, **surroundings: Any) -> jax.Array:
        """``x [rows, depth]`` by the weights of a layer, with its `Surroundings`."""
        ...

    def argmax(self, x: jax.Array, parts: Parts, **choice: Any) -> jax.Array:
        """The column with the largest product for each row, int32 ``[rows]``, as `Choice` says."""
        ...

    def take(self, parts: Parts, tokens: jax.Array, depth: int) -> jax.Array:
        """Rows of a table that is also an embedding: bf16 ``[tokens, depth]``."""
        ...

    def read_bytes(self, columns: int, depth: int, item_bytes: int) -> int:
        """Bytes that a product reads of a weight whose numbers have ``item_bytes`` where they are not quantised."""
        ...
