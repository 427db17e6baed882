"""Each key of each family's config, as transformers has it, is obeyed, known to be harmless, or refused by name."""

from __future__ import annotations

from typing import Any

import pytest
import transformers

from asurge.errors import ModelLoadError
from asurge.models import family_for
from asurge.models.config import DecoderConfig
from asurge.models.decoder import _rotary
from asurge.models.families.registry import FAMILIES
from asurge.models.keys import HARMLESS, NEUTRAL

CLASSES = {
    **{name: f"{name.removesuffix('ForCausalLM')}Config" for name in FAMILIES},
    "Gemma3ForCausalLM": "Gemma3TextConfig",
    "Llama4ForCausalLM": "Llama4TextConfig",
    "Llama4ForConditionalGeneration": "Llama4TextConfig",
}
SMALL: dict[str, Any] = dict(
    vocab_size=160, hidden_size=96, intermediate_size=80, num_hidden_layers=4, num_attention_heads=8, num_key_value_heads=4,
    head_dim=16, pad_token_id=0, bos_token_id=0, eos_token_id=0,
)  # fmt: skip
OVERRIDDEN = {
    "max_window_layers": {"layer_types": None, "use_sliding_window": True, "sliding_window": 5},
    "sliding_window": {"layer_types": ["sliding_attention", "full_attention"] * 2, "use_sliding_window": True},
    "use_sliding_window": {"layer_types": ["sliding_attention", "full_attention"] * 2, "sliding_window": 5},
    "layer_types": {"use_sliding_window": True, "sliding_window": 5},
    "no_rope_layer_interval": {"no_rope_layers": None, "layer_types": None},
    "interleave_moe_layer_step": {"moe_layers": None},
    "_sliding_window_pattern": {"layer_types": None},
    "original_max_position_embeddings": {
        "rope_parameters": {"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
    },
}
"""Other keys of the config on which a key's own effect depends."""


def full(architecture: str, **changes: Any) -> dict[str, Any]:
    """All keys that transformers has for a family."""
    known: dict[str, Any] = getattr(transformers, CLASSES[architecture])(**SMALL).to_dict()
    return {**known, "architectures": [architecture], **{key: value for key, value in changes.items() if key in known}}


def read(raw: dict[str, Any]) -> DecoderConfig:
    """Read a config as loading does."""
    (architecture,) = raw["architectures"]
    if architecture == "Llama4ForConditionalGeneration":
        raw = {"architectures": [architecture], "text_config": raw, "vision_config": {}, "model_type": "llama4"}
    config = family_for(raw).config(raw)
    _rotary(config, (config.rope_theta, config.rope_scaling))
    if config.local_rope is not None:
        _rotary(config, config.local_rope)
    return config


def others(value: object) -> list[object]:
    """Values that differ from one, of its own kind where that says something."""
    match value:
        case bool():
            return [not value]
        case int() | float():
            return [value * 2 or 7, 1]
        case str():
            return ["relu", "something"]
        case list():
            mixed = ["full_attention", "sliding_attention", "chunked_attention"]
            return [value[::-1], [*value[1:], *value[:1]], [1] * 4, *([one, mixed[0]] * 2 for one in mixed)]
        case dict():
            return [{"rope_type": "linear", "factor": 3.0}]
    return [True, 7, 0.5, "something"]


@pytest.mark.parametrize("architecture", FAMILIES)
def test_everything_that_transformers_writes_is_read(architecture: str) -> None:
    read(full(architecture))


@pytest.mark.parametrize("architecture", FAMILIES)
def test_no_config_key_is_ignored(architecture: str) -> None:
    """Another value makes another model, or is refused by name."""
    for key in full(architecture):
        if key in HARMLESS:
            continue
        raw = full(architecture, **OVERRIDDEN.get(key, {}))
        before = read(raw)
        for value in others(raw[key]):
            try:
                after = read({**raw, key: value})
            except ModelLoadError:
                continue
            if after != before:
                break
        else:
            with pytest.raises(ModelLoadError, match=key.strip("_")):  # all were refused
                read({**raw, key: others(raw[key])[0]})


@pytest.mark.parametrize("value", [1, True, 0.5, "x" * 500, {"a": 1}, [None]])
@pytest.mark.parametrize("architecture", FAMILIES)
def test_unknown_keys_are_refused_by_name_and_value(architecture: str, value: object) -> None:
    with pytest.raises(
        ModelLoadError, match=r"config\.json: a_new_feature=.* is not supported, .*remove the key"
    ) as refusal:
        read({**full(architecture), "a_new_feature": value})
    assert repr(value)[:80] in str(refusal.value)
    assert len(str(refusal.value)) < 400
    read({**full(architecture), "a_new_feature": None})


@pytest.mark.parametrize(
    "key",
    [
        "quantization_config",
        "dual_chunk_attention_config",
        "clip_qkv",
        "attention_multiplier",
        "num_nextn_predict_layers",
    ],
)
@pytest.mark.parametrize("architecture", ["LlamaForCausalLM", "Qwen3MoeForCausalLM", "Gemma3ForCausalLM"])
def test_keys_of_other_features_are_refused(architecture: str, key: str) -> None:
    with pytest.raises(ModelLoadError, match=rf"config\.json: {key}="):
        read({**full(architecture), key: {"bits": 4} if key.endswith("config") else 2})


def test_a_config_around_the_language_models_is_read_as_closely() -> None:
    text = full("Llama4ForCausalLM")
    raw = {"architectures": ["Llama4ForConditionalGeneration"], "text_config": text, "vision_config": {}}
    family = family_for(raw)
    family.config({**raw, "boi_token_index": 5, "image_token_index": 6, "tie_word_embeddings": False})
    for changed in ({**raw, "a_new_feature": 1}, {**raw, "text_config": {**text, "a_new_feature": 1}}):
        with pytest.raises(ModelLoadError, match="a_new_feature=1"):
            family.config(changed)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("partial_rotary_factor", 1.0), ("use_sliding_window", False), ("layer_types", ["full_attention"] * 4),
        ("quantization_config", None), ("use_bidirectional_attention", False), ("pruned_heads", {}), ("is_decoder", True),
    ],
)  # fmt: skip
def test_a_neutral_value_of_an_unsupported_key_is_accepted(key: str, value: object) -> None:
    raw = full("LlamaForCausalLM")
    assert read({**raw, key: value}) == read(raw)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("partial_rotary_factor", 0.5), ("use_sliding_window", True), ("layer_types", ["sliding_attention"] * 4),
        ("sliding_window", 64), ("use_bidirectional_attention", True), ("pruned_heads", {"0": [1]}), ("use_mrope", True),
    ],
)  # fmt: skip
def test_an_effective_value_of_an_unsupported_key_is_refused(key: str, value: object) -> None:
    with pytest.raises(ModelLoadError, match=rf"config\.json: {key}="):
        read({**full("LlamaForCausalLM"), key: value})


