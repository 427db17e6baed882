"""A model over one whole sequence, without pages: the plain forward pass that everything else is compared with."""

from __future__ import annotations

import jax

from asurge.models.config import DecoderConfig
from asurge.models.decoder import Layer
from asurge.ops.attention import Heads, dense_attention


class StatelessAttend:
    """Methods of `asurge.models.decoder.Attend` for implementations that keep no state."""

    state: tuple[()] = ()

    def kind(self, layer: int) -> None:
        """All are alike."""


class DenseAttend(StatelessAttend):
    """`asurge.models.decoder.Attend` over all tokens of one sequence at once, in float32."""

    def __init__(self, config: DecoderConfig) -> None:
        self._config = config

    def __call__(self, layer: Layer, heads: Heads) -> jax.Array:
        config = self._config
        return dense_attention(
            *heads.split(), scale=config.score_scale, window=config.window(layer.like), softcap=config.score_softcap
        )
