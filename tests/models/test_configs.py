"""Configs and tensors are obeyed or refused: never ignored, which would give wrong text."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from asurge.errors import ModelLoadError, UnknownArchitectureError, WeightsError
from asurge.models import Decoder, family_for, load_model, read_config, resolve_checkpoint
from asurge.models.config import DecoderConfig
from asurge.models.weights.checkpoint import checkpoint_table
from asurge.ops.attention import Window
from asurge.ops.rotary import rotary
from asurge.ops.temperature_tuning import TemperatureTuning

GOLDEN = Path(__file__).parent / "golden" / "llama"
SMALL: dict[str, Any] = dict(
    vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=8
)  # fmt: skip


def configured(family: str, **changes: Any) -> DecoderConfig:
    raw = {"architectures": [f"{family}ForCausalLM"], **SMALL, **changes}
    return family_for(raw).config(raw)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint that a test may damage."""
    return Path(shutil.copytree(GOLDEN, tmp_path / "checkpoint"))


@pytest.mark.parametrize(
    ("changes", "windows"),
    [
        ({}, (Window(4096),) * 3),
        ({"sliding_window": None}, ()),
        ({"sliding_window": 7}, (Window(7),) * 3),
    ],
)
def test_mistral_has_its_window_in_every_layer(changes: dict[str, Any], windows: tuple[Window, ...]) -> None:
    assert configured("Mistral", **changes).windows == windows


@pytest.mark.parametrize("family", ["Qwen2", "Qwen3"])
@pytest.mark.parametrize(
    ("changes", "windows"),
    [
        ({"use_sliding_window": False, "max_window_layers": 0}, ()),
        ({"sliding_window": None}, ()),
        ({"max_window_layers": 0}, (Window(5),) * 3),
        ({"max_window_layers": 2}, (None, None, Window(5))),
        ({"max_window_layers": 3}, (None, None, None)),
        ({"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}, (Window(5), None, Window(5))),
    ],
)
def test_qwen_windows(family: str, changes: dict[str, Any], windows: tuple[Window | None, ...]) -> None:
    assert configured(family, **{"use_sliding_window": True, "sliding_window": 5, **changes}).windows == windows


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer_types": ["chunked_attention"] * 3}, "layer_types=.*chunked_attention"),
        ({"layer_types": 3}, "layer_types=3 must be a list"),
        ({"layer_types": [["full_attention"]] * 3}, "layer_types"),
        ({"layer_types": ["full_attention"]}, "layer_types and num_hidden_layers disagree"),
        ({"max_window_layers": "2"}, "max_window_layers='2' must be an integer"),
        ({"sliding_window": 0}, "sliding_window=0 must be a positive integer"),
    ],
)
def test_unclear_windows_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelLoadError, match=message):
        configured("Qwen3", **{"use_sliding_window": True, "sliding_window": 5, **changes})


CHUNK, STILL = Window(8192, chunked=True), None


@pytest.mark.parametrize(
    ("changes", "windows", "no_rope"),
    [
        ({}, (CHUNK, CHUNK, CHUNK, STILL), (False, False, False, True)),
        ({"no_rope_layers": []}, (CHUNK, CHUNK, CHUNK, STILL), (False, False, False, True)),
        ({"no_rope_layers": [0, 1, 1, 1, 0, 1]}, (STILL, CHUNK, CHUNK, CHUNK), (True, False, False, False)),
        ({"no_rope_layer_interval": 2, "attention_chunk_size": None}, (), (False, True, False, True)),
        (
            {"layer_types": ["full_attention", "chunked_attention"] * 2, "attention_chunk_size": 5},
            (None, Window(5, chunked=True)) * 2,
            (False, False, False, True),
        ),
    ],
)
def test_llama4_layers(changes: dict[str, Any], windows: tuple[Window | None, ...], no_rope: tuple[bool, ...]) -> None:
    found = configured("Llama4", num_hidden_layers=4, **changes)
    assert (found.windows, found.no_rope) == (windows, no_rope)


