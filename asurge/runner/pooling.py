"""Embeddings of prompts: a dispatch after the step, over the hidden states it left, that sums those of each prompt."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax import lax

from asurge.plan import StepPlan
from asurge.runner.buckets import StepShape, place
from asurge.runner.compilation import begin_fetch
from asurge.runner.program import Program
from asurge.runner.step import Leaves, Rebuild

_NOBODY = -1


@dataclasses.dataclass(frozen=True, slots=True)
class PoolShape:
    """Number of prompts for which a dispatch sums hidden states."""

    pool_rows: int


class Sums:
    """Sums that a step adds to embeddings, on their way to the host."""

    def __init__(self, sums: jax.Array, rows: list[int]) -> None:
        self._sums, self._rows = sums, rows

    def read(self) -> dict[int, npt.NDArray[np.float32]]:
        """Wait: by plan row, float32 ``[hidden]``."""
        sums = np.asarray(self._sums)
        return {row: sums[at] for at, row in enumerate(self._rows)}


class Pooler:
    """Sums the normalised hidden states of prompts that are embedded.

    Args:
        most_rows: prompts that one step can have chunks of.
        flat: the hidden states ``[tokens, hidden]`` that a step leaves, as shapes.
    """

    def __init__(self, rebuild: Rebuild, most_rows: int, leaves: Leaves, flat: jax.ShapeDtypeStruct) -> None:
        def pool(leaves: Leaves, flat: jax.Array, owners: jax.Array) -> jax.Array:
            hidden = rebuild(leaves).norm(flat.astype(jnp.float32))
            # Padding may hold NaN or infinities, and 0 times those is NaN.
            hidden = jnp.where((owners == _NOBODY)[:, None], 0.0, hidden)
            mine = owners == jnp.arange(most_rows, dtype=jnp.int32)[:, None]
            return jnp.matmul(mine.astype(jnp.float32), hidden, precision=lax.Precision.HIGHEST)

        self._tokens = flat.shape[0]
        owners = jax.ShapeDtypeStruct((self._tokens,), jnp.int32)
        self.program = Program(PoolShape(most_rows), pool, (leaves, flat, owners))

    def warm_up(self, leaves: Leaves, flat: jax.Array) -> None:
        """Run once on padding alone."""
        self.program(leaves, flat, np.full(self._tokens, _NOBODY, np.int32)).block_until_ready()

    def dispatch(self, plan: StepPlan, shape: StepShape, leaves: Leaves, flat: jax.Array | None) -> Sums | None:
        """Send what a plan has to sum; None if it has nothing."""
        rows = [index for index, row in enumerate(plan.rows) if row.pooled]
        if not rows:
            return None
        assert flat is not None
        sums = self.program(leaves, flat, _owners(plan, shape, rows, self._tokens))
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