def test_a_window_that_is_off_is_none() -> None:
    raw = full("LlamaForCausalLM")
    unused = {"use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28}
    assert read({**raw, **unused}) == read(raw)


@pytest.mark.parametrize("key", ["rope_parameters", "rope_scaling"])
@pytest.mark.parametrize(
    ("scaling", "message"),
    [
        ({"rope_type": "default", "mrope_section": [1, 2]}, r"mrope_section=\[1, 2\] is not supported beside rope_type='default'"),
        ({"type": "linear", "factor": 2.0, "beta_fast": 32}, "beta_fast=32 is not supported beside rope_type='linear'"),
        ({"rope_type": "default", "factor": 2.0}, "factor=2.0 is not supported beside rope_type='default'"),
        ({"rope_type": "default", "partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5 is not supported"),
        ({"rope_type": "default", "llama_4_scaling_beta": 0.1}, "llama_4_scaling_beta=0.1 is not supported"),
        ({"sliding_attention": {"rope_type": "default"}, "full_attention": {"rope_type": "default"}}, "is not supported"),
        ({"rope_type": "proportional"}, "rope_type='proportional' is not supported"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("architecture", ["LlamaForCausalLM", "Qwen3ForCausalLM", "MistralForCausalLM"])
def test_keys_within_a_scaling_are_read_as_closely(
    architecture: str, key: str, scaling: dict[str, Any], message: str
) -> None:
    raw = {name: value for name, value in full(architecture).items() if name != "rope_parameters"}
    with pytest.raises(ModelLoadError, match=message):
        read({**raw, key: scaling})


def test_a_scaling_may_say_what_changes_nothing() -> None:
    raw = full("LlamaForCausalLM", rope_parameters={"rope_type": "linear", "factor": 2.0})
    more = {"finetuned": True, "partial_rotary_factor": 1.0, "attention_factor": None, "rope_theta": 1e4}
    assert read(raw).rope_theta == read({**raw, "rope_parameters": {**raw["rope_parameters"], **more}}).rope_theta


def test_two_scalings_that_disagree_are_refused() -> None:
    raw = full("LlamaForCausalLM")
    with pytest.raises(ModelLoadError, match="rope_parameters and rope_scaling disagree"):
        read({**raw, "rope_scaling": {"rope_type": "linear", "factor": 2.0}})


@pytest.mark.parametrize("architecture", FAMILIES)
def test_a_missing_key_means_what_it_means_in_transformers(architecture: str) -> None:
    raw = full(architecture)
    given = {key: raw[key] for key in (*SMALL, "architectures") if key in raw}
    assert read(given) == read(raw)


def test_reasons_are_given_and_tables_do_not_overlap() -> None:
    assert all(HARMLESS.values())
    assert not HARMLESS.keys() & NEUTRAL.keys()