def test_llama4_experts_and_positions() -> None:
    """Defaults are those of transformers; the first checkpoints have a number where today's say yes."""
    found = configured("Llama4", moe_layers=[1], attn_temperature_tuning=4)
    assert (found.head_dim, found.rope_theta, found.rms_norm_eps, found.qk_unit_norm) == (128, 5e5, 1e-5, True)
    assert found.intermediate_size == 16384
    assert found.experts is not None
    assert (found.experts.layers, found.experts.size, found.experts.shared) == ((False, True, False), 48, 48)
    assert found.temperature_tuning == TemperatureTuning(8192, 0.1)
    dense = configured("Llama4", moe_layers=[], attn_temperature_tuning=False)
    assert dense.experts is dense.temperature_tuning is None
    every = configured("Llama4", interleave_moe_layer_step=2).experts
    assert every is not None
    assert every.layers == (False, True, False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer_types": ["sliding_attention"] * 3}, "must be a list of full_attention and chunked_attention"),
        ({"no_rope_layers": [1]}, "1 layer_types for 3 layers"),
        ({"no_rope_layers": 3}, "no_rope_layers=3 must be a list of 0 and 1"),
        ({"moe_layers": 2}, "moe_layers=2 must be a list of layers"),
        ({"moe_layers": [3]}, "moe_layers=.3. must be a list of layers"),
        ({"attn_temperature_tuning": "yes"}, "attn_temperature_tuning='yes' must be true or false"),
        ({"attention_chunk_size": 0}, "attention_chunk_size=0 must be a positive integer"),
    ],
)
def test_unclear_llama4_configs_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelLoadError, match=message):
        configured("Llama4", **changes)


def test_a_model_with_an_image_encoder_needs_its_text_config() -> None:
    raw = {"architectures": ["Llama4ForConditionalGeneration"], **SMALL}
    with pytest.raises(ModelLoadError, match="text_config=None must be an object"):
        family_for(raw).config(raw)


def test_frequency_bounds_that_meet_make_a_step() -> None:
    """The bounds meet, as those of Llama 4 do: longer waves than the original text are divided, others are not."""
    scaling = dict(rope_type="llama3", factor=16.0, low_freq_factor=1.0, high_freq_factor=1.0, original_max_position_embeddings=8192)  # fmt: skip
    scaled, plain = (np.asarray(rotary(128, 5e5, 1 << 20, one).inverse) for one in (scaling, None))
    np.testing.assert_allclose(scaled, np.where(2 * np.pi / plain > 8192, plain / 16, plain), rtol=1e-6)


def test_older_configs_read_like_todays() -> None:
    scaling = dict(rope_type="linear", factor=2.0)
    older = configured("Llama", rope_theta=5e5, rope_scaling=scaling)
    todays = configured("Llama", rope_parameters={**scaling, "rope_theta": 5e5})
    assert older.rope_theta == todays.rope_theta == 5e5
    args = (older.head_dim, 5e5, older.max_position_embeddings)
    assert rotary(*args, older.rope_scaling) == rotary(*args, todays.rope_scaling)
    eldest = configured("Llama", rope_theta=5e5, rope_scaling=dict(type="linear", factor=2.0))
    assert rotary(*args, eldest.rope_scaling) == rotary(*args, todays.rope_scaling)


@pytest.mark.parametrize(
    ("scaling", "message"),
    [
        (dict(rope_type="linear", factor=0.0), "needs a number factor above 0, got 0.0"),
        (dict(rope_type="linear", factor=float("nan")), "needs a number factor above 0, got nan"),
        (dict(rope_type="linear", factor=True), "needs a number factor above 0, got True"),
        (dict(rope_type="linear", factor=2.0, partial_rotary_factor=0.5), "partial_rotary_factor=0.5 is not supported"),
        (
            dict(rope_type="longrope", short_factor=["a"] * 4, long_factor=[1.0] * 4),
            "short_factor, a list of 4 numbers",
        ),
        (dict(rope_type="longrope", short_factor=[1.0] * 4, long_factor=[0.0] * 4), "long_factor, a list of 4 numbers"),
        (
            dict(rope_type="longrope", short_factor=[1.0] * 3, long_factor=[1.0] * 4),
            "short_factor, a list of 4 numbers",
        ),
    ],
)
def test_unclear_scalings_are_refused(scaling: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelLoadError, match=message):
        rotary(8, 1e4, 64, scaling)


