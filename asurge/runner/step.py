"""The fused step: embed, attend over pages, project, sample; one compiled function per shape."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from asurge.models.decoder import Decoder
from asurge.ops.attention import paged_attention, write_pages
from asurge.ops.sampling import sample
from asurge.runner.lattice import StepShape
from asurge.runner.packing import StepInputs, page_slots, unpack

Leaves = tuple[jax.Array, ...]
Pages = tuple[tuple[jax.Array, jax.Array], ...]
"""Per layer, keys and values ``[pages, kv_heads, page_size, head_dim]``."""

StepFunction = Callable[[Leaves, Pages, jax.Array, jax.Array], tuple[Pages, jax.Array, jax.Array]]


@dataclasses.dataclass(frozen=True)
class StepSpec:
    """What all shapes of one engine's step have in common."""

    rebuild: Callable[[Leaves], Decoder]
    page_size: int
    columns: int


class PagedAttention:
    """`asurge.models.decoder.Attend` over pages. Lives for one trace, in which it collects the written pages."""

    def __init__(self, spec: StepSpec, shape: StepShape, model: Decoder, inputs: StepInputs, pages: Pages) -> None:
        self.pages = list(pages)
        self._shape, self._inputs, self._config = shape, inputs, model.config
        decode, prefill = slice(0, shape.decode_rows), slice(shape.decode_rows, None)
        sections = [self._section(decode, 1, spec.page_size)]
        if shape.prefill_rows:
            sections.append(self._section(prefill, shape.prefill_len, spec.page_size))
        positions, pages_of, offsets = (jnp.concatenate([section[part] for section in sections]) for part in range(3))
        self.positions, self._page_ids, self._offsets = positions, pages_of, offsets

    def _section(self, rows: slice, queries: int, page_size: int) -> tuple[jax.Array, jax.Array, jax.Array]:
        step = jnp.arange(queries, dtype=jnp.int32)[None, :]
        part = dataclasses.replace(self._inputs, page_table=self._inputs.page_table[rows])
        positions = self._inputs.start[rows, None] + step
        page_ids, offsets = page_slots(part, positions, step < self._inputs.length[rows, None], page_size)
        return positions.reshape(-1), page_ids.reshape(-1), offsets.reshape(-1)

    def __call__(self, layer: int, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        keys, values = self.pages[layer]
        keys = write_pages(keys, k, self._page_ids, self._offsets)
        values = write_pages(values, v, self._page_ids, self._offsets)
        self.pages[layer] = (keys, values)
        split = self._shape.decode_rows
        parts = [self._attend(layer, q[:split], slice(0, split), 1)]
        if self._shape.prefill_rows:
            parts.append(self._attend(layer, q[split:], slice(split, None), self._shape.prefill_len))
        return jnp.concatenate(parts)

    def _attend(self, layer: int, q: jax.Array, rows: slice, queries: int) -> jax.Array:
        keys, values = self.pages[layer]
        inputs, config = self._inputs, self._config
        out = paged_attention(
            q.reshape(-1, queries, *q.shape[1:]),
            keys,
            values,
            inputs.page_table[rows],
            inputs.start[rows],
            inputs.length[rows],
            scale=config.head_dim**-0.5,
            window=config.window(layer),
        )
        return out.reshape(q.shape)


def make_step(spec: StepSpec, shape: StepShape) -> StepFunction:
    """``(leaves, pages, last_token [slots + 1], packed) -> (pages, last_token, drawn [rows])``.

    ``last_token`` holds each slot's last drawn token and a scratch slot at the end, so that the next step can be
    dispatched before this one's tokens are read.
    """

    def step(
        leaves: Leaves, pages: Pages, last_token: jax.Array, packed: jax.Array
    ) -> tuple[Pages, jax.Array, jax.Array]:
        model = spec.rebuild(leaves)
        inputs = unpack(packed, shape, spec.columns)
        attend = PagedAttention(spec, shape, model, inputs, pages)
        tokens = jnp.concatenate((last_token[inputs.slot[: shape.decode_rows]], inputs.tokens))
        hidden = model(tokens, attend.positions, attend)
        ends = shape.decode_rows + jnp.arange(shape.prefill_rows, dtype=jnp.int32) * shape.prefill_len
        ends = ends + jnp.maximum(inputs.length[shape.decode_rows :] - 1, 0)
        chosen = jnp.concatenate((jnp.arange(shape.decode_rows, dtype=jnp.int32), ends))
        drawn = sample(
            model.logits(hidden[chosen]),
            inputs.temperature,
            inputs.top_k,
            inputs.top_p,
            inputs.seed,
            inputs.start + inputs.length,
            vocab_size=model.config.vocab_size,
        )
        return tuple(attend.pages), last_token.at[inputs.slot].set(drawn), drawn

    return step


def split_model(model: Decoder) -> tuple[Leaves, Callable[[Leaves], Decoder]]:
    """A model as the flat tuple of its arrays, and the way back inside a trace.

    `nnx.jit` walks the module on every call (17 ms for 28 layers); jit over a flat tuple takes 0.4 ms.
    """
    graph, state = nnx.split(model)
    leaves, tree = jax.tree.flatten(state)

    def rebuild(arrays: Leaves) -> Decoder:
        return nnx.merge(graph, jax.tree.unflatten(tree, arrays))

    return tuple(leaves), rebuild
