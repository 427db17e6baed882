from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from asurge.bench.bandwidth import device_bandwidth, host_bandwidth
from asurge.bench.machine import count_compilations, describe_machine, peak_resident_bytes
from asurge.bench.roofline import Footprint, footprint_of, read_footprint, roofline
from asurge.bench.workloads import Workload
from asurge.config import EngineConfig
from asurge.models import DecoderConfig
from asurge.models.formats import INT8

SMOL = DecoderConfig(
    vocab_size=49152, hidden_size=576, intermediate_size=1536, num_layers=30, num_heads=9, num_kv_heads=3, head_dim=64,
    max_position_embeddings=8192, tie_word_embeddings=True,
)  # fmt: skip
EMBEDDING = 49152 * 576


def test_the_weights_of_a_step() -> None:
    tied = footprint_of(SMOL, 2)
    assert tied.weight_bytes == 269_030_016  # the 134,515,008 parameters of SmolLM2-135M in bfloat16
    assert tied.kv_bytes_per_token == 2 * 30 * 3 * 64 * 2
    untied = footprint_of(dataclasses.replace(SMOL, tie_word_embeddings=False), 2)
    assert untied.weight_bytes == tied.weight_bytes  # the output layer in place of the embedding
    assert untied.held_bytes == tied.held_bytes + 2 * EMBEDDING


def test_in_8_bits_a_tied_embedding_is_held_twice() -> None:
    plain, small = footprint_of(SMOL, 2), footprint_of(SMOL, 2, INT8)
    rows = 49152 + 30 * (9 * 64 + 2 * 3 * 64 + 576 + 2 * 1536 + 576)
    norms = (2 * 30 + 1) * 576
    assert small.weight_bytes == (plain.weight_bytes // 2 - norms) + norms * 2 + rows * 4
    assert small.held_bytes == small.weight_bytes + 2 * EMBEDDING


def test_a_head_of_a_token_in_8_bits_has_a_scale() -> None:
    found = footprint_of(SMOL, 2, int8_pages=True)
    assert found == dataclasses.replace(footprint_of(SMOL, 2), kv_bytes_per_token=2 * 30 * 3 * (64 + 4))


def test_of_a_folder(tiny_folder: Path) -> None:
    found = read_footprint(tiny_folder, EngineConfig(dtype="float32"))
    assert found.vocab_size == 400
    assert found.kv_bytes_per_token == 2 * 2 * 2 * 8 * 4
    in_int8 = read_footprint(tiny_folder, EngineConfig(dtype="float32", kv_cache_dtype="int8"))
    assert in_int8.kv_bytes_per_token == 2 * 2 * 2 * (8 + 4)


def test_a_floor_by_hand() -> None:
    footprint = Footprint(weight_bytes=1000, held_bytes=1000, kv_bytes_per_token=2, vocab_size=10)
    workload = Workload(name="x", requests=100, input_len=30, output_len=20, shared_prefix=20, concurrency=8)
    found = roofline(footprint, workload, max_num_seqs=4, bandwidth=1000.0, tpot_ms=2400.0)
    assert found.batch == 4
    assert found.kv_bytes == (4 * (10 + 10) + 20) * 2
    assert found.floor_ms == pytest.approx(1200.0)
    assert found.ratio == pytest.approx(2.0)
    assert roofline(footprint, workload, max_num_seqs=4, bandwidth=1.0, tpot_ms=None).ratio is None


def test_bandwidth_is_a_plausible_figure() -> None:
    for measured in (host_bandwidth, device_bandwidth):
        assert 1e8 < measured(1 << 22, 0.01) < 1e14


def test_compilations_are_counted_inside_the_block_only() -> None:
    import jax
    import jax.numpy as jnp

    with count_compilations() as seconds:
        jax.jit(lambda x: x * 3 + 1)(jnp.zeros(7)).block_until_ready()
    seen = len(seconds)
    assert seen >= 1
    jax.jit(lambda x: x * 5 + 1)(jnp.zeros(7)).block_until_ready()
    assert len(seconds) == seen


def test_the_machine() -> None:
    described = describe_machine()
    assert described["cores"] >= 1
    assert described["platform"] == "cpu"
    assert "platform" not in describe_machine(with_device=False)
    assert peak_resident_bytes() > 50 << 20
