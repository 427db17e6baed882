"""A model in GGUF is the model it was converted from."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from gguf import GGMLQuantizationType, dequantize, quantize
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from asurge import Engine, SamplingParams
from asurge.errors import ModelLoadError, UnknownArchitectureError, WeightsError
from asurge.gguf.checkpoint import open_gguf
from asurge.models import load_model, model_config
from asurge.models.weights.source import resolve_checkpoint
from asurge.ops.rotary import rotary
from asurge.text import load_tokenizer
from tests.conftest import TINY
from tests.gguf_format.files import MODELS, converted

TYPES = ("F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "MXFP4")
GREEDY = SamplingParams(max_tokens=12, temperature=0.0, ignore_eos=True)


def parameters(path: Path) -> dict[tuple[object, ...], np.ndarray]:
    model = load_model(path, dtype="float32", progress=False)
    return {key: np.asarray(leaf.get_value()) for key, leaf in nnx.to_flat_state(nnx.state(model))}


@pytest.mark.parametrize("model", MODELS)
def test_the_same_shape_and_the_same_numbers(model: str, tmp_path: Path) -> None:
    hub, file = converted(tmp_path, model)
    ours, theirs = model_config(file), model_config(hub)
    assert math.isclose(ours.rms_norm_eps, theirs.rms_norm_eps, rel_tol=1e-6)
    same = dict(rms_norm_eps=0.0, layout=theirs.layout)
    assert dataclasses.replace(ours, **same) == dataclasses.replace(theirs, **same)
    found, expected = parameters(file), parameters(hub)
    assert found.keys() == expected.keys()
    for key, numbers in expected.items():
        np.testing.assert_allclose(found[key], numbers, rtol=0, atol=2e-7 if model.startswith("gemma") else 0)


@pytest.mark.parametrize("name", TYPES)
def test_weights_equal_the_reference(name: str, tmp_path: Path) -> None:
    kind = GGMLQuantizationType[name]
    hub, file = converted(tmp_path, "qwen3", kind=kind)
    found, plain = parameters(file), parameters(hub)
    for key, numbers in plain.items():
        expected = dequantize(quantize(numbers, kind), kind) if numbers.ndim > 1 else numbers
        np.testing.assert_array_equal(found[key], expected)


async def test_a_gguf_file_is_served_like_its_folder(tmp_path: Path) -> None:
    hub, file = converted(tmp_path, "llama")
    texts = []
    for path in (hub, file):
        async with Engine(str(path), **TINY) as engine:
            out = await engine.chat([{"role": "user", "content": "hello"}], GREEDY)
            texts.append((out.prompt_token_ids, out.outputs[0].token_ids, out.outputs[0].text))
            name, about = engine.name, engine.about
    assert about == {"name": "Tiny", "license": "apache-2.0"}
    assert texts[0] == texts[1]
    assert name == "tiny"


def test_the_tokenizer_and_its_template_are_in_the_file(tmp_path: Path) -> None:
    hub, file = converted(tmp_path, "llama")
    ours, theirs = load_tokenizer(file), load_tokenizer(hub)
    for text in ("Hello,  world\n\n 12", "Größe \u65e5\u672c", "<s>x</s>"):
        ids = theirs.encode(text, add_special_tokens=False)
        assert ours.encode(text, add_special_tokens=False) == ids
        assert ours.decode(ids) == theirs.decode(ids)
    assert ours.chat_template == theirs.chat_template
    assert ours.eos_token_ids == theirs.eos_token_ids


def test_llama_3_divides_its_frequencies(tmp_path: Path) -> None:
    """The divisors are a tensor, which other readers pass over."""
    divisors = np.linspace(1.0, 8.0, 8, dtype=np.float32)
    _, file = converted(tmp_path, "llama", change=lambda writer: writer.add_tensor("rope_freqs.weight", divisors))
    scaling = model_config(file).rope_scaling
    assert scaling is not None
    np.testing.assert_array_equal(np.asarray(scaling["long_factor"], np.float32), divisors)
    assert scaling["attention_factor"] == 1.0
    plain, turned = rotary(16, 10_000.0, 256), rotary(16, 10_000.0, 256, scaling)
    at = jnp.asarray([3, 250])
    cosine = np.cos(np.asarray(at, np.float32)[:, None] * np.asarray(plain.inverse, np.float32) / divisors)
    np.testing.assert_allclose(np.asarray(turned.tables(at)[0])[:, 0], cosine, atol=1e-5)


def test_a_folder_with_one_file_is_that_file(tmp_path: Path) -> None:
    _, file = converted(tmp_path, "llama")
    assert resolve_checkpoint(str(tmp_path)) == file
    assert open_gguf(file).describe() == {"name": "Tiny", "license": "apache-2.0"}


def test_unsupported_tensors_and_types_are_named(tmp_path: Path) -> None:
    def adapter(writer: object) -> None:
        writer.add_type("adapter")  # type: ignore[attr-defined]

    _, file = converted(tmp_path, "llama", change=adapter)
    with pytest.raises(ModelLoadError, match="a LoRA adapter"):
        open_gguf(file)
    for bad, wanted in (
        (b"GGUX", "not in GGUF"),
        (b"GGUF\x00\x00\x00\x03", "big-endian"),
        (b"GGUF\x01\x00\x00\x00", "version 1"),
    ):
        other = tmp_path / "other.gguf"
        other.write_bytes(bad + bytes(64))
        with pytest.raises(ModelLoadError, match=wanted):
            resolve_checkpoint(str(other))


def test_an_unknown_architecture_is_named(tmp_path: Path) -> None:
    _, file = converted(tmp_path, "llama")
    data = file.read_bytes().replace(
        b"\x05\x00\x00\x00\x00\x00\x00\x00llama", b"\x05\x00\x00\x00\x00\x00\x00\x00mamba", 1
    )
    file.write_bytes(data)
    with pytest.raises(UnknownArchitectureError, match="'mamba'"):
        model_config(file)


def test_a_file_that_is_cut_anywhere_is_refused(tmp_path: Path) -> None:
    _, file = converted(tmp_path, "llama")
    data = file.read_bytes()
    for size in (0, 3, 4, 11, 23, 40, 200, 3000, len(data) // 2, len(data) - 1):
        file.write_bytes(data[:size])
        with pytest.raises(
            (WeightsError, ModelLoadError), match=r"Fetch it again|fetch it again|not a GGUF file|not in GGUF"
        ):
            open_gguf(file)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, 2500), byte=st.integers(0, 255))
def test_a_damaged_header_is_read_or_refused(at: int, byte: int, damaged: tuple[Path, bytes]) -> None:
    """Whatever a byte says: no other error, and no allocation that a file of this size does not justify."""
    path, data = damaged
    path.write_bytes(data[:at] + bytes([byte]) + data[at + 1 :])
    with contextlib.suppress(ModelLoadError):
        model_config(path)


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    """A file to be overwritten, and what is in it."""
    _, file = converted(tmp_path_factory.mktemp("damaged"), "llama")
    return file, file.read_bytes()
