"""Whole forward passes, without pages or steps."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from asurge.models import Decoder, DenseAttend


def forward(model: Decoder, read: jax.Array | None = None) -> Any:
    """Logits of whole sequences, compiled once per length, where the hidden states are ``read``."""
    graph, state = nnx.split(model)

    @jax.jit
    def run(tokens: jax.Array) -> jax.Array:
        module = nnx.merge(graph, state)
        attend = DenseAttend(module.config)
        return module.logits(module(tokens, jnp.arange(tokens.shape[0]), attend, read=read))

    return run


def hidden_states(model: Decoder) -> Any:
    """Normalised hidden states ``[tokens, hidden]`` of whole sequences, compiled once per length."""
    graph, state = nnx.split(model)

    @jax.jit
    def run(tokens: jax.Array) -> jax.Array:
        module = nnx.merge(graph, state)
        return module.norm(module(tokens, jnp.arange(tokens.shape[0]), DenseAttend(module.config)))

    return run


def relative(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())
