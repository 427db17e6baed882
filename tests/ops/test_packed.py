"""Products over packed weights against plain JAX: the same roundings, whatever surrounds the product."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from asurge.ops import native
from asurge.ops.linear import linear, linear_int8, quantize_int8
from asurge.ops.norm import Activation, gate, rms_norm
from asurge.ops.packed import bit_patterns, interleave, pack, pack_into, packed_argmax, packed_linear, take_rows
from tests.kernels import needs_kernels

EPSILON = 1e-5
Floats = npt.NDArray[np.float32]
both_widths = pytest.mark.parametrize("int8", [False, True], ids=["bf16", "int8"])


class Layer:
    """Random operands of one product: what is not wanted is None."""

    def __init__(
        self,
        rows: int,
        depth: int,
        columns: int,
        *,
        norm: bool = False,
        bias: bool = False,
        residual: bool = False,
        gated: bool = False,
        activation: Activation = "silu",
        int8: bool = False,
        seed: int = 0,
    ) -> None:
        rng = np.random.default_rng(seed)

        def sample(*shape: int) -> jax.Array:
            return jnp.asarray(rng.normal(size=shape), jnp.bfloat16)

        self.x, self.weight = sample(rows, depth), sample(columns, depth)
        self.norm = sample(depth) if norm else None
        self.bias = sample(columns) if bias else None
        self.residual = sample(rows, columns) if residual else None
        self.gated, self.activation, self.int8 = gated, activation, int8

    def kernel(self, **options: Any) -> jax.Array:
        packed, scale = self.packed()
        call = partial(packed_linear, epsilon=EPSILON, gated=self.gated, activation=self.activation, **options)
        return jax.jit(call)(self.x, packed, scale, norm=self.norm, bias=self.packed_bias, residual=self.residual)

    @property
    def packed_bias(self) -> jax.Array | None:
        return self.bias if self.bias is None or not self.gated else interleave(self.bias)

    def packed(self) -> tuple[jax.Array, jax.Array | None]:
        weight = interleave(self.weight) if self.gated else self.weight
        if not self.int8:
            return pack(weight), None
        weight, scale = quantize_int8(weight)
        return pack(weight), jnp.pad(scale, (0, -len(scale) % 16))

    def plain(self, dtype: jnp.dtype | None = None) -> jax.Array:
        def run(
            x: jax.Array,
            weight: jax.Array,
            norm: jax.Array | None,
            bias: jax.Array | None,
            residual: jax.Array | None,
        ) -> jax.Array:
            x = x if norm is None else rms_norm(x, norm, EPSILON)
            out = linear_int8(x, *quantize_int8(weight), bias, dtype) if self.int8 else linear(x, weight, bias, dtype)
            out = gate(out, self.activation) if self.gated else out
            return out if residual is None else residual + out

        exact = {"xla_allow_excess_precision": False}  # otherwise XLA leaves roundings out
        return jax.jit(run, compiler_options=exact)(self.x, self.weight, self.norm, self.bias, self.residual)

    def check(self, dtype: Any = jnp.bfloat16) -> None:
        ours, theirs = wide(self.kernel(dtype=dtype)), wide(self.plain(dtype))
        assert ours.shape == theirs.shape
        size = np.abs(theirs) if self.residual is None else np.maximum(np.abs(theirs), np.abs(wide(self.residual)))
        # One unit in the last place, of the summand where one was added; and float32's own where a sum cancels.
        slack = size * 2.0 ** (-7 if dtype == jnp.bfloat16 else -18) + 1e-5 * np.abs(theirs).max()
        if self.int8:  # a quotient on the edge between two steps may go to either
            slack += np.abs(theirs).max() * 2.0**-7
        elif self.norm is not None:  # so may what is normalised
            slack += np.abs(theirs).max() * 2.0**-9
        assert (np.abs(ours - theirs) <= slack).all()
        if dtype == jnp.bfloat16:
            same = ours == theirs
            if self.activation == "gelu_tanh":  # near 0, plain JAX leaves what cancelling leaves
                same = same[np.abs(theirs) > 1e-5 * np.abs(theirs).max()]
            assert same.mean() > (0.9 if self.int8 else 0.98)


def wide(x: jax.Array) -> Floats:
    return np.asarray(x.astype(jnp.float32))


@needs_kernels
@both_widths
@pytest.mark.parametrize(("columns", "gated"), [(96, False), (71, False), (96, True)], ids=["", "padded", "gated"])
def test_the_kernel_packs_weights_as_plain_jax_does(columns: int, gated: bool, int8: bool) -> None:
    layer = Layer(1, 192, columns, gated=gated, int8=int8)
    layer.weight = (layer.weight * jnp.logspace(-30, 30, columns, dtype=jnp.float32)[:, None]).astype(jnp.bfloat16)
    weight = interleave(layer.weight) if gated else layer.weight
    scale = np.maximum(np.abs(wide(weight)).max(axis=1), np.float32(1e-30)) / np.float32(127)
    # XLA multiplies by 1 / 127, which may be a bit less or more.
    expected = pack(jnp.asarray(np.rint(wide(weight) / scale[:, None]), jnp.int8) if int8 else weight)
    before = jnp.stack([jnp.full_like(expected, 7)] * 3)
    kept, address = np.asarray(before[0]), before.unsafe_buffer_pointer()
    stack, found = jax.jit(partial(pack_into, gated=gated), donate_argnums=0)(before, layer.weight, 1)
    assert np.array_equal(stack, np.stack([kept, np.asarray(expected), kept]))
    assert stack.unsafe_buffer_pointer() == address
    assert np.array_equal(found, np.pad(scale, (0, -columns % 16))) if int8 else found is None


@needs_kernels
@both_widths
def test_gelu_gate(int8: bool) -> None:
    Layer(33, 128, 224, gated=True, activation="gelu_tanh", int8=int8).check()


SHAPES = [(1, 0, 0), (16, 1, 1), (17, 0, 2), (33, 1, 2), (100, 1, 1)]
"""Rows, and which depth and columns."""


@needs_kernels
@both_widths
@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
@pytest.mark.parametrize("norm", [False, True], ids=["", "norm"])
@pytest.mark.parametrize("output", ["bfloat16", "residual", "gated", "float32"])
def test_a_product_rounds_where_plain_jax_rounds(output: str, norm: bool, bias: bool, int8: bool) -> None:
    gated = output == "gated"
    depths, columns = ((64, 192) if int8 else (32, 96)), ((32, 96, 224) if gated else (16, 48, 112))
    # A shape for each combination takes its turn; hypothesis takes the others.
    turn = norm + 2 * bias + 4 * int8
    for rows, depth, column in (SHAPES[turn % 5], SHAPES[(turn + 2) % 5]):
        layer = Layer(
            rows, depths[depth], columns[column],
            norm=norm, bias=bias, residual=output == "residual", gated=gated, int8=int8, seed=turn,
        )  # fmt: skip
        layer.check(jnp.float32 if output == "float32" else jnp.bfloat16)


@needs_kernels
@settings(max_examples=10, deadline=None)
@given(
    rows=st.integers(1, 100),
    depth=st.integers(1, 5),
    columns=st.integers(1, 9),
    output=st.sampled_from(["bfloat16", "residual", "gated", "float32"]),
    flags=st.tuples(st.booleans(), st.booleans(), st.booleans()),
    seed=st.integers(0, 9),
)
@example(rows=32, depth=5, columns=9, output="residual", flags=(True, True, True), seed=0)
@example(rows=31, depth=1, columns=8, output="gated", flags=(True, False, False), seed=1)
@example(rows=23, depth=4, columns=2, output="bfloat16", flags=(True, False, False), seed=7)
def test_any_shape(rows: int, depth: int, columns: int, output: str, flags: tuple[bool, bool, bool], seed: int) -> None:
    norm, bias, int8 = flags
    gated = output == "gated"
    layer = Layer(
        rows, depth * (64 if int8 else 32), columns * (32 if gated else 16),
        norm=norm, bias=bias, residual=output == "residual", gated=gated, int8=int8, seed=seed,
    )  # fmt: skip
    layer.check(jnp.float32 if output == "float32" else jnp.bfloat16)


@needs_kernels
@both_widths
def test_inputs_prepared_by_several_threads(int8: bool) -> None:
    """More than one thread prepares: all members meet before they multiply."""
    Layer(64, 384, 144, norm=True, residual=True, int8=int8).check()


@needs_kernels
@both_widths
@pytest.mark.parametrize("rows", [5, 11, 16])
@pytest.mark.parametrize("output", ["bfloat16", "residual", "gated", "float32"])
def test_few_rows_of_many_columns(output: str, rows: int, int8: bool) -> None:
    """A single tile of rows reads weights in as many streams at a time as it has registers for."""
    columns = 256 * len(os.sched_getaffinity(0))
    layer = Layer(
        rows, 64, columns, norm=True, residual=output == "residual", gated=output == "gated", int8=int8
    )  # fmt: skip
    layer.check(jnp.float32 if output == "float32" else jnp.bfloat16)


@needs_kernels
@both_widths
@pytest.mark.parametrize("output", ["bfloat16", "residual", "gated", "float32"])
def test_few_live_rows_of_many_columns(output: str, int8: bool) -> None:
    columns = 256 * len(os.sched_getaffinity(0))
    layer = Layer(50, 64, columns, residual=output == "residual", gated=output == "gated", int8=int8)
    whole, part = layer.kernel(), layer.kernel(live=jnp.asarray([0, 0, 11, 0]))
    np.testing.assert_array_equal(wide(part)[32:43], wide(whole)[32:43])


@needs_kernels
@both_widths
@pytest.mark.parametrize("rows", [40, 100])
@pytest.mark.parametrize("which", ["none", "first", "last", "every other", "all"])
def test_padding_rows_are_skipped(which: str, rows: int, int8: bool) -> None:
    layer = Layer(rows, 192, 48, norm=True, residual=True, int8=int8)
    tiles = -(-rows // 16)
    live = np.zeros(tiles, np.int32)
    live[{"none": [], "first": [0], "last": [-1], "every other": slice(0, None, 2), "all": slice(None)}[which]] = 16
    whole, part = layer.kernel(), layer.kernel(live=jnp.asarray(live))
    matters = np.repeat(live, 16)[:rows] > 0
    np.testing.assert_array_equal(wide(part)[matters], wide(whole)[matters])


@needs_kernels
@both_widths
@settings(max_examples=40, deadline=None)
@given(counts=st.lists(st.integers(0, 16), min_size=1, max_size=4), columns=st.sampled_from([16, 32, 48, 1024]))
def test_rows_of_a_tile_beyond_the_batch_are_ignored(counts: list[int], columns: int, int8: bool) -> None:
    layer = Layer(16 * len(counts), 64, columns, norm=True, residual=True, int8=int8)
    whole, part = layer.kernel(), layer.kernel(live=jnp.asarray(counts))
    matters = np.concatenate([np.arange(16) < count for count in counts])
    np.testing.assert_array_equal(wide(part)[matters], wide(whole)[matters])


@needs_kernels
@both_widths
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_non_finite_numbers_stay_in_their_row(value: float, int8: bool) -> None:
    layer = Layer(37, 192, 48, norm=True, bias=True, residual=True, int8=int8)
    before = wide(layer.kernel())
    for row, depth in ((0, 0), (18, 191), (36, 64)):
        layer.x = layer.x.at[row, depth].set(value)
    after = wide(layer.kernel())
    others = np.setdiff1d(np.arange(37), (0, 18, 36))
    np.testing.assert_array_equal(after[others], before[others])
    assert np.isfinite(before).all()
    assert np.isnan(after[[0, 18, 36]]).all()


@needs_kernels
@pytest.mark.parametrize("depth", [16384, 1 << 16, 1 << 17])
def test_int8_sums_are_exact_at_any_depth(depth: int) -> None:
    """Signs that add up as far as they can, and in part cancel."""
    rng = np.random.default_rng(depth)
    x = np.where(rng.random((3, depth)) < np.array([[1], [0], [0.5]]), 1, -1)
    weight = np.where(rng.random((32, depth)) < np.linspace(0, 1, 32)[:, None], 127, -127)
    args = jnp.asarray(x, jnp.bfloat16), pack(jnp.asarray(weight, jnp.int8)), jnp.ones(32, jnp.float32)
    found = np.asarray(jax.jit(partial(packed_linear, dtype=jnp.float32))(*args))
    np.testing.assert_allclose(found, x @ weight.T, rtol=2e-7, atol=127 * 2.0**-15)


# The largest of a row.


def argmax(layer: Layer, candidates: int, **options: Any) -> npt.NDArray[np.int32]:
    weight, scale = layer.packed()
    call = partial(packed_argmax, epsilon=EPSILON, candidates=candidates, **options)
    return np.asarray(jax.jit(call)(layer.x, weight, scale, norm=layer.norm))


@needs_kernels
@both_widths
@pytest.mark.parametrize(("rows", "columns", "candidates"), [(1, 16, 16), (17, 48, 33), (40, 1008, 1008), (3, 250, 250), (33, 250, 7), (9, 2048, 2041)])  # fmt: skip
def test_argmax_is_that_of_the_rounded_products(rows: int, columns: int, candidates: int, int8: bool) -> None:
    layer = Layer(rows, 64, columns, norm=True, int8=int8)
    stored = wide(layer.kernel(dtype=jnp.float32))[:, :candidates]
    np.testing.assert_array_equal(argmax(layer, candidates), stored.argmax(axis=1))


@needs_kernels
@both_widths
@pytest.mark.parametrize(("rows", "columns", "candidates"), [(2, 48, 48), (40, 1008, 1000), (9, 2048, 2041)])
def test_argmax_considers_only_allowed_columns(rows: int, columns: int, candidates: int, int8: bool) -> None:
    layer = Layer(rows, 64, columns, norm=True, int8=int8)
    stored = wide(layer.kernel(dtype=jnp.float32))[:, :candidates]
    rng = np.random.default_rng(columns)
    for share in (0.01, 0.5, 1.0):
        bits = rng.random((rows, -(-candidates // 32) * 32)) < share
        bits[:, rng.integers(candidates)] = True
        words = np.packbits(bits, axis=1, bitorder="little").view(np.uint32)
        expected = np.where(bits[:, :candidates], stored, -np.inf).argmax(axis=1)
        np.testing.assert_array_equal(argmax(layer, candidates, allowed=jnp.asarray(words)), expected)


@needs_kernels
@both_widths
def test_argmax_takes_the_first_of_ties(int8: bool) -> None:
    layer = Layer(20, 64, 640, int8=int8)
    layer.weight = jnp.tile(layer.weight[:128], (5, 1))
    layer.weight = layer.weight.at[90].set(layer.weight[7])
    found = argmax(layer, 640)
    assert found.max() < 128
    np.testing.assert_array_equal(found, wide(layer.kernel(dtype=jnp.float32)).argmax(axis=1))
    layer.weight = jnp.zeros_like(layer.weight)
    assert not argmax(layer, 640).any()


@needs_kernels
def test_argmax_takes_nan_and_minus_infinity_last() -> None:
    layer = Layer(18, 32, 96)
    layer.x = jnp.abs(layer.x)
    weights = np.full((96, 32), -np.inf, np.float32)
    weights[::2] = np.nan
    layer.weight = jnp.asarray(weights, jnp.bfloat16)
    assert ((argmax(layer, 96) >= 0) & (argmax(layer, 96) < 96)).all()
    weights[77] = -1e30  # the least that is a number
    layer.weight = jnp.asarray(weights, jnp.bfloat16)
    assert (argmax(layer, 96) == 77).all()
    assert (argmax(layer, 77) < 77).all()


@needs_kernels
def test_argmax_of_minus_infinities_is_the_first() -> None:
    layer = Layer(2, 32, 96)
    layer.x, layer.weight = jnp.abs(layer.x), jnp.full_like(layer.weight, -jnp.inf)
    assert not argmax(layer, 96).any()


@needs_kernels
@both_widths
def test_argmax_skips_rows_that_are_not_live(int8: bool) -> None:
    layer = Layer(40, 64, 112, norm=True, int8=int8)
    part = argmax(layer, 100, live=jnp.asarray([0, 16, 0]))
    np.testing.assert_array_equal(part[16:32], argmax(layer, 100)[16:32])
    assert ((part >= 0) & (part < 100)).all()
    assert argmax(layer, 100, live=jnp.zeros(3, jnp.int32)).shape == (40,)


# Operands that do not fit together: the kernel would read beyond their ends.


@needs_kernels
@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("norm", lambda x: x[:-1]),
        ("bias", lambda x: x[:-1]),
        ("residual", lambda x: x[:, :-1]),
        ("residual", lambda x: x[:-1]),
        ("x", lambda x: x[:, :32]),
    ],
)
def test_operands_of_the_wrong_size_are_refused(name: str, change: Callable[[jax.Array], jax.Array]) -> None:
    layer = Layer(17, 64, 48, norm=True, bias=True, residual=True)
    setattr(layer, name, change(getattr(layer, name)))
    with pytest.raises(Exception, match="INVALID_ARGUMENT"):
        layer.kernel().block_until_ready()


@needs_kernels
def test_unsupported_combinations_are_refused() -> None:
    layer = Layer(17, 64, 64, gated=True)
    layer.residual = jnp.zeros((17, 32), jnp.bfloat16)
    with pytest.raises(Exception, match="INVALID_ARGUMENT"):
        layer.kernel().block_until_ready()
    layer = Layer(17, 64, 48, int8=True)
    weight, _ = layer.packed()
    for scale in (None, jnp.ones(16)):
        with pytest.raises(Exception, match="INVALID_ARGUMENT"):
            packed_linear(layer.x, weight, scale).block_until_ready()
    with pytest.raises(Exception, match="INVALID_ARGUMENT"):
        packed_linear(layer.x, pack(layer.weight), live=jnp.ones(1, jnp.int32)).block_until_ready()
    with pytest.raises(Exception, match="INVALID_ARGUMENT"):
        packed_argmax(layer.x, pack(layer.weight), candidates=49).block_until_ready()
    allowed = jnp.ones((17, 1), jnp.uint32)
    with pytest.raises(Exception, match="INVALID_ARGUMENT"):
        packed_argmax(layer.x, pack(layer.weight), candidates=48, allowed=allowed).block_until_ready()


@needs_kernels
@pytest.mark.parametrize("int8", [False, True], ids=["bf16", "int8"])
@pytest.mark.parametrize("gated", [False, True], ids=["", "gated"])
def test_a_layer_of_a_stack_equals_the_layer_alone(int8: bool, gated: bool) -> None:
    layers = [Layer(5, 64, 96, norm=True, bias=True, gated=gated, int8=int8, seed=seed) for seed in range(3)]
    for one in layers[1:]:
        one.x = layers[0].x

    def stack(parts: list[jax.Array | None]) -> jax.Array | None:
        return None if parts[0] is None else jnp.stack([part for part in parts if part is not None])

    weights, scales = zip(*(one.packed() for one in layers), strict=True)
    call = partial(
        packed_linear,
        layers[0].x,
        jnp.stack(weights),
        stack(list(scales)),
        norm=stack([one.norm for one in layers]),
        bias=stack([one.packed_bias for one in layers]),
        epsilon=EPSILON,
        gated=gated,
    )
    for index, one in enumerate(layers):
        np.testing.assert_array_equal(wide(call(layer=index)), wide(one.kernel()))
    for index in (-1, 3):
        with pytest.raises(Exception, match="no such layer"):
            call(layer=index).block_until_ready()
    with pytest.raises(Exception, match="wrong size"):
        call(layer=0, norm=layers[0].norm).block_until_ready()


# Layouts.


@pytest.mark.parametrize(("columns", "depth", "dtype"), [(16, 32, "bfloat16"), (50, 96, "bfloat16"), (50, 192, "int8")])
def test_packed_weights_have_the_layout_of_tiles(columns: int, depth: int, dtype: str) -> None:
    rng = np.random.default_rng(0)
    weight = jnp.asarray(rng.integers(-120, 120, (columns, depth)), dtype)
    packed = pack(weight)
    group = 4 if dtype == "int8" else 2
    assert packed.shape == (-(-columns // 16), depth // (16 * group), 16, 16, group)
    assert packed.dtype == ("int8" if dtype == "int8" else "uint16")
    tiles = np.asarray(packed.view(dtype)).astype(np.float32)
    column, at = np.meshgrid(np.arange(columns), np.arange(depth), indexing="ij")
    tile, inside = np.divmod(at, 16 * group)
    unpacked = tiles[column // 16, tile, inside // group, column % 16, inside % group]
    np.testing.assert_array_equal(unpacked, np.asarray(weight).astype(np.float32))
    assert not tiles.transpose(0, 3, 1, 2, 4).reshape(-1, depth)[columns:].any()


def test_gate_and_up_alternate_in_blocks() -> None:
    rows = np.arange(96)
    mixed = np.asarray(interleave(jnp.asarray(rows)))
    blocks = mixed.reshape(3, 2, 16)
    np.testing.assert_array_equal(blocks[:, 0].reshape(-1), rows[:48])
    np.testing.assert_array_equal(blocks[:, 1].reshape(-1), rows[48:])
    both = jnp.asarray(np.random.default_rng(0).normal(size=(96, 5)))
    np.testing.assert_array_equal(interleave(both), both[mixed])


def test_embeddings_are_looked_up_in_every_storage_format() -> None:
    table = Layer(1, 32, 50).weight
    rows = jnp.asarray([0, 49, 17, 17, 15, 16])
    assert bit_patterns(table).dtype == jnp.uint16
    for form in (table, bit_patterns(table), pack(table), pack(table)[None]):
        taken = take_rows(form, rows)
        assert taken.dtype == jnp.bfloat16
        np.testing.assert_array_equal(wide(taken), wide(table[rows]))
    single = table.astype(jnp.float32)
    np.testing.assert_array_equal(take_rows(single, rows), single[rows])


# Eight bits.


def exact_and_bound(layer: Layer) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """A product in float64, and how far half a step of each operand can take it from that."""
    x, weight = (np.asarray(part.astype(jnp.float32), np.float64) for part in (layer.x, layer.weight))
    x_step, step = (np.abs(part).max(axis=1) / 127 for part in (x, weight))
    bound = np.abs(x).sum(axis=1)[:, None] * step / 2 + x_step[:, None] / 2 * np.abs(weight).sum(axis=1)
    bound += x.shape[1] * x_step[:, None] * step / 4
    return x @ weight.T, bound


@pytest.mark.parametrize(("x_size", "size"), [(1.0, 1.0), (1e-25, 1.0), (1e-20, 1e30), (1e20, 1e-28), (1e3, 1e33)])
def test_int8_rounding_errs_by_half_a_step(x_size: float, size: float) -> None:
    layer = Layer(9, 192, 48, int8=True)
    layer.x, layer.weight = layer.x * x_size, layer.weight * size
    exact, bound = exact_and_bound(layer)
    outs = [layer.plain(jnp.float32)]
    if native.unavailable() is None:
        outs.append(layer.kernel(dtype=jnp.float32))
    for out in outs:
        assert (np.abs(np.asarray(out, np.float64) - exact) <= 1.001 * bound).all()


def test_quantised_weights_are_rounded_to_nearest() -> None:
    weight = Layer(1, 64, 48).weight.astype(jnp.float32) * jnp.logspace(-20, 20, 48)[:, None]
    quantized, scale = quantize_int8(weight)
    assert (np.abs(np.asarray(quantized)).max(axis=1) == 127).all()
    error = np.abs(np.asarray(quantized, np.float64) * np.asarray(scale)[:, None] - np.asarray(weight))
    assert (error <= 0.5001 * np.asarray(scale)[:, None]).all()


def test_int8_rows_of_zeros_give_zeros() -> None:
    layer = Layer(9, 192, 48, int8=True)
    layer.x, layer.weight = layer.x.at[3].set(0), layer.weight.at[20:40].set(0)
    outs = [layer.plain(jnp.float32)]
    if native.unavailable() is None:
        outs.append(layer.kernel(dtype=jnp.float32))
    for out in outs:
        assert not wide(out)[3].any()
        assert not wide(out)[:, 20:40].any()
        assert np.isfinite(wide(out)).all()
        assert wide(out)[4, 0] != 0
