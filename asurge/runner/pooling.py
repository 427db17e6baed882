"""Embeddings of prompts: a dispatch after the step, over the hidden states it left, that sums those of each prompt."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax import lax

from asurge.plan import StepPlan
from asurge.runner.buckets import StepShape, place
from asurge.runner.compilation import begin_fetch
from asurge.runner.step import Leaves, Rebuild

_NOBODY = -1


@dataclasses.dataclass(frozen=True, slots=True)
class PoolShape:
    """How many prompts a dispatch sums for."""

    pool_rows: int


class Sums:
    """What one step adds to embeddings, on its way to the host."""

    def __init__(self, sums: jax.Array, rows: list[int]) -> None:
        self._sums, self._rows = sums, rows

    def read(self) -> dict[int, npt.NDArray[np.float32]]:
        """Wait: by plan row, float32 ``[hidden]``."""
        sums = np.asarray(self._sums)
        return {row: sums[at] for at, row in enumerate(self._rows)}


class Pooler:
    """Sums the normalised hidden states of prompts that are embedded.

    Args:
        most_tokens: of a step, padding included.
        most_rows: prompts that one step can have chunks of.
    """

    def __init__(self, rebuild: Rebuild, most_tokens: int, most_rows: int) -> None:
        self._rebuild, self._tokens, self._shape = rebuild, most_tokens, PoolShape(most_rows)
        self._program: jax.stages.Compiled | None = None

    def programs(self, leaves: Leaves, flat: jax.ShapeDtypeStruct) -> dict[PoolShape, Callable[[], jax.stages.Lowered]]:
        """What is to be compiled."""

        def pool(leaves: Leaves, flat: jax.Array, owners: jax.Array) -> jax.Array:
            hidden = self._rebuild(leaves).norm(flat.astype(jnp.float32))
            # Padding may hold NaN or infinities, and 0 times those is NaN.
            hidden = jnp.where((owners == _NOBODY)[:, None], 0.0, hidden)
            mine = owners == jnp.arange(self._shape.pool_rows, dtype=jnp.int32)[:, None]
            return jnp.matmul(mine.astype(jnp.float32), hidden, precision=lax.Precision.HIGHEST)

        owners = jax.ShapeDtypeStruct((self._tokens,), jnp.int32)
        return {self._shape: lambda: jax.jit(pool).lower(leaves, flat, owners)}

    def use(self, programs: Mapping[PoolShape, jax.stages.Compiled]) -> None:
        """Take what was compiled; it may hold other programs too."""
        self._program = programs[self._shape]

    def warm_up(self, leaves: Leaves, flat: jax.Array) -> None:
        """Run once on padding alone."""
        assert self._program is not None
        self._program(leaves, flat, np.full(self._tokens, _NOBODY, np.int32)).block_until_ready()

    def dispatch(self, plan: StepPlan, shape: StepShape, leaves: Leaves, flat: jax.Array | None) -> Sums | None:
        """Send what a plan has to sum; None if it has nothing."""
        rows = [index for index, row in enumerate(plan.rows) if row.pooled]
        if not rows:
            return None
        assert self._program is not None and flat is not None
        sums = self._program(leaves, flat, _owners(plan, shape, rows, self._tokens))
        begin_fetch(sums)
        return Sums(sums, rows)


def _owners(plan: StepPlan, shape: StepShape, rows: list[int], tokens: int) -> npt.NDArray[np.int32]:
    """Map each of a step's tokens, int32 ``[tokens]``, to the place in ``rows`` of the row whose sum it enters."""
    owner_of = {id(plan.rows[index]): at for at, index in enumerate(rows)}
    owners = np.full(tokens, _NOBODY, np.int32)
    for part in place(plan, shape):
        if part.row.pooled:
            first = shape.first_token(part.at)
            skipped = max(part.row.num_tokens - part.row.pooled - part.begin, 0)
            owners[first + skipped : first + part.length] = owner_of[id(part.row)]
    return owners
