#!/usr/bin/env bash
# flax 0.12.8, jax 0.10.2.
# An nnx module that ties two weights (one Param under two names) has one leaf for nnx.state and two for jax.tree: jax.tree.map over the
# module, to cast or to quantise it say, gives a module whose weights are two and no longer tied, of twice the memory, and whose
# training goes apart. Map over nnx.split's state and merge: that keeps them one.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3.11 -m venv "$work/env"
"$work/env/bin/pip" install --quiet flax==0.12.8 jax==0.10.2
cd "$work" && JAX_PLATFORMS=cpu "$work/env/bin/python" - <<'PYTHON'
import sys
from importlib.metadata import version

import jax
import jax.numpy as jnp
from flax import nnx


class Model(nnx.Module):
    def __init__(self) -> None:
        self.embed = nnx.Embed(8, 4, rngs=nnx.Rngs(0))
        self.head = self.embed.embedding


def cast(x: jax.Array) -> jax.Array:
    return x.astype(jnp.bfloat16)


model = Model()
mapped = jax.tree.map(cast, model)
graph, state = nnx.split(model)
merged = nnx.merge(graph, jax.tree.map(cast, state))
leaves = len(jax.tree.leaves(nnx.state(model))), len(jax.tree.leaves(model))
tied = [one.head is one.embed.embedding for one in (model, mapped, merged)]
print("flax", version("flax"), "jax", jax.__version__)
print(f"leaves: {leaves[0]} by nnx.state, {leaves[1]} by jax.tree")
print(f"tied: at first {tied[0]}, after jax.tree.map {tied[1]}, after split, map and merge {tied[2]}")
sys.exit(not (leaves == (1, 2) and tied == [True, False, True]))
PYTHON
