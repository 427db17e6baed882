"""The CPU kernels alone: ``python -m benchmarks.kernels [--rows 1,8,64] [--model S] [--types Q4_0,Q4_K]``.

Products of the layers of S or M, and attention of sequences that generate, with contexts of their own and after a common
beginning, in bf16 and int8; and random samples, beside those in plain JAX. In one dispatch, each kernel runs in too many copies to fit in the caches; figures are of the fastest
of a few dispatches, since disturbances can only slow a kernel down.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from asurge.models import family_for
from asurge.models.config import DecoderConfig
from asurge.ops import native
from asurge.ops.attention import AttentionShape, Heads, NativeAttention, Pages, Rows
from asurge.ops.grouped import LINE, TYPES, grouped_argmax, grouped_linear, strip_bytes
from asurge.ops.native import sampling as kernel
from asurge.ops.native.huge_pages import zeros
from asurge.ops.packed import COLUMNS, pack, packed_argmax, packed_linear
from asurge.ops.sampling import SampleFunction, SamplingInputs, sample
from benchmarks.checkpoints import CONFIGS

PAGE, _COLD_BYTES, _REPEATS = 64, 300 << 20, 7


def fastest_s(work: Callable[[], jax.Array]) -> float:
    """The best of a few runs, after one that compiles."""
    times = []
    for _ in range(_REPEATS + 1):
        begun = time.perf_counter()
        work().block_until_ready()
        times.append(time.perf_counter() - begun)
    return min(times[1:])


def _after(done: jax.Array, x: jax.Array) -> jax.Array:
    """``x``, but not before ``done`` is there: XLA runs independent operations at once, barriers or not."""
    return jnp.where(done.ravel()[0] == -12345, jnp.zeros_like(x), x)


def product_s(rows: int, depth: int, columns: int, *, int8: bool, gated: bool = False, argmax: bool = False) -> float:
    """Seconds of one product whose weights come from memory."""
    packed = jax.eval_shape(pack, jax.ShapeDtypeStruct((columns, depth), jnp.int8 if int8 else jnp.bfloat16))
    copies = max(1, min(64, _COLD_BYTES // (packed.size * packed.dtype.itemsize)))
    weights = [zeros(packed.shape, packed.dtype) for _ in range(copies)]  # on huge pages, as in an engine
    scale = jnp.ones(packed.shape[0] * 16, jnp.float32) if int8 else None
    x = jnp.asarray(np.random.default_rng(0).normal(size=(rows, depth)), jnp.bfloat16)
    norm = jnp.ones(depth, jnp.bfloat16)

    @jax.jit
    def run(x: jax.Array, weights: list[jax.Array]) -> jax.Array:
        factor = norm
        for each in weights:
            if argmax:
                out = packed_argmax(x, each, scale, norm=factor, candidates=columns)
            else:
                out = packed_linear(x, each, scale, norm=factor, gated=gated)
            factor = _after(out, norm)
        return factor

    return fastest_s(lambda: run(x, weights)) / copies


def grouped_s(
    rows: int, depth: int, columns: int, matrix_type: str, *, gated: bool = False, argmax: bool = False
) -> float:
    """Seconds of one product whose weights, of a type of GGUF, come from memory."""
    size, strips = strip_bytes(matrix_type, depth), columns // COLUMNS
    copies = max(1, min(64, _COLD_BYTES // (strips * size)))
    table = np.empty((copies, strips, 2), np.int32)
    table[..., 0] = np.arange(copies * strips).reshape(copies, strips) * (size // LINE)
    table[..., 1] = TYPES.index(matrix_type)
    weight = zeros((copies * strips * size,), jnp.dtype(jnp.uint8))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(rows, depth)), jnp.bfloat16)
    norm = jnp.ones((copies, depth), jnp.bfloat16)

    @jax.jit
    def run(x: jax.Array, weight: jax.Array, table: jax.Array) -> jax.Array:
        factor = norm
        for layer in range(copies):
            if argmax:
                one = slice(layer, layer + 1)
                out = grouped_argmax(x, weight, table[one], norm=factor[one], candidates=columns)
            else:
                out = grouped_linear(x, weight, table, norm=factor, gated=gated, layer=layer)
            factor = _after(out, norm)
        return factor

    return fastest_s(lambda: run(x, weight, jnp.asarray(table))) / copies


def attention_s(sizes: DecoderConfig, rows: int, context: int, shared: int, *, int8: bool) -> float:
    """Seconds of one layer's attention, ``shared`` tokens of each context being the same pages."""
    dtype = jnp.dtype(jnp.bfloat16)
    shape = AttentionShape(sizes.num_heads, sizes.num_kv_heads, sizes.head_dim, PAGE, dtype, int8_pages=int8)
    backend = NativeAttention(shape)
    columns = -(-context // PAGE)
    table = np.random.default_rng(0).permutation(rows * columns).astype(np.int32).reshape(rows, columns)
    table[:, : shared // PAGE] = table[0, : shared // PAGE]
    layers = max(1, min(30, _COLD_BYTES // (rows * columns * backend.page_bytes)))
    pages = backend.allocate(rows * columns, layers)
    tokens = Rows(
        rows, 0, 0, jnp.full(rows, context - 1, jnp.int32), jnp.ones(rows, jnp.int32), jnp.asarray(table)
    )  # fmt: skip
    qkv = jnp.ones((rows, sizes.num_heads + 2 * sizes.num_kv_heads, sizes.head_dim), jnp.bfloat16)
    angle = jnp.zeros((rows, 1, sizes.head_dim // 2), jnp.float32)
    heads = Heads(qkv, sizes.num_heads, sizes.num_kv_heads, jnp.cos(angle), jnp.sin(angle))

    @functools.partial(jax.jit, donate_argnums=0)
    def step(pages: Pages) -> tuple[Pages, jax.Array]:
        turned = heads
        for level in range(layers):
            out, pages = backend.attend(turned, pages, tokens, None, level)
            turned = dataclasses.replace(heads, cos=_after(out, heads.cos))
        return pages, turned.cos

    def run() -> jax.Array:
        nonlocal pages
        pages, last = step(pages)
        return last

    return fastest_s(run) / layers


def sampling_s(
    sample: SampleFunction, vocab_size: int, rows: int, temperature: float, top_k: int, top_p: float
) -> float:
    """Seconds to sample a token for each row, from logits that are in the caches."""
    rng = np.random.default_rng(0)
    logits = jnp.asarray(rng.normal(size=(rows, vocab_size)) * 2, jnp.float32)
    inputs = SamplingInputs(
        temperature=jnp.full(rows, temperature, jnp.float32),
        top_k=jnp.full(rows, top_k, jnp.int32),
        top_p=jnp.full(rows, top_p, jnp.float32),
        min_p=jnp.zeros(rows, jnp.float32),
        seed=jnp.arange(rows, dtype=jnp.uint32),
        position=jnp.arange(rows, dtype=jnp.int32),
    )
    run = jax.jit(functools.partial(sample, vocab_size=vocab_size))
    return fastest_s(lambda: run(logits, inputs))


def sampling(vocab_sizes: list[int], rows: int = 64) -> Table:
    table = Table(
        "vocabulary", "temperature", "top-k", "top-p", "kernel ms", "plain JAX ms", title=f"Sampling for {rows} rows"
    )
    settings = [(0.0, 0, 1.0), (1.0, 0, 1.0), (0.7, 40, 1.0), (0.7, 0, 0.9), (1.5, 0, 0.95)]
    for vocab_size in vocab_sizes:
        for setting in settings:
            cells = [
                f"{sampling_s(sample, vocab_size, rows, *setting) * 1e3:.1f}" for sample in (kernel.sample, sample)
            ]
            table.add_row(str(vocab_size), *map(str, setting), *cells, end_section=setting == settings[-1])
    return table


def _products_of(sizes: DecoderConfig) -> list[tuple[str, int, int, dict[str, bool]]]:
    """Name, depth, columns and what surrounds it, of each product of a step."""
    return [
        ("qkv", sizes.hidden_size, (sizes.num_heads + 2 * sizes.num_kv_heads) * sizes.head_dim, {}),
        ("out", sizes.num_heads * sizes.head_dim, sizes.hidden_size, {}),
        ("gate, up", sizes.hidden_size, 2 * sizes.intermediate_size, {"gated": True}),
        ("down", sizes.intermediate_size, sizes.hidden_size, {}),
        ("head, largest", sizes.hidden_size, sizes.vocab_size, {"argmax": True}),
    ]


def products(sizes: DecoderConfig, numbers: list[int]) -> Table:
    table = Table("rows", "product", "bf16 us", "GFLOP/s", "GB/s", "int8 us", "GOP/s", "GB/s", title="Products")
    kinds = _products_of(sizes)
    for rows in numbers:
        for name, depth, columns, how in kinds:
            cells = []
            for int8 in (False, True):
                took_s = product_s(rows, depth, columns, int8=int8, **how)
                size = depth * columns
                cells += [f"{took_s * 1e6:.0f}", f"{2 * rows * size / took_s / 1e9:.0f}"]
                cells += [f"{size * (1 if int8 else 2) / took_s / 1e9:.1f}"]
            table.add_row(str(rows), name, *cells, end_section=name == kinds[-1][0])
    return table


def grouped_products(sizes: DecoderConfig, numbers: list[int], types: list[str]) -> Table:
    """Products with weights of types of GGUF beside those in int8."""
    columns = [column for name in types for column in (f"{name} us", "GB/s", "times int8")]
    table = Table("rows", "product", "int8 us", *columns, title="Products with grouped weights")
    kinds = _products_of(sizes)
    for rows in numbers:
        for name, depth, width, how in kinds:
            int8_s = product_s(rows, depth, width, int8=True, **how)
            cells = [f"{int8_s * 1e6:.0f}"]
            for matrix_type in types:
                if matrix_type.endswith(("_K", "_XS")) and depth % 256:
                    cells += ["", "", ""]  # there are no such files
                    continue
                took_s = grouped_s(rows, depth, width, matrix_type, **how)
                read = width // COLUMNS * strip_bytes(matrix_type, depth)
                cells += [f"{took_s * 1e6:.0f}", f"{read / took_s / 1e9:.1f}", f"{int8_s / took_s:.2f}"]
            table.add_row(str(rows), name, *cells, end_section=name == kinds[-1][0])
    return table


def attention(sizes: DecoderConfig) -> Table:
    columns = ("sequences", "context", "shared", "bf16 us", "GB/s", "int8 us", "GB/s")
    table = Table(*columns, title="Attention, one layer")
    for rows, context, shared in (
        (1, 2040, 0),
        (16, 200, 0),
        (64, 200, 0),
        (32, 560, 0),
        (32, 560, 512),
        (32, 4150, 4096),
    ):
        cells = []
        for int8 in (False, True):
            took_s = attention_s(sizes, rows, context, shared, int8=int8)
            head_bytes = sizes.head_dim + 4 if int8 else 2 * sizes.head_dim
            read = 2 * rows * context * sizes.num_kv_heads * head_bytes
            cells += [f"{took_s * 1e6:.0f}", f"{read / took_s / 1e9:.1f}"]
        table.add_row(str(rows), str(context), str(shared), *cells)
    return table


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=sorted(CONFIGS), default="S")
    parser.add_argument("--rows", default="1,8,16,32,64,512", help="of the products, separated by commas")
    parser.add_argument(
        "--types", help="of GGUF, separated by commas: only products with weights of these are measured"
    )
    options = parser.parse_args(arguments)
    if (reason := native.unavailable()) is not None:
        raise SystemExit(f"there are no kernels to measure: {reason}")
    raw = CONFIGS[options.model]
    console, sizes = Console(), family_for(raw).config(raw)
    rows = [int(count) for count in options.rows.split(",")]
    if options.types:
        console.print(grouped_products(sizes, rows, options.types.split(",")))
        return
    console.print(attention(sizes))
    console.print(sampling([4096, sizes.vocab_size]))
    console.print(products(sizes, rows))


if __name__ == "__main__":
    main()
