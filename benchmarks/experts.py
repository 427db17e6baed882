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

from asurge.models.formats.tiles import pack_tiles
from asurge.ops import native
from asurge.ops.experts import mix_grouped, mix_looped, mix_placed, place_tokens, route
from asurge.ops.packed import packed_linear

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


def kernels(
    x: jax.Array, weights: jax.Array, experts: jax.Array, gate_up: jax.Array, down: jax.Array, _: str
) -> jax.Array:
    """The CPU kernels on packed weights ``[experts, ...]``."""
    placed = place_tokens(experts, None, len(gate_up))

    def product(weight: jax.Array, *, gated: bool) -> Callable[[jax.Array], jax.Array]:
        return lambda rows: packed_linear(rows, weight, gated=gated, live=placed.live, row_layers=placed.experts)

    return mix_placed(x, weights, placed, product(gate_up, gated=True), product(down, gated=False))


def main() -> None:
    rng = np.random.default_rng(0)
    table = Table("dtype", "experts", "a token", "tokens", "grouped", "looped", "kernels")
    for dtype in (jnp.float32, jnp.bfloat16):
        for count, per_token, hidden, inner in SHAPES:
            gate_up = jnp.asarray(rng.normal(size=(count, 2 * inner, hidden)), dtype)
            down = jnp.asarray(rng.normal(size=(count, hidden, inner)), dtype)
            for tokens in (2, 32, 512):
                x = jnp.asarray(rng.normal(size=(tokens, hidden)), dtype)
                logits = jnp.asarray(rng.normal(size=(tokens, count)), jnp.float32)
                operands = (x, *route(logits, per_token, normalize=True), gate_up, down)
                found = [f"{time_ms(form, *operands):.2f}" for form in (mix_grouped, mix_looped)]
                if dtype == jnp.bfloat16 and native.unavailable() is None:
                    packed = (
                        pack_tiles(list(w), jnp.dtype(dtype), gated=gated, free=False)[0]
                        for w, gated in ((gate_up, True), (down, False))
                    )
                    found.append(f"{time_ms(kernels, *operands[:3], *packed):.2f}")
                table.add_row(jnp.dtype(dtype).name, str(count), str(per_token), str(tokens), *found)
    Console().print(table)


if __name__ == "__main__":
    main()
