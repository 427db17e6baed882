"""Folders whose matrices are quantised hold what their methods say, and kernels multiply it as it is stored."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from asurge.errors import ModelLoadError, WeightsError
from asurge.models import Decoder, DenseAttend, convert, load_model, open_model
from asurge.models.weights.quantized import AWQ_ORDER, E2M1, NF4, unpack
from tests.checkpoints import write_tiny
from tests.kernels import needs_kernels

SHAPE: dict[str, Any] = dict(hidden_size=64, intermediate_size=96, head_dim=16, rms_norm_eps=1e-5)
GROUP = 32
Encoded = tuple[dict[str, np.ndarray], np.ndarray]
"""The tensors of a module, by the ends of their names, and what they mean."""


def affine(weight: np.ndarray, bits: int, *, symmetric: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes ``[out, in]``, scales (of float16) and zeros ``[out, groups]``."""
    groups = weight.reshape(len(weight), -1, GROUP)
    most = (1 << bits) - 1
    if symmetric:
        scales = np.abs(groups).max(axis=-1) / (most // 2)
        zeros = np.full(scales.shape, 1 << (bits - 1))
    else:
        low, high = np.minimum(groups.min(axis=-1), 0), np.maximum(groups.max(axis=-1), 0)
        scales = (high - low) / most
        zeros = np.rint(-low / scales).astype(int)
    scales = scales.astype(np.float16)
    codes = np.clip(np.rint(groups / scales[..., None].astype(np.float32)) + zeros[..., None], 0, most)
    return codes.reshape(weight.shape).astype(np.uint8), scales, zeros


def meaning(codes: np.ndarray, scales: np.ndarray, zeros: np.ndarray) -> np.ndarray:
    wide = codes.reshape(len(codes), -1, GROUP).astype(np.float32) - zeros[..., None]
    return (wide * scales[..., None].astype(np.float32)).reshape(codes.shape)


def words(codes: np.ndarray, bits: int, axis: int, order: tuple[int, ...] | None = None) -> np.ndarray:
    """Codes in words of 32 bits along an axis, filled up with zeros."""
    per_word = 32 // bits
    moved = np.moveaxis(codes, axis, -1).astype(np.uint32)
    moved = np.pad(moved, [(0, 0)] * (moved.ndim - 1) + [(0, -moved.shape[-1] % per_word)])
    moved = moved.reshape(*moved.shape[:-1], -1, per_word)
    places = np.asarray(order or range(per_word), np.uint32) * np.uint32(bits)
    packed = (moved << places).sum(axis=-1, dtype=np.uint32).view(np.int32)
    return np.ascontiguousarray(np.moveaxis(packed, -1, axis))


def gptq(weight: np.ndarray, *, bits: int = 4, symmetric: bool = False, version: int = 1) -> Encoded:
    codes, scales, zeros = affine(weight, bits, symmetric=symmetric)
    stored = zeros.T - 1 if version == 1 else zeros.T
    parts = {
        ".qweight": words(codes.T, bits, 0),
        ".qzeros": words(stored & ((1 << bits) - 1), bits, 1),
        ".scales": np.ascontiguousarray(scales.T),
        ".g_idx": (np.arange(weight.shape[1]) // GROUP).astype(np.int32),
    }
    return parts, meaning(codes, scales, zeros)


def gptq_by_activation(weight: np.ndarray) -> Encoded:
    """Groups are of places that are no neighbours."""
    depth = weight.shape[1]
    order = np.random.default_rng(0).permutation(depth)
    parts, sorted_meaning = gptq(weight[:, order])
    codes = affine(weight[:, order], 4, symmetric=False)[0]
    back = np.argsort(order)
    parts[".qweight"] = words(codes[:, back].T, 4, 0)
    parts[".g_idx"] = (back // GROUP).astype(np.int32)
    return parts, sorted_meaning[:, back]


def awq(weight: np.ndarray) -> Encoded:
    codes, scales, zeros = affine(weight, 4, symmetric=False)
    parts = {
        ".qweight": words(codes.T, 4, 1, AWQ_ORDER),
        ".qzeros": words(zeros.T, 4, 1, AWQ_ORDER),
        ".scales": np.ascontiguousarray(scales.T),
    }
    return parts, meaning(codes, scales, zeros)


def packed(weight: np.ndarray, *, bits: int = 4, symmetric: bool = True) -> Encoded:
    codes, scales, zeros = affine(weight, bits, symmetric=symmetric)
    parts = {
        ".weight_packed": words(codes, bits, 1),
        ".weight_scale": scales,
        ".weight_shape": np.asarray(weight.shape, np.int64),
    }
    if not symmetric:
        parts[".weight_zero_point"] = words(zeros, bits, 0)
    return parts, meaning(codes, scales, zeros)


def int8(weight: np.ndarray) -> Encoded:
    scales = (np.abs(weight).max(axis=1, keepdims=True) / 127).astype(np.float16)
    codes = np.rint(weight / scales.astype(np.float32)).astype(np.int8)
    return {".weight": codes, ".weight_scale": scales}, codes * scales.astype(np.float32)


def fp8(weight: np.ndarray) -> Encoded:
    scales = (np.abs(weight).max(axis=1, keepdims=True) / 448).astype(np.float32)
    codes = (weight / scales).astype(ml_dtypes.float8_e4m3fn)
    return {".weight": codes, ".weight_scale": scales}, codes.astype(np.float32) * scales


def nearest_fp4(x: np.ndarray) -> np.ndarray:
    codes = np.abs(np.abs(x)[..., None] - E2M1).argmin(axis=-1).astype(np.uint8)
    return codes | ((x < 0).astype(np.uint8) << 3)


def pairs(nibbles: np.ndarray) -> np.ndarray:
    return (nibbles[:, ::2] | nibbles[:, 1::2] << 4).astype(np.uint8)


def of_fp4(nibbles: np.ndarray) -> np.ndarray:
    return np.where(nibbles & 8, -1, 1) * E2M1[nibbles & 7]


def mxfp4(weight: np.ndarray) -> Encoded:
    groups = weight.reshape(len(weight), -1, GROUP)
    exponents = np.floor(np.log2(np.abs(groups).max(axis=-1))).astype(int) - 2
    nibbles = nearest_fp4(groups / 2.0 ** exponents[..., None]).reshape(weight.shape)
    wide = of_fp4(nibbles) * np.repeat(2.0**exponents, GROUP, axis=1)
    return {".weight_packed": pairs(nibbles), ".weight_scale": (exponents + 127).astype(np.uint8)}, wide


def nvfp4(weight: np.ndarray) -> Encoded:
    whole = np.float32(448 * 6 / np.abs(weight).max())
    groups = weight.reshape(len(weight), -1, 16)
    scales = (np.abs(groups).max(axis=-1) / 6 * whole).astype(ml_dtypes.float8_e4m3fn)
    wide_scales = scales.astype(np.float32) / whole
    nibbles = nearest_fp4(groups / wide_scales[..., None]).reshape(weight.shape)
    parts = {".weight_packed": pairs(nibbles), ".weight_scale": scales, ".weight_global_scale": np.asarray([whole])}
    return parts, of_fp4(nibbles) * np.repeat(wide_scales, 16, axis=1)


def nf4(weight: np.ndarray) -> Encoded:
    blocks = weight.reshape(-1, 64)
    absmax = np.abs(blocks).max(axis=1).astype(np.float32)
    codes = np.abs((blocks / absmax[:, None])[..., None] - NF4).argmin(axis=-1).astype(np.uint8).reshape(-1)
    state = np.frombuffer(json.dumps({"quant_type": "nf4", "blocksize": 64}).encode(), np.uint8)
    parts = {
        ".weight": (codes[::2] << 4 | codes[1::2])[:, None],
        ".weight.absmax": absmax,
        ".weight.quant_map": NF4,
        ".weight.quant_state.bitsandbytes__nf4": state,
    }
    return parts, (NF4[codes].reshape(blocks.shape) * absmax[:, None]).reshape(weight.shape)


def compressed(form: str, **weights: Any) -> dict[str, Any]:
    group = {"format": form, "targets": ["Linear"], "weights": weights}
    return {"quant_method": "compressed-tensors", "format": form, "config_groups": {"group_0": group}}


METHODS: dict[str, tuple[Callable[[np.ndarray], Encoded], dict[str, Any], bool]] = {
    "gptq": (gptq, {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "sym": False}, True),
    "gptq, symmetric": (
        lambda weight: gptq(weight, symmetric=True),
        {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "sym": True},
        True,
    ),
    "gptq, second version": (
        lambda weight: gptq(weight, version=2),
        {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "sym": False, "checkpoint_format": "gptq_v2"},
        True,
    ),
    "gptq, 8 bits": (
        lambda weight: gptq(weight, bits=8, symmetric=True),
        {"quant_method": "gptq", "bits": 8, "group_size": GROUP, "sym": True},
        True,
    ),
    "gptq, by activation": (
        gptq_by_activation,
        {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": True},
        False,
    ),
    "awq": (awq, {"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True, "version": "gemm"}, True),
    "packed": (packed, compressed("pack-quantized", num_bits=4, symmetric=True), True),
    "packed, with zeros": (
        lambda weight: packed(weight, symmetric=False),
        compressed("pack-quantized", num_bits=4, symmetric=False),
        True,
    ),
    "packed, 8 bits": (
        lambda weight: packed(weight, bits=8),
        compressed("pack-quantized", num_bits=8, symmetric=True),
        True,
    ),
    "int8": (int8, compressed("int-quantized", num_bits=8, symmetric=True), True),
    "fp8": (fp8, compressed("float-quantized", num_bits=8, symmetric=True), False),
    "mxfp4": (mxfp4, compressed("mxfp4-pack-quantized", num_bits=4), True),
    "nvfp4": (nvfp4, compressed("nvfp4-pack-quantized", num_bits=4), False),
    "nf4": (nf4, {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, False),
}
"""How to write a matrix, the config's words for it, and whether kernels multiply it as it is."""


def write(folder: Path, method: str) -> dict[str, np.ndarray]:
    """A checkpoint whose layers' matrices are quantised; returns what they mean by their names."""
    encode, settings, _ = METHODS[method]
    folder.mkdir()
    write_tiny(folder, tie_word_embeddings=False, **SHAPE)
    path = folder / "model.safetensors"
    tensors = load_file(path)
    meanings = {}
    for name in [name for name in tensors if "_proj.weight" in name]:
        parts, meanings[name] = encode(tensors.pop(name).astype(np.float32))
        module = name.removesuffix(".weight")
        tensors |= {module + end: np.ascontiguousarray(part) for end, part in parts.items()}
    save_file(tensors, path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": settings}))
    return meanings


def logits(model: Decoder) -> np.ndarray:
    graph, state = nnx.split(model)
    tokens = np.random.default_rng(0).integers(3, 60, 40).astype(np.int32)

    @jax.jit
    def run(state: object) -> jax.Array:
        module: Decoder = nnx.merge(graph, state)
        return module.logits(module(tokens, jnp.arange(40), DenseAttend(module.config)))

    out = np.asarray(run(state), np.float64)[:, : model.config.vocab_size]
    return out - out.mean(axis=1, keepdims=True)


@pytest.mark.parametrize("method", METHODS)
def test_numbers_are_what_the_method_says(method: str, tmp_path: Path) -> None:
    meanings = write(tmp_path / "quantised", method)
    model = load_model(tmp_path / "quantised", dtype="float32", progress=False)
    layer = model.layers[1]
    name = "model.layers.1.self_attn.o_proj.weight"
    np.testing.assert_allclose(layer.attention.o_proj.weight[...], meanings[name], rtol=1e-6, atol=1e-9)
    gate, up = (meanings[f"model.layers.1.mlp.{part}_proj.weight"] for part in ("gate", "up"))
    np.testing.assert_allclose(layer.mlp.gate_up_proj.weight[...], np.concatenate((gate, up)), rtol=1e-6, atol=1e-9)


@needs_kernels
@pytest.mark.parametrize("method", METHODS)
def test_kernels_multiply_it_as_it_is_or_a_warning_says_that_they_do_not(
    method: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path / "quantised", method)
    model = open_model(tmp_path / "quantised", dtype="bfloat16", progress=False)
    with caplog.at_level(logging.WARNING):
        assert convert(model, kernels="native", quantization=None) is None
    assert ("widened" in caplog.text) is not METHODS[method][2]
    expected = logits(load_model(tmp_path / "quantised", dtype="float32", progress=False))
    assert np.linalg.norm(logits(model) - expected) < 0.03 * np.linalg.norm(expected)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"quant_method": "aqlm"}, "'aqlm'"),
        ({}, "'none'"),
        ({"quant_method": "gptq", "bits": 3}, "3 bits"),
        ({"quant_method": "awq", "bits": 4, "version": "gemv"}, "'gemv'"),
        (compressed("pack-quantized", num_bits=6), "6 bits"),
        (compressed("sparse-24", num_bits=4), "'sparse-24'"),
        ({"quant_method": "compressed-tensors", "config_groups": {}}, "0 config_groups"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "'bitsandbytes'"),
    ],
)
def test_a_method_that_is_not_served_is_named(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    write_tiny(tmp_path, **SHAPE)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"quantization_config": settings}))
    with pytest.raises(ModelLoadError, match=message):
        open_model(tmp_path, dtype="bfloat16", progress=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors, name: tensors.pop(f"{name}.qweight"), "unexpected tensors|lacks tensors"),
        (lambda tensors, name: tensors.update({f"{name}.qweight": tensors[f"{name}.qweight"][:4]}), "ask for"),
        (lambda tensors, name: tensors.pop(f"{name}.scales"), "do not make a matrix"),
    ],
)
def test_a_damaged_matrix_is_named(
    change: Callable[[dict[str, np.ndarray], str], object], message: str, tmp_path: Path
) -> None:
    write(tmp_path / "quantised", "gptq")
    path = tmp_path / "quantised" / "model.safetensors"
    tensors = load_file(path)
    change(tensors, "model.layers.0.mlp.down_proj")
    save_file({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, path)
    with pytest.raises(WeightsError, match=message):
        load_model(tmp_path / "quantised", dtype="float32", progress=False)


def test_codes_come_out_of_words_as_they_went_in() -> None:
    codes = np.random.default_rng(1).integers(0, 16, (24, 40)).astype(np.uint8)
    for axis in (0, 1):
        for order in (None, AWQ_ORDER):
            assert np.array_equal(unpack(words(codes, 4, axis, order), 4, axis, order), codes)
