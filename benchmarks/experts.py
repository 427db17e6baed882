"""Ways to compute a mixture of experts on this device: ``python -m benchmarks.experts``. Medians, in milliseconds."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from asurge.ops.experts import mix_grouped, mix_looped, route

SHAPES = ((8, 2, 512, 1024), (64, 8, 512, 256))
"""Experts, experts per token, hidden and inner size."""


def time_ms(function: Callable[..., jax.Array], *operands: jax.Array, repeats: int = 7) -> float:
    compiled = jax.jit(lambda *x: function(*x, "silu"))
    compiled(*operands).block_until_ready()
    times = []
    for _ in range(repeats):
        begun = time.perf_counter()
        compiled(*operands).block_until_ready()
        times.append(time.perf_counter() - begun)
    return statistics.median(times) * 1e3


def main() -> None:
    rng = np.random.default_rng(0)
    table = Table("dtype", "experts", "a token", "tokens", "grouped", "looped")
    for dtype in (jnp.float32, jnp.bfloat16):
        for count, per_token, hidden, inner in SHAPES:
            gate_up = jnp.asarray(rng.normal(size=(count, 2 * inner, hidden)), dtype)
            down = jnp.asarray(rng.normal(size=(count, hidden, inner)), dtype)
            for tokens in (2, 32, 512):
                x = jnp.asarray(rng.normal(size=(tokens, hidden)), dtype)
                logits = jnp.asarray(rng.normal(size=(tokens, count)), jnp.float32)
                operands = (x, *route(logits, per_token, normalize=True), gate_up, down)
                found = (f"{time_ms(form, *operands):.2f}" for form in (mix_grouped, mix_looped))
                table.add_row(jnp.dtype(dtype).name, str(count), str(per_token), str(tokens), *found)
    Console().print(table)


if __name__ == "__main__":
    main()
