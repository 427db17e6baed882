"""Quantised weights are multiplied as a file has them: the kernels' distributions are those of the dequantised weights."""

from __future__ import annotations

import logging
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from gguf import GGMLQuantizationType

from asurge import Engine, SamplingParams
from asurge.errors import ConfigError
from asurge.gguf.checkpoint import open_gguf
from asurge.models import Decoder, DenseAttend, convert, load_model, open_model
from asurge.models.layers import PackedLinear, PackedTable
from tests.checkpoints import write_tiny
from tests.conftest import TINY
from tests.gguf_format.files import MODELS, converted
from tests.kernels import needs_kernels

pytestmark = needs_kernels

TOKENS = np.random.default_rng(0).integers(3, 60, 40).astype(np.int32)
GREEDY = SamplingParams(max_tokens=12, temperature=0.0, ignore_eos=True)


def logits(model: Decoder) -> np.ndarray:
    graph, state = nnx.split(model)

    @jax.jit
    def run(state: object, tokens: jax.Array) -> jax.Array:
        module: Decoder = nnx.merge(graph, state)
        return module.logits(module(tokens, jnp.arange(tokens.shape[0]), DenseAttend(module.config)))

    return np.asarray(run(state, TOKENS), np.float64)[:, : model.config.vocab_size]


def as_stored(path: Path, quantization: str | None = None) -> Decoder:
    model = open_model(path, dtype="bfloat16", progress=False)
    assert convert(model, kernels="native", quantization=quantization) is None
    return model


def distance(found: np.ndarray, expected: np.ndarray) -> float:
    """Relative, of what remains when a constant is taken from each row: probabilities do not know it."""
    found, expected = (x - x.mean(axis=1, keepdims=True) for x in (found, expected))
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize("model", MODELS)
def test_every_family_keeps_its_distributions(model: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _, file = converted(tmp_path, model, kind=GGMLQuantizationType.Q4_0)
    with caplog.at_level(logging.WARNING):
        kernels = as_stored(file)
    assert not caplog.records
    assert distance(logits(kernels), logits(load_model(file, dtype="float32", progress=False))) < 0.03


@pytest.mark.parametrize("kind", ["Q4_1", "Q5_0", "Q5_1", "Q8_0", "MXFP4"])
def test_every_type_keeps_its_distributions(kind: str, tmp_path: Path) -> None:
    _, file = converted(tmp_path, "qwen2", kind=GGMLQuantizationType[kind])
    assert distance(logits(as_stored(file)), logits(load_model(file, dtype="float32", progress=False))) < 0.03


def test_nothing_is_widened(tmp_path: Path) -> None:
    _, file = converted(tmp_path, "qwen3", kind=GGMLQuantizationType.Q4_0)
    model = as_stored(file)
    assert isinstance(model.embedding, PackedTable)
    assert isinstance(model.head, PackedLinear)
    assert model.embedding.parts is model.head.parts  # tied: one table serves both
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(nnx.state(model)))
    tensors = open_gguf(file).tensors.values()
    stored = sum(int(np.prod(tensor.shape[:-1])) * tensor.row_bytes for tensor in tensors)
    tables = sum(leaf.nbytes for leaf in jax.tree.leaves(nnx.state(model)) if leaf.dtype == jnp.int32)
    assert held - tables <= 1.15 * stored


@pytest.mark.parametrize("model", ["qwen2", "llama"])
@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_a_file_may_be_quantised_otherwise(
    model: str, quantization: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _, file = converted(tmp_path, model, kind=GGMLQuantizationType.Q8_0)
    if quantization == "int8":  # tiles of int8 need another depth
        pytest.skip("the sizes of this model are not multiples of 64")
    with caplog.at_level(logging.WARNING):
        changed = as_stored(file, quantization)
    assert "weights in Q8_0 are widened" in caplog.text
    assert distance(logits(changed), logits(load_model(file, dtype="float32", progress=False))) < 0.25


def test_int4_is_close_to_the_weights_it_was_made_of(tmp_path: Path) -> None:
    folder = tmp_path / "tiny"
    folder.mkdir()
    write_tiny(folder, hidden_size=64, intermediate_size=96, head_dim=16)
    assert (
        distance(logits(as_stored(folder, "int4")), logits(load_model(folder, dtype="float32", progress=False))) < 0.25
    )


def test_int4_needs_the_kernels(tmp_path: Path) -> None:
    folder = tmp_path / "tiny"
    folder.mkdir()
    write_tiny(folder, hidden_size=64, intermediate_size=96, head_dim=16)
    model = open_model(folder, dtype="bfloat16", progress=False)
    with pytest.raises(ConfigError, match="quantization='int4' needs the CPU kernels"):
        convert(model, kernels="xla", quantization="int4")


def test_where_there_are_no_kernels_weights_are_widened_and_a_warning_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _, file = converted(tmp_path, "qwen2", kind=GGMLQuantizationType.Q5_1)
    model = open_model(file, dtype="bfloat16", progress=False)
    with caplog.at_level(logging.WARNING):
        convert(model, kernels="xla", quantization=None)
    assert "weights in Q5_1 are widened" in caplog.text
    assert distance(logits(model), logits(load_model(file, dtype="float32", progress=False))) < 0.03


async def test_tokens_do_not_depend_on_the_batch(tmp_path: Path) -> None:
    _, file = converted(tmp_path, "llama", kind=GGMLQuantizationType.Q4_0)
    prompts = [[3 + (7 * number + at) % 50 for at in range(5 + number)] for number in range(9)]
    async with Engine(str(file), **{**TINY, "dtype": "bfloat16"}) as engine:
        assert not any("products" in reason for reason in engine.fallbacks)
        together = await engine.generate(prompts, GREEDY, use_tqdm=False)
        for prompt, expected in zip(prompts, together, strict=True):
            (alone,) = await engine.generate([prompt], GREEDY, use_tqdm=False)
            assert alone.outputs[0].token_ids == expected.outputs[0].token_ids


async def test_weights_are_replaced_by_those_of_the_same_types_alone(tmp_path: Path) -> None:
    files = []
    for number, kind in enumerate((GGMLQuantizationType.Q4_0, GGMLQuantizationType.Q4_0, GGMLQuantizationType.Q8_0)):
        (tmp_path / str(number)).mkdir()
        files.append(converted(tmp_path / str(number), "llama", kind=kind)[1])
    async with Engine(str(files[0]), **{**TINY, "dtype": "bfloat16"}) as engine:
        (before,) = await engine.generate([[3, 4, 5]], GREEDY, use_tqdm=False)
        with pytest.raises(ConfigError, match="stored in other types"):
            await engine.update_model_weights(str(files[2]))
        await engine.update_model_weights(str(files[1]))
        (after,) = await engine.generate([[3, 4, 5]], GREEDY, use_tqdm=False)
        assert after.outputs[0].token_ids == before.outputs[0].token_ids
