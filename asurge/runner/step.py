"""The fused step: embed, attend over pages, project, sample; one compiled function per shape."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from asurge.models.decoder import Decoder, Layer
from asurge.ops.attention import AttentionBackend, Heads, Pages, Rows, up_to_last
from asurge.ops.packed import LIVE_ROWS
from asurge.ops.sampling import SampleFunction, sample
from asurge.runner.buckets import StepShape
from asurge.runner.page_layout import PageLayout
from asurge.runner.step_inputs import StepInputs, TableShape, unpack

Leaves = tuple[jax.Array, ...]
Rebuild = Callable[[Leaves], Decoder]
StepFunction = Callable[[Leaves, Pages, jax.Array, jax.Array], tuple[Pages, jax.Array, jax.Array, "HiddenStates"]]


class HiddenStates(NamedTuple):
    """Hidden states kept for sampling, prompt logprobs and pooling, padded to the same size for every bucket.

    Attributes:
        last: ``[StepSpec.most_rows, hidden]``, of each row's last token.
        flat: ``[StepSpec.most_tokens, hidden]``, of all tokens of a step with prefill; None without.
    """

    last: jax.Array
    flat: jax.Array | None


@dataclasses.dataclass(frozen=True)
class StepSpec:
    """Parameters that all shapes of an engine's step share."""

    rebuild: Rebuild
    attention: AttentionBackend
    layout: PageLayout
    tables: TableShape
    most_rows: int
    most_tokens: int
    max_decode_steps: int = 1
    sample: SampleFunction = sample


class PagedAttend:
    """`asurge.models.decoder.Attend` over pages. Lives for one trace, in which its state is the pages written so far."""

    def __init__(self, spec: StepSpec, model: Decoder, rows: Sequence[Rows], pages: Pages) -> None:
        self.state = pages
        self._backend, self._places, self._config, self._rows = spec.attention, spec.layout.places, model.config, rows

    def kind(self, layer: int) -> Hashable:
        level, table = self._places[layer]
        return (level - layer, table) if self._backend.shares_arrays else layer

    def __call__(self, layer: Layer, heads: Heads) -> jax.Array:
        level, table = self._places[layer.like]
        level_here, window = level + (layer.number - layer.like), self._config.window(layer.like)
        out, self.state = self._backend.attend(heads, self.state, self._rows[table], window, level_here)
        return out


def make_step(spec: StepSpec, shape: StepShape) -> StepFunction:
    """``(leaves, pages, last_token [slots + 1], packed) -> (pages, last_token, sampled [rows, decode_steps], hidden states)``.

    ``last_token`` holds each slot's last sampled token and a scratch slot at the end, so that the next step can be
    dispatched before this one's tokens are read. Shapes without prefill run as many steps as their rows ask for. In a step that
    samples apart, what is sampled here is void.
    """

    def step(
        leaves: Leaves, pages: Pages, last_token: jax.Array, packed: jax.Array
    ) -> tuple[Pages, jax.Array, jax.Array, HiddenStates]:
        model = spec.rebuild(leaves)
        inputs = unpack(packed, shape, spec.tables, last_token.shape[0] - 1)
        tokens = jnp.concatenate((last_token[inputs.slot[: shape.decode_rows]], inputs.tokens))
        if shape.prefill_rows or spec.max_decode_steps == 1:
            pages, sampled, flat, last = _forward(spec, model, shape, inputs, pages, tokens)
            tokens, sampled = sampled, sampled[:, None]
        else:
            pages, tokens, sampled, last = _decode_group(spec, model, shape, inputs, pages, tokens)
        hidden = HiddenStates(
            _padded(last, spec.most_rows), _padded(flat, spec.most_tokens) if shape.prefill_rows else None
        )
        return pages, last_token.at[inputs.slot].set(tokens), sampled, hidden

    return step


def _padded(array: jax.Array, rows: int) -> jax.Array:
    return jnp.pad(array, ((0, rows - array.shape[0]), (0, 0)))


