"""Measure how fast a GPU runs asurge's step, beside what its memory and its tensor cores allow.

``python benchmarks/gpu.py [--json PATH]`` from a checkout. Needs nothing but asurge's dependencies: models have the shapes of
Llama 3 and random weights, made on the device. First the kernels are compared with a dense float32 reference; then come two
floors, how fast the device copies and how fast it multiplies, and the time of steps over the larger floor of each.
``--tiny`` runs everything at a small size, on a CPU with kernels interpreted: it shows that the script works, not how fast.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import math
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from asurge.models import DenseAttend, convert
from asurge.models.config import DecoderConfig
from asurge.models.decoder import Decoder
from asurge.ops.attention import AttentionBackend, AttentionShape, GpuAttention, XlaAttention, dense_attention
from asurge.ops.attention.gpu import default_decode
from asurge.ops.attention.gpu_kernel import Tuning, paged_attention
from asurge.plan import PageTable, PlanRow, RowSampling, StepPlan
from asurge.runner.buckets import LONG_ROW, StepShape
from asurge.runner.page_layout import choose_layout
from asurge.runner.step import StepSpec, make_step, split_model
from asurge.runner.step_inputs import TableShape, pack

Document = dict[str, Any]

MODELS = {
    "1B": DecoderConfig(128256, 2048, 8192, 16, 32, 8, 64, 131072, rope_theta=5e5, tie_word_embeddings=True),
    "8B": DecoderConfig(128256, 4096, 14336, 32, 32, 8, 128, 131072, rope_theta=5e5),
}
TINY = {"tiny": DecoderConfig(256, 64, 128, 1, 4, 2, 16, 256)}

COMMAND_BUFFERS: dict[str, dict[str, str]] = {
    "default": {},
    "off": {"xla_gpu_enable_command_buffer": ""},
    "on": {"xla_gpu_enable_command_buffer": "FUSION,CUBLAS,CUBLASLT,CUSTOM_CALL,CUDNN,DYNAMIC_SLICE_FUSION"},
    "loops": {
        "xla_gpu_enable_command_buffer": "FUSION,CUBLAS,CUBLASLT,CUSTOM_CALL,CUDNN,DYNAMIC_SLICE_FUSION,WHILE,CONDITIONAL",
        "xla_gpu_graph_min_graph_size": "1",
    },
}
"""Settings of XLA for CUDA graphs: the default, none, straight lines, and loops and branches too."""


@dataclasses.dataclass(frozen=True)
class Scale:
    """Sizes of the model, its pages and its steps."""

    models: dict[str, DecoderConfig]
    decode: tuple[int, ...] = (1, 32, 256)
    prefill: tuple[int, ...] = (2048, 8192)
    context: int = 1024
    decode_steps: int = 8
    page_size: int = 64
    copy_bytes: int = 2 << 30
    product: int = 8192
    dtype: str = "bfloat16"
    repeats: int = 20


SMALL = Scale(TINY, (3,), (32,), 24, 2, 8, 1 << 20, 128, "float32", 2)


@dataclasses.dataclass(frozen=True)
class Floors:
    """Measured peak bandwidth and arithmetic of the device."""

    copy_bytes_per_s: float
    flops_per_s: float

    def step_s(self, read_bytes: float, flops: float) -> float:
        return max(read_bytes / self.copy_bytes_per_s, flops / self.flops_per_s)


def seconds(run: Callable[[], Any], repeats: int, rounds: int = 3) -> float:
    """Seconds of one call among many dispatched at once, in the best round."""
    jax.block_until_ready(run())
    best = math.inf
    for _ in range(rounds):
        began = time.perf_counter()
        for _ in range(repeats):
            last = run()
        jax.block_until_ready(last)
        best = min(best, (time.perf_counter() - began) / repeats)
    return best


def measure_floors(scale: Scale) -> Floors:
    size, n = scale.copy_bytes // 4, scale.product
    source = jnp.ones((size,), jnp.float32)
    copy = jax.jit(lambda x: x + 1.0)
    copy_s = seconds(lambda: copy(source), scale.repeats)
    source.delete()
    a, b = (jax.random.normal(jax.random.key(seed), (n, n), jnp.bfloat16) for seed in range(2))
    multiply = jax.jit(lambda x, y: x @ y)
    product_s = seconds(lambda: multiply(a, b), scale.repeats)
    return Floors(2 * scale.copy_bytes / copy_s, 2 * n**3 / product_s)


def random_model(config: DecoderConfig, dtype: str, seed: int = 0) -> Decoder:
    """Made on the device, leaf by leaf: one small function for each shape there is."""
    graph, state = nnx.split(nnx.eval_shape(lambda: Decoder(config, dtype=jnp.dtype(dtype), rngs=None)))
    fill = jax.jit(
        lambda key, shape, kind: (0.02 * jax.random.normal(key, shape, jnp.float32)).astype(kind), static_argnums=(1, 2)
    )
    leaves, tree = jax.tree.flatten(state)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    arrays = [
        jnp.ones(leaf.shape, leaf.dtype) if len(leaf.shape) == 1 else fill(key, leaf.shape, leaf.dtype)
        for key, leaf in zip(keys, leaves, strict=True)
    ]
    return nnx.merge(graph, jax.tree.unflatten(tree, arrays))


def backend_for(kernels: str, config: DecoderConfig, scale: Scale, dtype: str) -> AttentionBackend:
    shape = AttentionShape(config.num_heads, config.num_kv_heads, config.head_dim, scale.page_size, jnp.dtype(dtype))
    if kernels == "xla":
        return XlaAttention(shape)
    reason = GpuAttention.unable(shape)
    if reason is not None:
        raise SystemExit(f"the kernel cannot run here: {reason}")
    return GpuAttention(shape, interpret=jax.default_backend() != "gpu")


class Steps:
    """A model and its pages, stepped as `asurge.runner.DeviceRunner` does it."""

    def __init__(
        self,
        model: Decoder,
        attention: AttentionBackend,
        scale: Scale,
        sequences: int,
        tokens: int,
        decode_steps: int = 1,
    ) -> None:
        self.scale, self.slots = scale, sequences
        self.columns = -(-tokens // scale.page_size)
        self.leaves, rebuild = split_model(model)
        layout = choose_layout(model.config.seen, lambda window: self.columns)
        self.tables = TableShape(1, self.columns)
        self.spec = StepSpec(
            rebuild, attention, layout, self.tables, most_rows=0, most_tokens=0, max_decode_steps=decode_steps
        )
        count = sequences * self.columns + 1
        self.pages = attention.allocate(count, model.config.num_layers)
        self.last = jnp.zeros((sequences + 1,), jnp.int32)
        self.compiled: dict[StepShape, Any] = {}

    def row(self, slot: int, start: int, tokens: np.ndarray | None, decode_steps: int = 1) -> PlanRow:
        table = PageTable(0, np.arange(1 + slot * self.columns, 1 + (slot + 1) * self.columns, dtype=np.int32))
        return PlanRow(str(slot), 0, slot, start, tokens, True, (table,), RowSampling(), decode_steps)

    def prepare(self, plan: StepPlan, shape: StepShape, options: dict[str, str]) -> Callable[[], jax.Array]:
        """A compiled step; each call runs it once more and returns what it sampled."""
        packed, _ = pack(plan, shape, self.tables, self.slots)
        if shape not in self.compiled:
            spec = dataclasses.replace(self.spec, most_rows=shape.rows, most_tokens=shape.tokens)
            function = jax.jit(make_step(spec, shape), donate_argnums=(1, 2))
            lowered = function.lower(self.leaves, self.pages, self.last, packed)
            self.compiled[shape] = lowered.compile(compiler_options=options or None)
        step = self.compiled[shape]

        def run() -> jax.Array:
            self.pages, self.last, sampled, _ = step(self.leaves, self.pages, self.last, packed)
            return sampled

        return run


def check_step(scale: Scale, kernels: str) -> Document:
    """Tokens that a small float32 model samples after a prompt in two chunks, against a dense forward of the whole."""
    config = DecoderConfig(256, 128, 256, 1 if scale is SMALL else 2, 6, 2, 64, 512)
    prompt = np.random.default_rng(0).integers(0, 256, 150).astype(np.int32)
    model = random_model(config, "float32")
    decode_steps = 3 if scale is SMALL else 12
    with jax.default_matmul_precision("highest"):
        steps = Steps(model, backend_for(kernels, config, scale, "float32"), scale, 2, 256)
        found: list[int] = []
        for begin, end in ((0, 70), (70, 150)):
            plan = StepPlan(0, (), (steps.row(1, begin, prompt[begin:end]),))
            sampled = steps.prepare(plan, StepShape(2, 5, 16), {})()
        found.append(int(sampled[-1, 0] if sampled.shape[0] == 1 else sampled[2 + -(-80 // 16) - 1, 0]))
        for at in range(decode_steps - 1):
            plan = StepPlan(0, (steps.row(1, 150 + at, None),), ())
            found.append(int(steps.prepare(plan, StepShape(2), {})()[0, 0]))
        whole = jnp.asarray(np.concatenate((prompt, found[:-1])), jnp.int32)
        logits = model.logits(model(whole, jnp.arange(len(whole)), DenseAttend(config)))[149:, : config.vocab_size]
    best = logits.max(axis=-1) - logits[jnp.arange(decode_steps), jnp.asarray(found)]
    return {
        "kernels": kernels,
        "tokens": decode_steps,
        "worst_gap_to_best_logit": float(best.max()),
        "right": bool(best.max() < 1e-3),
    }


def check_attention(scale: Scale, config: DecoderConfig, dtype: str) -> Document:
    """Decode and prefill over shuffled pages full of NaN, against a dense float32 reference."""
    tokens, size = 4 * scale.page_size + 3, scale.page_size
    keys = jax.random.split(jax.random.key(1), 3)
    heads, kv_heads, dim = config.num_heads, config.num_kv_heads, config.head_dim
    q, k, v = (
        jax.random.normal(key, (tokens, n, dim), jnp.dtype(dtype))
        for key, n in zip(keys, (heads, kv_heads, kv_heads), strict=True)
    )
    table = jnp.asarray([[7, 2, 5, 1, 9, 0, 0, 0]], jnp.int32)
    where = table[0, jnp.arange(tokens) // size], jnp.arange(tokens) % size
    pages = [jnp.full((11, kv_heads, size, dim), jnp.nan, dtype).at[where[0], :, where[1]].set(x) for x in (k, v)]
    expected = np.asarray(dense_attention(*(x.astype(jnp.float32) for x in (q, k, v)), scale=dim**-0.5))
    errors = {}
    for name, start, length in (("decode", tokens - 1, 1), ("prefill", 3, tokens - 3)):
        out = paged_attention(
            q[None, start : start + length],
            *pages,
            table,
            jnp.asarray([start]),
            jnp.asarray([length]),
            scale=dim**-0.5,
            window=None,
            tuning=Tuning(),
            interpret=jax.default_backend() != "gpu",
        )
        errors[name] = float(np.abs(np.asarray(out[0]).astype(np.float32) - expected[start : start + length]).max())
    limit = 1e-4 if dtype == "float32" else 3e-2
    return {"head_dim": dim, "dtype": dtype, "errors": errors, "right": all(x < limit for x in errors.values())}


def footprint(model: Decoder) -> tuple[int, int]:
    """Bytes and parameters of the weights that a step reads: all but an embedding that is not also the head."""
    leaves = jax.tree.leaves(nnx.state(model))
    table = 0 if model.config.tie_word_embeddings and model.head is None else model.embedding[...].nbytes
    count = model.config.vocab_size * model.config.hidden_size if table else 0
    return sum(x.nbytes for x in leaves) - table, sum(x.size for x in leaves) - count


def step_times(
    model: Decoder, kernels: str, scale: Scale, floors: Floors, options: dict[str, str]
) -> Iterator[Document]:
    """Decode at each number of sequences, alone and in groups of steps, and prefill."""
    config = model.config
    weight_bytes, parameters = footprint(model)
    per_token = 2 * config.num_kv_heads * config.head_dim * jnp.dtype(scale.dtype).itemsize * config.num_layers
    per_pair = 4 * config.num_heads * config.head_dim * config.num_layers
    tokens = scale.context + scale.decode_steps + 1
    for rows, decode_steps in itertools.product(scale.decode, (1, scale.decode_steps)):
        attention = backend_for(kernels, config, scale, scale.dtype)
        steps = Steps(model, attention, scale, rows, tokens, decode_steps)
        plan = StepPlan(0, tuple(steps.row(slot, scale.context, None, decode_steps) for slot in range(rows)), ())
        took = (
            seconds(steps.prepare(plan, StepShape(max(rows, 2)), options), max(1, scale.repeats // decode_steps))
            / decode_steps
        )
        flops = rows * (2 * parameters + per_pair * scale.context)
        floor = floors.step_s(weight_bytes + rows * scale.context * per_token, flops)
        yield {
            "workload": "decode",
            "rows": rows,
            "decode_steps": decode_steps,
            "context": scale.context,
            "step_s": took,
            "floor_s": floor,
        }
    for length in scale.prefill:
        width = min(LONG_ROW, length)
        steps = Steps(model, backend_for(kernels, config, scale, scale.dtype), scale, 1, length)
        plan = StepPlan(0, (), (steps.row(0, 0, np.arange(length, dtype=np.int32) % 250),))
        took = seconds(
            steps.prepare(plan, StepShape(2, -(-length // width), width), options), max(1, scale.repeats // 4)
        )
        floor = floors.step_s(weight_bytes, length * (2 * parameters + per_pair * length / 2))
        yield {"workload": "prefill", "tokens": length, "step_s": took, "floor_s": floor}


def sweep(config: DecoderConfig, scale: Scale, floors: Floors) -> Iterator[Document]:
    """The kernel alone in one layer, in many layouts; one that does not compile is reported."""
    shape = AttentionShape(
        config.num_heads, config.num_kv_heads, config.head_dim, scale.page_size, jnp.dtype(scale.dtype)
    )
    small = scale is SMALL
    blocks, warps, stages = ((16,), (4,), (2,)) if small else ((32, 64, 128), (2, 4, 8), (2, 3, 4))
    for rows, width in (*((rows, 1) for rows in scale.decode), (max(1, scale.prefill[0] // LONG_ROW), LONG_ROW)):
        if small and width > 1:
            width = scale.prefill[0]
        context = max(scale.context, width)
        lanes = (1,) if width == 1 else (64, 128)
        programs = (256, 512, 1024) if width == 1 and not small else (512,)
        run, kv_bytes = kernel_call(shape, rows, width, context)
        standard = default_decode(shape) if width == 1 else Tuning()
        for choice in itertools.product(lanes, blocks, warps, stages, programs):
            tuning = Tuning(*choice)
            line: Document = {"rows": rows, "width": width, "context": context, "tuning": dataclasses.asdict(tuning)}
            line |= {"floor_s": kv_bytes / floors.copy_bytes_per_s, "standard": tuning == standard}
            try:
                line["call_s"] = seconds(partial(run, tuning), scale.repeats)
            except Exception as error:
                line["error"] = str(error)[:200]
            yield line


def kernel_call(
    shape: AttentionShape, rows: int, width: int, context: int
) -> tuple[Callable[[Tuning], jax.Array], int]:
    """A call of the kernel by its layout, and the bytes of keys and values it must read."""
    columns = -(-context // shape.page_size)
    size = (rows * columns + 1, shape.num_kv_heads, shape.page_size, shape.head_dim)
    q = jnp.ones((rows, width, shape.num_heads, shape.head_dim), shape.dtype)
    keys, values = jnp.ones(size, shape.dtype), jnp.ones(size, shape.dtype)
    table = 1 + jnp.arange(rows * columns, dtype=jnp.int32).reshape(rows, columns)
    start, length = jnp.full((rows,), context - width, jnp.int32), jnp.full((rows,), width, jnp.int32)
    jitted = jax.jit(paged_attention, static_argnames=("scale", "window", "tuning", "interpret"))

    def run(tuning: Tuning) -> jax.Array:
        interpret = jax.default_backend() != "gpu"
        options = {"scale": shape.scale, "window": None, "tuning": tuning, "interpret": interpret}
        return jitted(q, keys, values, table, start, length, **options)

    return run, 2 * rows * context * shape.num_kv_heads * shape.head_dim * q.dtype.itemsize


def machine() -> Document:
    device = jax.devices()[0]
    found = {
        "device": device.device_kind,
        "platform": device.platform,
        "jax": jax.__version__,
        "python": platform.python_version(),
    }
    query = [
        "nvidia-smi",
        "--query-gpu=name,driver_version,memory.total,clocks.max.sm,power.limit",
        "--format=csv,noheader",
    ]
    try:
        found["nvidia_smi"] = subprocess.run(
            query, capture_output=True, text=True, check=True, timeout=30
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        found["nvidia_smi"] = None
    return found


def measure(arguments: argparse.Namespace, tell: Callable[[str], None]) -> Document:
    scale = SMALL if arguments.tiny else dataclasses.replace(Scale(MODELS), context=arguments.context)
    names = [name for name in scale.models if arguments.models is None or name in arguments.models.split(",")]
    document: Document = {"machine": machine(), "scale": dataclasses.asdict(scale) | {"models": names}}
    shapes = {(config.head_dim, config.num_heads): config for config in scale.models.values()}
    document["checks"] = [
        check_attention(scale, config, dtype) for config in shapes.values() for dtype in {scale.dtype, "float32"}
    ]
    document["checks"] += [check_step(scale, kernels) for kernels in arguments.kernels.split(",")]
    for check in document["checks"]:
        tell(json.dumps(check))
    if not all(check["right"] for check in document["checks"]):
        tell("results are wrong: nothing is timed")
        return document
    floors = measure_floors(scale)
    document["floors"] = dataclasses.asdict(floors)
    tell(f"copies {floors.copy_bytes_per_s / 1e9:.0f} GB/s, multiplies {floors.flops_per_s / 1e12:.1f} TFLOP/s")
    document["steps"], document["sweep"] = [], []
    for name, quantization in itertools.product(names, arguments.quantization.split(",")):
        model = random_model(scale.models[name], scale.dtype)
        convert(model, kernels="xla", quantization=None if quantization == "none" else quantization)
        for kernels, buffers in itertools.product(arguments.kernels.split(","), arguments.command_buffer.split(",")):
            head = {"model": name, "quantization": quantization, "kernels": kernels, "command_buffer": buffers}
            for line in step_times(model, kernels, scale, floors, COMMAND_BUFFERS[buffers]):
                document["steps"].append(head | line)
                tell(json.dumps(head | line | {"over_floor": round(line["step_s"] / line["floor_s"], 2)}))
        del model
    if arguments.sweep:
        for name in names:
            for line in sweep(scale.models[name], scale, floors):
                document["sweep"].append({"model": name} | line)
                tell(json.dumps({"model": name} | line))
    return document


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--json", type=Path, help="write everything here")
    made.add_argument("--tiny", action="store_true", help="small, on any device")
    made.add_argument("--models", help="of 1B,8B; all")
    made.add_argument("--context", type=int, default=1024, help="tokens before a decode step")
    made.add_argument("--kernels", default="pallas,xla", help="attention: pallas,xla")
    made.add_argument("--quantization", default="none,int8", help="of the weights: none,int8")
    made.add_argument(
        "--command-buffer", default="default", help=f"of {','.join(COMMAND_BUFFERS)}; several are compared"
    )
    made.add_argument("--sweep", action="store_true", help="time the kernel alone in many layouts")
    return made


def main(arguments: list[str] | None = None) -> Document:
    parsed = parser().parse_args(arguments)
    if not parsed.tiny and jax.default_backend() != "gpu":
        raise SystemExit(f"JAX runs on {jax.default_backend()}: there is no GPU to measure; --tiny runs anywhere")
    document = measure(parsed, lambda line: print(line, flush=True))
    if parsed.json is not None:
        parsed.json.write_text(json.dumps(document, indent=1) + "\n")
    return document


if __name__ == "__main__":
    sys.exit(0 if all(check["right"] for check in main()["checks"]) else 1)
