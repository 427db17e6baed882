"""Grouped weights in the CPU kernels, against gguf's own dequantisation."""

from __future__ import annotations

import gguf
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from gguf import GGMLQuantizationType

from asurge.ops import native
from asurge.ops.grouped import (
    TYPES,
    RawMatrix,
    grouped_argmax,
    grouped_linear,
    pack_parts,
    packed_bytes,
    take_grouped_rows,
)
from asurge.ops.native.huge_pages import zeros
from tests.kernels import needs_kernels

pytestmark = needs_kernels

STEP = 16
"""Numbers of x that share a scale."""


def raw_matrix(kind: str, columns: int, depth: int, seed: int = 0) -> RawMatrix:
    """Random blocks of a type, whose scales are ordinary numbers."""
    rng = np.random.default_rng(seed)
    block, size = gguf.GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    blocks = rng.integers(0, 256, (columns, depth // block, size), np.uint8)
    for at in {"Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}.get(kind, (0,)):
        half = (rng.uniform(0.5, 2.0, blocks.shape[:2]) * 1e-2).astype(np.float16)
        blocks[:, :, at : at + 2] = half[..., None].view(np.uint8)
    if kind in ("Q4_1", "Q5_1"):
        blocks[:, :, 2:4] = (
            (-rng.uniform(0.5, 2.0, blocks.shape[:2]) * 1e-1).astype(np.float16)[..., None].view(np.uint8)
        )
    if kind == "MXFP4":
        blocks[:, :, 0] = rng.integers(118, 126, blocks.shape[:2])
    if kind == "NVFP4":
        blocks[:, :, :4] = rng.integers(8, 64, (*blocks.shape[:2], 4))
    return RawMatrix(kind, blocks.reshape(columns, -1), depth)


def dequantized(matrix: RawMatrix) -> np.ndarray:
    """``[columns, depth]`` in float32, in the order of the columns."""
    plain = gguf.dequantize(matrix.rows, GGMLQuantizationType[matrix.type])
    return plain if matrix.order is None else plain[matrix.order]


def packed(parts: list[RawMatrix], *, gated: bool = False) -> tuple[np.ndarray, np.ndarray]:
    out = np.zeros(packed_bytes(parts), np.uint8)
    table, end = pack_parts(parts, out, 0, gated=gated)
    assert end == len(out)
    return out, table[None]


def rounded(x: np.ndarray) -> np.ndarray:
    """Rows as kernels multiply them: 8 bits for each `STEP` numbers."""
    rows, depth = x.shape
    steps = np.pad(x.astype(np.float32), ((0, 0), (0, -depth % STEP))).reshape(rows, -1, STEP)
    scale = np.maximum(np.abs(steps).max(axis=-1, keepdims=True), np.float32(1e-30)) / np.float32(127)
    return (np.rint(steps * (np.float32(1) / scale)).astype(np.float64) * scale).reshape(rows, -1)[:, :depth]


def rows_of(count: int, depth: int, seed: int = 1) -> np.ndarray:
    """Round to bf16, as hidden states are."""
    x = np.random.default_rng(seed).normal(size=(count, depth))
    return x.astype(ml_dtypes.bfloat16)


def close(out: np.ndarray, expected: np.ndarray, *, relative: float = 2e-5) -> None:
    """Equal but for the order of sums; relative to the root of the mean square."""
    error = np.abs(np.asarray(out, np.float64) - expected).max()
    assert error <= relative * np.sqrt(np.mean(expected**2)) * 8, error


@pytest.mark.parametrize("kind", TYPES)
def test_packed_embeddings_equal_the_rows_of_the_file(kind: str) -> None:
    depth = 512
    matrix = raw_matrix(kind, 32, depth)
    weight, strips = packed([matrix])
    tokens = np.array([0, 31, 16, 5, 5], np.int32)
    rows = take_grouped_rows(weight, strips, jnp.asarray(tokens), depth)
    expected = dequantized(matrix)[tokens].astype(ml_dtypes.bfloat16)
    assert np.array_equal(np.asarray(rows), expected)


@pytest.mark.parametrize("kind", TYPES)
def test_weights_take_the_memory_that_they_take_in_a_file(kind: str) -> None:
    matrix = raw_matrix(kind, 32, 2048)
    most = {"Q2_K": 1.2, "MXFP4": 1.06, "Q3_K": 1.06}.get(
        kind, 1.03
    )  # scales of 8 bits instead of 4, f16 instead of E8M0
    assert matrix.rows.size <= packed_bytes([matrix]) <= matrix.rows.size * most


@pytest.mark.parametrize("rows", [1, 40])
def test_each_scale_of_fp8_is_what_ggml_makes_of_it(rows: int) -> None:
    matrix = raw_matrix("NVFP4", 16, 64 * 64)
    blocks = matrix.rows.reshape(16, 64, 36).copy()
    blocks[..., :4] = np.arange(256).reshape(64, 4)
    matrix = RawMatrix("NVFP4", blocks.reshape(16, -1), matrix.depth)
    weight, strips = packed([matrix])
    plain = dequantized(matrix)
    taken = take_grouped_rows(weight, strips, jnp.arange(16, dtype=jnp.int32), matrix.depth)
    assert np.array_equal(np.asarray(taken), plain.astype(ml_dtypes.bfloat16))
    x = rows_of(rows, matrix.depth)
    close(grouped_linear(jnp.asarray(x), weight, strips, dtype=jnp.float32), rounded(x) @ plain.astype(np.float64).T)


@pytest.mark.parametrize("rows", [1, 9, 40])
@pytest.mark.parametrize("kind", TYPES)
def test_sums_of_the_largest_codes_do_not_overflow(kind: str, rows: int) -> None:
    """Products of bytes are added in 16 bits by some processors, which hold two of the largest at most."""
    matrix = raw_matrix(kind, 16, 512)
    block, size = gguf.GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    scales = {"Q2_K": (80, 84), "Q3_K": (108, 110), "Q6_K": (208, 210), "MXFP4": (0, 1)}
    begin, end = scales.get(kind, (0, 4 if kind in ("Q4_1", "Q5_1", "Q4_K", "Q5_K", "NVFP4") else 2))
    x = np.full((rows, 512), 127.0)
    x[1::3] *= -1
    x[2::3, ::2] *= -1
    for filling in (0x00, 0x7F, 0x80, 0xFF):
        blocks = matrix.rows.reshape(16, 512 // block, size).copy()
        kept = blocks[..., begin:end].copy()
        blocks[...] = filling
        blocks[..., begin:end] = kept
        extreme = RawMatrix(kind, blocks.reshape(16, -1), 512)
        weight, strips = packed([extreme])
        out = grouped_linear(jnp.asarray(x, jnp.bfloat16), weight, strips, dtype=jnp.float32)
        plain = dequantized(extreme).astype(np.float64)
        slack = 4e-6 * 127 * np.abs(plain).sum(axis=1) + 1e-6 * 127 * 512 * np.abs(plain).max()
        assert (np.abs(np.asarray(out, np.float64) - x @ plain.T) <= slack).all()


@pytest.mark.parametrize("rows", [1, 2, 19, 40])
def test_each_strip_is_multiplied_as_it_is_alone(rows: int) -> None:
    parts = [raw_matrix(kind, count, 512) for kind, count in (("Q4_K", 32), ("Q6_K", 16), ("Q8_0", 16), ("Q4_0", 64))]
    x = jnp.asarray(rows_of(rows, 512))
    alone = [np.asarray(grouped_linear(x, *packed([part]), dtype=jnp.float32)) for part in parts]
    for order in (1, -1):
        mixed = grouped_linear(x, *packed(parts[::order]), dtype=jnp.float32)
        assert np.array_equal(mixed, np.concatenate(alone[::order], axis=1))


@pytest.mark.parametrize("kind", ["Q4_K", "Q3_K", "Q8_0"])
@pytest.mark.parametrize("rows", [5, 40])
def test_numbers_that_are_not_finite_stay_with_their_row(kind: str, rows: int) -> None:
    weight, strips = packed([raw_matrix(kind, 64, 512)])
    x = rows_of(rows, 512)
    before = np.asarray(grouped_linear(jnp.asarray(x), weight, strips, dtype=jnp.float32))
    x[1, 7], x[3, 300] = np.nan, np.inf
    after = np.asarray(grouped_linear(jnp.asarray(x), weight, strips, dtype=jnp.float32))
    others = np.setdiff1d(np.arange(rows), (1, 3))
    assert np.array_equal(after[others], before[others])
    assert np.isnan(after[[1, 3]]).all()


@pytest.mark.parametrize("rows", [1, 3, 8, 13, 40])
@pytest.mark.parametrize("kind", TYPES)
def test_products_are_those_of_the_weights_and_rounded_rows(kind: str, rows: int) -> None:
    matrix = raw_matrix(kind, 80, 512)
    weight, strips = packed([matrix])
    x = rows_of(rows, 512)
    out = grouped_linear(jnp.asarray(x), weight, strips, dtype=jnp.float32)
    close(out, rounded(x) @ dequantized(matrix).astype(np.float64).T)


@pytest.mark.parametrize("kind", ["Q4_0", "Q5_1", "Q8_0", "IQ4_NL", "MXFP4"])
def test_depth_may_be_a_multiple_of_half_a_tile(kind: str) -> None:
    matrix = raw_matrix(kind, 32, 96)
    weight, strips = packed([matrix])
    x = rows_of(5, 96)
    out = grouped_linear(jnp.asarray(x), weight, strips, dtype=jnp.float32)
    close(out, rounded(x) @ dequantized(matrix).astype(np.float64).T)


def test_parts_of_different_types_in_another_order_make_one_weight() -> None:
    order = np.random.default_rng(3).permutation(48).astype(np.int32)
    parts = [raw_matrix("Q4_K", 48, 256), raw_matrix("Q6_K", 32, 256), raw_matrix("Q8_0", 16, 256)]
    parts[0] = RawMatrix(parts[0].type, parts[0].rows, 256, order)
    weight, strips = packed(parts)
    x = rows_of(3, 256)
    out = grouped_linear(jnp.asarray(x), weight, strips, dtype=jnp.float32)
    plain = np.concatenate([dequantized(part) for part in parts]).astype(np.float64)
    close(out, rounded(x) @ plain.T)


def test_layers_of_a_stack_equal_single_ones() -> None:
    layers = [[raw_matrix("Q4_K", 32, 256, 0)], [raw_matrix("Q6_K", 32, 256, 1)], [raw_matrix("Q4_K", 32, 256, 2)]]
    out = np.zeros(sum(map(packed_bytes, layers)), np.uint8)
    tables, at = [], 0
    for parts in layers:
        table, at = pack_parts(parts, out, at)
        tables.append(table)
    x = rows_of(2, 256)
    for number, (part,) in enumerate(layers):
        product = grouped_linear(jnp.asarray(x), out, np.stack(tables), dtype=jnp.float32, layer=number)
        close(product, rounded(x) @ dequantized(part).astype(np.float64).T)


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
def test_gates_are_applied(activation: str) -> None:
    gate, up = raw_matrix("Q4_0", 48, 128, 0), raw_matrix("Q5_0", 48, 128, 1)
    weight, strips = packed([gate, up], gated=True)
    x = rows_of(9, 128)
    out = grouped_linear(jnp.asarray(x), weight, strips, gated=True, activation=activation)  # type: ignore[arg-type]
    wide = rounded(x)
    left, right = (wide @ dequantized(part).astype(np.float64).T for part in (gate, up))
    if activation == "silu":
        factor = 1 / (1 + np.exp(-left))
    else:
        factor = 0.5 * (1 + np.tanh(np.sqrt(2 / np.pi) * (left + 0.044715 * left**3)))
    expected = left * factor * right
    assert np.abs(np.asarray(out, np.float64) - expected).max() <= 0.02 * np.abs(expected).max()


def test_norm_bias_and_residual() -> None:
    matrix = raw_matrix("Q4_1", 64, 192)
    weight, strips = packed([matrix])
    rng = np.random.default_rng(5)
    x, norm, bias, residual = (
        rng.normal(size=shape).astype(ml_dtypes.bfloat16) for shape in ((4, 192), (192,), (64,), (4, 64))
    )
    out = grouped_linear(
        *map(jnp.asarray, (x, weight, strips)),
        norm=jnp.asarray(norm),
        epsilon=1e-5,
        bias=jnp.asarray(bias),
        residual=jnp.asarray(residual),
    )
    wide = x.astype(np.float64)
    normalised = wide / np.sqrt((wide**2).mean(axis=1, keepdims=True) + 1e-5) * norm.astype(np.float64)
    expected = (
        rounded(normalised) @ dequantized(matrix).astype(np.float64).T
        + bias.astype(np.float64)
        + residual.astype(np.float64)
    )
    assert np.abs(np.asarray(out, np.float64) - expected).max() <= 2**-7 * np.abs(expected).max()


def test_argmax_takes_the_largest_allowed_column() -> None:
    matrix = raw_matrix("Q6_K", 96, 256)
    weight, strips = packed([matrix])
    x, candidates = rows_of(7, 256), 90
    logits = np.asarray(grouped_linear(jnp.asarray(x), weight, strips, dtype=jnp.float32))[:, :candidates]
    found = grouped_argmax(jnp.asarray(x), weight, strips, candidates=candidates)
    assert np.array_equal(found, logits.argmax(axis=1))
    allowed = np.random.default_rng(2).integers(0, 2**32, (7, 3), np.uint32)
    bits = np.unpackbits(allowed.view(np.uint8), axis=1, bitorder="little")[:, :candidates].astype(bool)
    found = grouped_argmax(jnp.asarray(x), weight, strips, candidates=candidates, allowed=jnp.asarray(allowed))
    assert np.array_equal(found, np.where(bits, logits, -np.inf).argmax(axis=1))


def test_padding_rows_are_skipped() -> None:
    matrix = raw_matrix("Q4_0", 32, 128)
    weight, strips = packed([matrix])
    x = rows_of(40, 128)
    whole = np.asarray(grouped_linear(jnp.asarray(x), weight, strips, dtype=jnp.float32))
    live = np.array([3, 0, 8], np.int32)
    some = np.asarray(grouped_linear(jnp.asarray(x), weight, strips, dtype=jnp.float32, live=jnp.asarray(live)))
    for tile, count in enumerate(live):
        assert np.array_equal(some[16 * tile : 16 * tile + count], whole[16 * tile : 16 * tile + count])


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_K", "Q6_K"])
def test_a_row_is_the_same_in_any_batch_with_any_number_of_threads(kind: str) -> None:
    matrix = raw_matrix(kind, 160, 256)
    weight, strips = packed([matrix])
    x = rows_of(33, 256)
    whole = np.asarray(grouped_linear(jnp.asarray(x), weight, strips, dtype=jnp.float32))
    try:
        for threads in (1, 2, 3):
            native.set_threads(threads)
            assert np.array_equal(grouped_linear(jnp.asarray(x), weight, strips, dtype=jnp.float32), whole)
    finally:
        native.set_threads(2)
    for row in (0, 7, 32):
        alone = grouped_linear(jnp.asarray(x[row : row + 1]), weight, strips, dtype=jnp.float32)
        assert np.array_equal(np.asarray(alone)[0], whole[row])


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (np.full((1, 2, 2), 1 << 20, np.int32), "outside"),
        (np.array([[[0, 99], [0, 99]]], np.int32), "outside"),
        (np.array([[[0, -1], [0, -1]]], np.int32), "outside"),
        (np.zeros((1, 2, 3), np.int32), "outside"),
    ],
)
def test_strips_outside_of_the_weight_are_refused(table: np.ndarray, message: str) -> None:
    weight, _ = packed([raw_matrix("Q4_0", 32, 128)])
    with pytest.raises(Exception, match=message):
        grouped_linear(jnp.asarray(rows_of(1, 128)), weight, table, dtype=jnp.float32).block_until_ready()


def test_operands_that_do_not_fit_are_refused() -> None:
    weight, strips = packed([raw_matrix("Q4_0", 32, 128)])
    with pytest.raises(Exception, match="outside"):
        grouped_linear(jnp.asarray(rows_of(1, 1024)), weight, strips, dtype=jnp.float32).block_until_ready()
    with pytest.raises(Exception, match="no such row"):
        take_grouped_rows(weight, strips, jnp.asarray([32]), 128).block_until_ready()
    assert zeros((4,), jnp.dtype(jnp.uint8)).shape == (4,)