def _forward(
    spec: StepSpec, model: Decoder, shape: StepShape, inputs: StepInputs, pages: Pages, tokens: jax.Array
) -> tuple[Pages, jax.Array, jax.Array, jax.Array]:
    """One step: the pages written, a token for each row, and the hidden states of all tokens and of each row's last, as far as
    they are read."""
    by_table = [
        Rows(shape.decode_rows, shape.prefill_rows, shape.prefill_len, inputs.start, inputs.length, page_table)
        for page_table in inputs.page_tables
    ]
    rows = by_table[0]
    attend = PagedAttend(spec, model, by_table, pages)
    live = inputs.counts & (inputs.length > 0)
    read = jnp.where(inputs.reads_all > 0, rows.real, rows.last_of(live))
    flat = model(tokens, rows.positions, attend, up_to_last(rows.real, LIVE_ROWS), up_to_last(read, LIVE_ROWS))
    last = flat[rows.first + jnp.maximum(inputs.length - 1, 0)]

    def from_logits() -> jax.Array:
        return spec.sample(
            model.logits(last, up_to_last(live, LIVE_ROWS)),
            inputs.sampling,
            vocab_size=model.config.vocab_size,
            live=live,
        )

    def greedy() -> jax.Array:
        return model.greedy(last, up_to_last(live, LIVE_ROWS))

    def nothing() -> jax.Array:
        return jnp.zeros(shape.rows, jnp.int32)

    how = jnp.where(inputs.samples_nothing > 0, 2, jnp.any(inputs.sampling.temperature > 0).astype(jnp.int32))
    return attend.state, lax.switch(how, (greedy, from_logits, nothing)), flat, last


_Group = tuple[jax.Array, Pages, jax.Array, jax.Array, jax.Array, jax.Array]
"""State of a group of decode steps: steps done, pages, last tokens, rows that go on, sampled tokens, last hidden states."""


def _decode_group(
    spec: StepSpec, model: Decoder, shape: StepShape, inputs: StepInputs, pages: Pages, tokens: jax.Array
) -> tuple[Pages, jax.Array, jax.Array, jax.Array]:
    """Decode steps until each row has its tokens or a stop token; -1 stands where a row has none."""

    def body(group: _Group) -> _Group:
        index, pages, tokens, going, sampled, _ = group
        start, length = inputs.start + index, going.astype(jnp.int32)
        sampling = inputs.sampling._replace(position=start + length)
        now = dataclasses.replace(inputs, start=start, length=length, sampling=sampling)
        pages, fresh, _, last = _forward(spec, model, shape, now, pages, tokens)
        sampled = lax.dynamic_update_index_in_dim(sampled, jnp.where(going, fresh, -1), index, axis=1)
        tokens = jnp.where(going, fresh, tokens)
        going &= (index + 1 < inputs.decode_steps) & ~(inputs.stops == fresh[None, :]).any(axis=0)
        return index + 1, pages, tokens, going, sampled, last

    sampled = jnp.full((shape.rows, spec.max_decode_steps), -1, jnp.int32)
    last = jnp.zeros((shape.rows, model.config.hidden_size), model.norm.weight[...].dtype)
    start: _Group = (jnp.int32(0), pages, tokens, inputs.length > 0, sampled, last)
    _, pages, tokens, _, sampled, last = lax.while_loop(lambda group: group[3].any(), body, start)
    return pages, tokens, sampled, last


def leaves_of(model: Decoder) -> Leaves:
    """The arrays of a model, as `split_model` has them."""
    leaves, _ = split_model(model)
    return leaves


def split_model(model: Decoder) -> tuple[Leaves, Rebuild]:
    """A model as the flat tuple of its arrays, and the way back inside a trace.

    `nnx.jit` walks the module on every call (17 ms for 28 layers); jit over a flat tuple takes 0.4 ms.
    """
    graph, state = nnx.split(model)
    leaves, tree = jax.tree.flatten(state)

    def rebuild(arrays: Leaves) -> Decoder:
        return nnx.merge(graph, jax.tree.unflatten(tree, arrays))

    return tuple(leaves), rebuild
