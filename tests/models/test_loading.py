"""Checkpoints as they come: sharded, cast, damaged, incomplete, elsewhere."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from asurge.errors import ModelLoadError, UnknownArchitectureError, WeightsError
from asurge.models import family_for, load_model, open_model, read_config, resolve_checkpoint
from asurge.models.weights.loading import value_of
from tests.kernels import needs_kernels
from tests.models.cases import GOLDEN


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint that a test may damage."""
    copy = tmp_path / "checkpoint"
    shutil.copytree(GOLDEN / "qwen2", copy)
    return copy


def rewrite(folder: Path, change: dict[str, np.ndarray | None]) -> None:
    tensors = load_file(folder / "model.safetensors")
    for name, tensor in change.items():
        if tensor is None:
            del tensors[name]
        else:
            tensors[name] = tensor
    save_file(tensors, folder / "model.safetensors")


def edit_config(folder: Path, **changes: object) -> None:
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**raw, **changes}))


def leaves(folder: Path, dtype: str = "float32") -> list[np.ndarray]:
    state = nnx.state(load_model(folder, dtype=dtype, progress=False))
    return [np.asarray(leaf[...]) for _, leaf in nnx.to_flat_state(state)]


def test_shards_load_like_one_file(folder: Path) -> None:
    whole = leaves(folder)
    tensors = load_file(folder / "model.safetensors")
    names, weight_map = sorted(tensors), {}
    for shard, part in enumerate((names[::2], names[1::2])):
        file = f"model-{shard}.safetensors"
        save_file({name: tensors[name] for name in part}, folder / file)
        weight_map |= dict.fromkeys(part, file)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    for ours, theirs in zip(leaves(folder), whole, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_weights_are_cast_once(folder: Path) -> None:
    for wide, narrow in zip(leaves(folder), leaves(folder, "bfloat16"), strict=True):
        assert narrow.dtype == jnp.bfloat16
        np.testing.assert_array_equal(narrow, wide.astype(jnp.bfloat16))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rows_and_matrices_are_turned_as_the_model_has_them(dtype: str) -> None:
    """Adjacent pairs part into halves of a head, and experts stored side by side lie one below the other."""
    model = load_model(GOLDEN / "llama4", dtype=dtype, progress=False)
    stored = load_file(GOLDEN / "llama4" / "model.safetensors")
    qkv = np.asarray(model.layers[1].attention.qkv_proj.weight[...])
    for name, rows in (("q_proj", qkv[:64]), ("k_proj", qkv[64:96])):
        heads = stored[f"model.layers.1.self_attn.{name}.weight"].reshape(-1, 16, 48)
        expected = np.concatenate((heads[:, ::2], heads[:, 1::2]), axis=1).reshape(-1, 48)
        np.testing.assert_array_equal(rows, expected.astype(rows.dtype))
    down = np.asarray(model.layers[1].mlp.down[...])
    experts = stored["model.layers.1.feed_forward.experts.down_proj"]
    np.testing.assert_array_equal(down, np.concatenate([one.T for one in experts]).astype(down.dtype))


def test_a_missing_tensor_is_named(folder: Path) -> None:
    rewrite(folder, {"model.layers.1.self_attn.k_proj.bias": None})
    with pytest.raises(WeightsError, match=r"lacks tensors: model\.layers\.1\.self_attn\.k_proj\.bias"):
        load_model(folder, dtype="float32", progress=False)


def test_an_unexpected_tensor_is_named(folder: Path) -> None:
    rewrite(folder, {"model.layers.9.extra": np.zeros(3, np.float32)})
    with pytest.raises(WeightsError, match=r"unexpected tensors: model\.layers\.9\.extra"):
        load_model(folder, dtype="float32", progress=False)


def test_superfluous_tensors_are_ignored(folder: Path) -> None:
    raw = json.loads((folder / "config.json").read_text())
    head = np.zeros((raw["vocab_size"], raw["hidden_size"]), np.float32)
    rewrite(folder, {"lm_head.weight": head, "model.layers.0.self_attn.rotary_emb.inv_freq": np.zeros(6, np.float32)})
    load_model(folder, dtype="float32", progress=False)


def test_a_wrong_shape_is_named(folder: Path) -> None:
    rewrite(folder, {"model.norm.weight": np.zeros(7, np.float32)})
    with pytest.raises(WeightsError, match=r"model\.norm\.weight has shape \[7\].*\[48\]"):
        load_model(folder, dtype="float32", progress=False)


@pytest.mark.parametrize("damage", ["truncated", "garbage", "empty"])
def test_damaged_files_are_named(folder: Path, damage: str) -> None:
    path = folder / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes({"truncated": content[:-100], "garbage": b"\xff" * 200, "empty": b""}[damage])
    with pytest.raises(WeightsError, match=r"model\.safetensors is not a whole safetensors file"):
        load_model(folder, dtype="float32", progress=False)


def test_pickles_are_never_opened(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(WeightsError, match=r"pytorch_model\.bin is a pickle, which asurge never opens"):
        load_model(folder, dtype="float32", progress=False)


def test_an_index_cannot_point_elsewhere(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../other.safetensors"}}))
    with pytest.raises(WeightsError, match="outside its folder"):
        load_model(folder, dtype="float32", progress=False)


@pytest.mark.parametrize("architectures", [["GPT2LMHeadModel"], [], None])
def test_unknown_architectures_are_named_with_the_known_ones(architectures: list[str] | None) -> None:
    with pytest.raises(UnknownArchitectureError, match="LlamaForCausalLM, MistralForCausalLM"):
        family_for({"architectures": architectures})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": "big"}, "hidden_size='big' must be a positive integer"),
        ({"num_attention_heads": 0}, "num_attention_heads=0"),
        ({"num_key_value_heads": 3}, "not a multiple"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ({"rope_parameters": {"rope_type": "spiral"}}, "rope_type='spiral'"),
        ({"rope_parameters": {"rope_type": "linear"}}, "needs a number factor"),
        ({"rope_parameters": 3}, "must be an object"),
    ],
)
def test_bad_configs_are_explained(folder: Path, changes: dict[str, object], message: str) -> None:
    edit_config(folder, **changes)
    with pytest.raises(ModelLoadError, match=message):
        load_model(folder, dtype="float32", progress=False)


def test_the_original_length_beside_the_scaling_takes_priority(folder: Path) -> None:
    scaling = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4, "original_max_position_embeddings": 64}
    edit_config(folder, rope_parameters=scaling, original_max_position_embeddings=32)
    raw = read_config(folder)
    config = family_for(raw).config(raw)
    assert config.rope_scaling is not None
    assert config.rope_scaling["original_max_position_embeddings"] == 32


@pytest.mark.parametrize("name", ["embedding", "fused"])
def test_a_file_that_shrinks_before_it_is_read_is_named(name: str, folder: Path) -> None:
    model = open_model(folder, dtype="float32", progress=False)
    path = folder / "model.safetensors"
    os.truncate(path, path.stat().st_size // 10)
    weight = model.embedding if name == "embedding" else model.layers[0].mlp.gate_up_proj.weight
    with pytest.raises(WeightsError, match=r"model\.safetensors .*shorter"):
        value_of(weight)


def test_weights_that_were_loaded_do_not_follow_their_file(folder: Path) -> None:
    """Also where a tensor begins so that JAX could take it as it lies there, which for large ones it would."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    for padding in range(8):
        save_file(tensors, path, {"padding": "x" * 8 * padding})
        header = int.from_bytes(path.read_bytes()[:8], "little")
        if (header + 8) % 64 == 0:
            break
    assert (header + 8) % 64 == 0
    model = load_model(folder, dtype="float32", progress=False)
    before = np.array(model.embedding[...])
    with path.open("r+b") as file:
        file.seek(header + 8)
        file.write(bytes(path.stat().st_size - header - 8))
    np.testing.assert_array_equal(model.embedding[...], before)


@pytest.mark.parametrize("content", [None, "{", "[]"])
def test_a_missing_or_broken_config_is_named(folder: Path, content: str | None) -> None:
    path = folder / "config.json"
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(ModelLoadError, match=r"config\.json"):
        read_config(folder)


def test_sources(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_checkpoint(str(folder)) == folder
    assert (resolve_checkpoint("demo") / "config.json").is_file()
    with pytest.raises(ModelLoadError, match="no such folder"):
        resolve_checkpoint("./nowhere")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelLoadError, match="neither a folder nor a repository"):
        resolve_checkpoint("nobody/nothing")


BIG = dict(hidden_size=1024, intermediate_size=4096, head_dim=64, num_hidden_layers=6, vocab_size=4096, num_attention_heads=16, num_key_value_heads=16)  # fmt: skip
STACKED = dict(intermediate_size=512, intermediate_size_mlp=2048, moe_layers=list(range(6)), num_local_experts=8)


@pytest.mark.parametrize(
    ("case", "sizes", "kernels"),
    [
        ("qwen3", dict(layer_types=["full_attention"] * 6), ""),
        ("llama4", dict(no_rope_layers=[], layer_types=None, **STACKED), ""),
        pytest.param("qwen3", dict(layer_types=["full_attention"] * 6), "native", marks=needs_kernels),
    ],
    ids=["matrices", "experts stacked and transposed", "for kernels"],
)
def test_peak_memory_stays_near_the_weights(case: str, sizes: dict[str, object], kernels: str, tmp_path: Path) -> None:
    """Loading may take 1.3 times the weights, measured in a process of its own above what importing takes."""
    config = json.loads((GOLDEN / case / "config.json").read_text()) | BIG | sizes
    (tmp_path / "config.json").write_text(json.dumps(config))
    script = Path(__file__).parent / "peak_memory.py"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, script, tmp_path, *([kernels] if kernels else [])],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    figures = json.loads(done.stdout)
    assert figures["weights_bytes"] > 200e6
    assert figures["peak_bytes"] < 1.3 * figures["weights_bytes"], figures
