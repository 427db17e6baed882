"""Queries that grow with their position, so that attention does not blur over long texts."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True, slots=True)
class TemperatureTuning:
    """A factor on queries that rises in steps, with the logarithm of the length (Scalable-Softmax; Nakanishi, 2025).

    Attributes:
        every: positions to a step; before the first one the factor is 1.
        strength: how much it rises.
    """

    every: float
    strength: float

    def factor(self, positions: jax.Array) -> jax.Array:
        """The factor for queries at ``positions [tokens]``: float32 ``[tokens, 1]``."""
        steps = jnp.floor((positions.astype(jnp.float32) + 1) / self.every)
        return (jnp.log1p(steps) * self.strength + 1)[:, None]
