"""The shortest time a decode step can take: what it must read, over how fast memory can be read."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

import jax

from asurge.bench.workloads import Workload
from asurge.config import EngineConfig
from asurge.models.config import DecoderConfig
from asurge.models.formats import BFLOAT16, QUANTIZATIONS, WeightFormat
from asurge.models.weights.checkpoint import Source, checkpoint_table
from asurge.models.weights.loading import open_shape
from asurge.ops import native
from asurge.ops.grouped import MatrixType, packed_bytes
from asurge.ops.kernels import wants_native_products

ITEM_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}
_SCALE_BYTES = 4


@dataclasses.dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes that a model's decode step reads.

    Attributes:
        weight_bytes: of the weights every step reads.
        held_bytes: of all weights in memory.
        kv_bytes_per_token: keys and values of one token in all layers.
    """

    weight_bytes: int
    held_bytes: int
    kv_bytes_per_token: int
    vocab_size: int


@dataclasses.dataclass(frozen=True, slots=True)
class Roofline:
    """A workload's decode step against the limit of memory.

    Attributes:
        batch: sequences in a step when all places are taken.
        floor_ms: the bytes over the bandwidth.
        measured_ms: the median time per token; prompts that are processed between the tokens are part of it.
        ratio: measured over floor; 1 is the limit.
    """

    weight_bytes: int
    kv_bytes: int
    batch: int
    bandwidth_bytes_per_s: float
    floor_ms: float
    measured_ms: float | None
    ratio: float | None


def read_footprint(path: Path, config: EngineConfig) -> Footprint:
    """The footprint of a checkpoint, a folder or a GGUF file, as an engine with these settings holds it."""
    shape, raw = open_shape(path)
    as_stored = config.quantization is None and wants_native_products(config.kernels, jax.default_backend())
    if not as_stored or native.unavailable() is not None:
        raw = _nothing_raw
    fmt, item_bytes = QUANTIZATIONS[config.quantization], ITEM_BYTES[config.dtype]
    return footprint_of(shape, item_bytes, fmt, int8_pages=config.kv_cache_dtype == "int8", raw=raw)


def _nothing_raw(_: Source) -> MatrixType | None:
    return None


def footprint_of(
    config: DecoderConfig,
    item_bytes: int,
    fmt: WeightFormat = BFLOAT16,
    *,
    int8_pages: bool = False,
    raw: Callable[[Source], MatrixType | None] = _nothing_raw,
) -> Footprint:
    """A step reads every weight once, but only a few rows of an embedding that is not also the output layer.

    Pages in 8 bits have a byte for each number and a scale for each head of a token.

    Args:
        item_bytes: of numbers that are not quantised.
        fmt: of matrices that are not quantised in their checkpoint; an embedding that only looks tokens up keeps its precision.
        raw: of a tensor that is: its type, in which it is multiplied.
    """
    read = held = 0
    for path, sources in checkpoint_table(config).items():
        table = path in (("embedding",), ("lm_head",))
        for source in sources:
            plain, matrix = math.prod(source.shape) * item_bytes, raw(source)
            if matrix is not None:
                packed = packed_bytes([matrix])
            elif len(source.shape) == 2:
                packed = (fmt.head if table else fmt).read_bytes(*source.shape, item_bytes)
            else:
                packed = plain
            if path != ("embedding",):
                read, held = read + packed, held + packed
            elif config.tie_word_embeddings:
                apart = matrix is None and not fmt.head.looks_up
                read, held = read + packed, held + packed + (plain if apart else 0)
            else:
                held += plain if matrix is None else packed
    head_bytes = config.head_dim + _SCALE_BYTES if int8_pages else config.head_dim * item_bytes
    return Footprint(read, held, 2 * config.num_layers * config.num_kv_heads * head_bytes, config.vocab_size)


def roofline(
    footprint: Footprint, workload: Workload, *, max_num_seqs: int, bandwidth: float, tpot_ms: float | None
) -> Roofline:
    """A workload's floor. A context counts at its mean length; tokens that all prompts share count once."""
    batch = min(workload.most_open, max_num_seqs)
    own = workload.input_len - workload.shared_prefix + workload.output_len / 2
    kv_bytes = round((batch * own + workload.shared_prefix) * footprint.kv_bytes_per_token)
    floor_ms = (footprint.weight_bytes + kv_bytes) / bandwidth * 1000
    return Roofline(
        weight_bytes=footprint.weight_bytes,
        kv_bytes=kv_bytes,
        batch=batch,
        bandwidth_bytes_per_s=bandwidth,
        floor_ms=floor_ms,
        measured_ms=tpot_ms,
        ratio=None if tpot_ms is None else tpot_ms / floor_ms,
    )