@pytest.mark.parametrize("architectures", [5, "LlamaForCausalLM", [["LlamaForCausalLM"]], {"LlamaForCausalLM": 1}])
def test_malformed_architectures_are_refused(architectures: object) -> None:
    with pytest.raises(UnknownArchitectureError, match=r"is not supported; these are: .*LlamaForCausalLM"):
        family_for({"architectures": architectures})


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.bool_, np.int64])
def test_quantised_tensors_are_refused(folder: Path, dtype: type[np.generic]) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, name: np.ones(tensors[name].shape, dtype)}, folder / "model.safetensors")
    with pytest.raises(
        WeightsError, match=r"mlp\.up_proj\.weight is stored as .*take a checkpoint that is not quantised"
    ):
        load_model(folder, dtype="float32", progress=False)


@pytest.mark.parametrize("key", ["vocab_size", "intermediate_size"])
def test_sizes_are_compared_before_anything_is_allocated(folder: Path, key: str) -> None:
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**raw, key: 10**13}))
    with pytest.raises(WeightsError, match=r"config\.json asks for .*10000000000000"):
        load_model(folder, dtype="float32", progress=False)


def test_a_model_loads_twice_in_one_process(folder: Path) -> None:
    first, second = (load_model(folder, dtype="float32", progress=False) for _ in range(2))
    assert isinstance(second, Decoder)
    assert first.rotary == second.rotary


def test_the_table_names_every_tensor_once() -> None:
    for family in ("Llama", "Llama4", "Mistral", "Qwen2", "Qwen3"):
        table = checkpoint_table(configured(family, tie_word_embeddings=True))
        names = [source.name for sources in table.values() for source in sources]
        assert len(names) == len(set(names))
        assert "lm_head.weight" not in names


def test_nesting_without_end_is_no_config(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("[" * 100_000)
    with pytest.raises(ModelLoadError, match=r"config\.json cannot be read"):
        read_config(tmp_path)


def test_an_unreadable_source_is_refused(folder: Path) -> None:
    with pytest.raises(ModelLoadError, match="is a file: give the folder"):
        resolve_checkpoint(str(folder / "model.safetensors"))
    with pytest.raises(ModelLoadError, match="model=''"):
        resolve_checkpoint("")


def test_the_hub_is_asked_for_safetensors_and_texts_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub.utils import filter_repo_objects

    wanted: list[str] = []

    def snapshot(
        name: str, *, revision: str | None, allow_patterns: list[str], ignore_patterns: list[str], tqdm_class: Any
    ) -> str:
        assert (name, revision) == ("someone/something", "v1")
        files = [
            "config.json", "model-00001-of-00002.safetensors", "model.safetensors.index.json", "tokenizer.json",
            "tokenizer.model", "chat_template.jinja", "merges.txt",
            "consolidated.safetensors", "pytorch_model.bin", "model.pt", "modeling.py", "onnx/model.json",
            "original/consolidated.00.pth", "fp8/model.safetensors",
        ]  # fmt: skip
        wanted.extend(filter_repo_objects(files, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns))
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    assert resolve_checkpoint("someone/something", revision="v1") == tmp_path
    assert wanted == [
        "config.json", "model-00001-of-00002.safetensors", "model.safetensors.index.json", "tokenizer.json",
        "tokenizer.model", "chat_template.jinja", "merges.txt",
    ]  # fmt: skip


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EROFS])
def test_a_folder_that_cannot_hold_a_download_is_named(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def snapshot(name: str, **_: Any) -> str:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", "/some/cache")
    with pytest.raises(
        ModelLoadError, match=f"stored in /some/cache .{os.strerror(number)}.: free some space"
    ) as raised:
        resolve_checkpoint("someone/something")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("is_terminal", [False, True])
def test_downloads_show_bars_on_a_terminal_only(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, is_terminal: bool
) -> None:
    stderr = io.StringIO()
    monkeypatch.setattr(stderr, "isatty", lambda: is_terminal, raising=False)

    def snapshot(name: str, *, tqdm_class: Any, **_: Any) -> str:
        with tqdm_class(total=2, desc="Fetching", name="a.group") as bar:
            bar.update()
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    monkeypatch.setattr("sys.stderr", stderr)
    resolve_checkpoint("someone/something")
    assert ("Fetching" in stderr.getvalue()) == is_terminal
