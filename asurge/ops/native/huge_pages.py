"""Allocate large arrays on huge pages of memory, where the system has them.

A read of weights or of keys and values then misses the TLB less often (`benchmarks/results/LOG.md`).
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp


@functools.partial(jax.jit, static_argnums=(0, 1))
def zeros(shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
    """Zeros."""
    made: jax.Array = jax.ffi.ffi_call("asurge_zeros", jax.ShapeDtypeStruct(shape, dtype))()
    return made
