"""Many samples of one row, and how far they are from a distribution."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from asurge.ops.sampling import SampleFunction, SamplingInputs, sample

VOCAB, PADDED, NUM_SAMPLES = 300, 384, 8192
sample_plain = jax.jit(sample, static_argnames="vocab_size")


def sample_many(
    row: np.ndarray,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float = 0.0,
    count: int = NUM_SAMPLES,
    seed: int = 7,
    sampler: SampleFunction = sample_plain,
) -> np.ndarray:
    """Sample one row at many positions."""
    return np.asarray(
        sampler(
            jnp.broadcast_to(row, (count, PADDED)),
            SamplingInputs(
                temperature=jnp.full(count, temperature, jnp.float32),
                top_k=jnp.full(count, top_k, jnp.int32),
                top_p=jnp.full(count, top_p, jnp.float32),
                min_p=jnp.full(count, min_p, jnp.float32),
                seed=jnp.full(count, seed, jnp.uint32),
                position=jnp.arange(count, dtype=jnp.int32),
            ),
            vocab_size=VOCAB,
        )
    )


def chi_square(observed: np.ndarray, probabilities: np.ndarray) -> tuple[float, int]:
    """Pearson's statistic with rare outcomes pooled, and its degrees of freedom."""
    expected = probabilities * len(observed)
    counts = np.bincount(observed, minlength=len(probabilities)).astype(float)
    rare = expected < 8
    expected = np.append(expected[~rare], expected[rare].sum())
    counts = np.append(counts[~rare], counts[rare].sum())
    used = expected > 0
    return float(((counts[used] - expected[used]) ** 2 / expected[used]).sum()), int(used.sum()) - 1
