"""Models whose products run in the CPU kernels or in eight bits, beside the same models in plain JAX."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import pytest
from flax import nnx

from asurge.config import EngineConfig
from asurge.errors import ConfigError
from asurge.models import Decoder, DenseAttend, load_model, open_model
from asurge.models.decoder import PackedSparseMLP
from asurge.models.layers import Int8Linear, Linear, PackedLinear, PackedTable
from asurge.models.weights.conversion import convert
from asurge.ops import native
from asurge.ops.packed import LIVE_ROWS
from asurge.runner import DeviceRunner
from tests.checkpoints import random_tokens, write_tiny
from tests.kernels import SIZES, needs_kernels
from tests.models.forward import forward
from tests.runner.steps import row, run

Floats = npt.NDArray[np.float32]

CASES: dict[str, dict[str, Any]] = {
    "llama, tied": dict(vocab_size=400),
    "qwen3, untied, odd vocabulary, a loop": dict(
        architectures=["Qwen3ForCausalLM"],
        model_type="qwen3",
        tie_word_embeddings=False,
        vocab_size=391,
        num_hidden_layers=4,
    ),
    "qwen2, biases, tied, odd vocabulary": dict(
        architectures=["Qwen2ForCausalLM"], model_type="qwen2", vocab_size=397, hidden_size=128
    ),
    "phi3, one tensor for three": dict(architectures=["Phi3ForCausalLM"], model_type="phi3", tie_word_embeddings=False),
    "gemma2, soft caps": dict(
        architectures=["Gemma2ForCausalLM"],
        model_type="gemma2",
        sliding_window=16,
        attn_logit_softcapping=2.0,
        final_logit_softcapping=30.0,
    ),
    "gemma3, windows, norms of heads": dict(
        architectures=["Gemma3ForCausalLM"], model_type="gemma3_text", sliding_window=16, sliding_window_pattern=2
    ),
    "gemma3, two loops": dict(
        architectures=["Gemma3ForCausalLM"],
        model_type="gemma3_text",
        sliding_window=16,
        sliding_window_pattern=3,
        num_hidden_layers=6,
    ),
    "olmo2, norms after layers and across heads": dict(
        architectures=["Olmo2ForCausalLM"], model_type="olmo2", tie_word_embeddings=False
    ),
    "smollm3, every other layer without positions": dict(
        architectures=["SmolLM3ForCausalLM"], model_type="smollm3", no_rope_layer_interval=2
    ),
}
TOKENS = np.asarray(random_tokens(40), np.int32)
every_case = pytest.mark.parametrize("case", CASES)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {case: write_tiny(tmp_path_factory.mktemp("model"), **SIZES | CASES[case]) for case in CASES}


@pytest.fixture(scope="module")
def expected(folders: dict[str, Path]) -> dict[str, Floats]:
    """Logits of plain JAX in bf16."""
    return {case: logits(load(folders[case]))[0] for case in CASES}


def load(folder: Path, dtype: str = "bfloat16") -> Decoder:
    return load_model(folder, dtype=dtype, progress=False)


def logits(model: Decoder) -> tuple[Floats, npt.NDArray[np.int32]]:
    """And what `Decoder.greedy` finds in the same hidden states."""
    graph, state = nnx.split(model)
    size = model.config.vocab_size
    out = np.asarray(forward(model)(TOKENS))
    assert out.dtype == np.float32

    @jax.jit
    def greedy(hidden: jax.Array) -> tuple[jax.Array, jax.Array]:
        module = nnx.merge(graph, state)
        return module.logits(hidden), module.greedy(hidden)

    hidden = jnp.asarray(np.random.default_rng(6).normal(size=(40, model.config.hidden_size)), jnp.bfloat16)
    stored, found = greedy(hidden)
    np.testing.assert_array_equal(found, np.asarray(stored)[:, :size].argmax(axis=1))
    return out[:, :size], np.asarray(found)


def bits(array: jax.Array) -> npt.NDArray[np.uint8]:
    return np.asarray(array).view(np.uint8)


def cosines(ours: Floats, theirs: Floats) -> Floats:
    one, other = (part / np.linalg.norm(part, axis=1, keepdims=True) for part in (ours, theirs))
    cosine: Floats = (one * other).sum(axis=1)
    return cosine


def linears(model: Decoder) -> Iterator[Linear | PackedLinear | Int8Linear]:
    for block in model.layers:
        yield from (block.attention.qkv_proj, block.attention.o_proj, block.mlp.gate_up_proj, block.mlp.down_proj)


@needs_kernels
@every_case
def test_the_kernels_give_the_logits_of_plain_jax(
    case: str, folders: dict[str, Path], expected: dict[str, Floats]
) -> None:
    model = load(folders[case])
    assert convert(model, kernels="auto", quantization=None) is None
    assert all(isinstance(layer, PackedLinear) for layer in linears(model))
    assert model.skips_padding
    ours, _ = logits(model)
    assert cosines(ours, expected[case]).min() > 0.9995
    assert np.abs(ours - expected[case]).max() < 0.03 * np.abs(expected[case]).max()


@pytest.mark.parametrize("chosen", [pytest.param("native", marks=needs_kernels), "xla"])
@every_case
def test_int8_weights_stay_close(case: str, chosen: str, folders: dict[str, Path], expected: dict[str, Floats]) -> None:
    model = load(folders[case])
    assert convert(model, kernels=chosen, quantization="int8") is None
    assert all(isinstance(layer, PackedLinear if chosen == "native" else Int8Linear) for layer in linears(model))
    ours, _ = logits(model)
    assert cosines(ours, expected[case]).min() > 0.99


@needs_kernels
@pytest.mark.parametrize(
    ("case", "rounds"),
    [
        ("qwen3, untied, odd vocabulary, a loop", [3]),
        ("gemma3, two loops", [2, 2]),
        ("smollm3, every other layer without positions", []),
    ],
)
def test_layers_that_differ_by_their_weights_alone_share_a_program(
    case: str, rounds: list[int], folders: dict[str, Path]
) -> None:
    """The layers run in a loop of so many rounds; the last layer has its own program, because not everything of it is read."""
    model = load(folders[case])
    convert(model, kernels="native", quantization=None)
    tokens, positions = jnp.asarray(TOKENS), jnp.arange(len(TOKENS))
    program = jax.make_jaxpr(lambda: model(tokens, positions, DenseAttend(model.config)))()
    assert [one.params["length"] for one in program.eqns if one.primitive.name == "scan"] == rounds


@every_case
@pytest.mark.parametrize("quantization", [None, "int8"])
@pytest.mark.parametrize("chosen", [pytest.param("native", marks=needs_kernels), "xla"])
def test_weights_may_be_read_as_they_are_converted(
    chosen: str, quantization: str | None, case: str, folders: dict[str, Path]
) -> None:
    """They are what those of a loaded model become."""
    loaded, opened = load(folders[case]), open_model(folders[case], dtype="bfloat16", progress=False)
    for model in (loaded, opened):
        convert(model, kernels=chosen, quantization=quantization)
    states = [dict(nnx.to_flat_state(nnx.state(model))) for model in (loaded, opened)]
    assert states[0].keys() == states[1].keys()
    for path, parameter in states[0].items():
        np.testing.assert_array_equal(bits(parameter[...]), bits(states[1][path][...]), err_msg=str(path))


# What cannot be converted.


@pytest.mark.parametrize(
    ("changes", "dtype", "quantization", "reason"),
    [
        ({}, "float32", None, "dtype=float32 is not bfloat16"),
        (dict(hidden_size=48), "bfloat16", None, "hidden_size=48 is not a multiple of 32"),
        (dict(intermediate_size=80), "bfloat16", None, "intermediate_size=80 is not a multiple of 32"),
        (dict(head_dim=12), "bfloat16", None, "num_attention_heads * head_dim=48 is not a multiple of 32"),
        (dict(hidden_size=96), "bfloat16", "int8", "hidden_size=96 is not a multiple of 64"),
    ],
)
def test_a_model_the_kernels_cannot_take_stays_in_plain_jax_and_says_why(
    changes: dict[str, Any], dtype: str, quantization: str | None, reason: str, tmp_path: Path
) -> None:
    model = load(write_tiny(tmp_path, **SIZES | dict(num_hidden_layers=1) | changes), dtype)
    with pytest.raises(ConfigError) as refused:
        convert(model, kernels="native", quantization=quantization)
    assert reason in str(refused.value)
    assert convert(model, kernels="auto", quantization=quantization) == reason
    assert all(isinstance(layer, Int8Linear if quantization else Linear) for layer in linears(model))
    assert not model.skips_padding
    assert np.isfinite(logits(model)[0]).all()


def test_without_the_kernels_a_model_says_why(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "unavailable", lambda: "there are none")
    model = load(folders["llama, tied"])
    with pytest.raises(ConfigError, match="there are none"):
        convert(model, kernels="native", quantization=None)
    assert convert(model, kernels="auto", quantization=None) == "there are none"
    assert convert(model, kernels="xla", quantization=None) is None
    assert all(isinstance(layer, Linear) for layer in linears(model))


# Memory.


@every_case
@pytest.mark.parametrize("quantization", [None, "int8"])
@pytest.mark.parametrize("chosen", [pytest.param("native", marks=needs_kernels), "xla"])
def test_converted_weights_are_freed(
    chosen: str, quantization: str | None, case: str, folders: dict[str, Path]
) -> None:
    model = load(folders[case])
    layers = [layer.weight[...] for layer in linears(model)]
    table, head = model.embedding[...], None if model.lm_head is None else model.lm_head[...]
    convert(model, kernels=chosen, quantization=quantization)
    converted = chosen == "native" or quantization is not None
    assert [weight.is_deleted() for weight in layers] == [converted] * len(layers)
    assert table.is_deleted() == (chosen == "native")
    if head is not None:
        assert head.is_deleted() == converted
        assert (model.lm_head is None) == converted
    # Nothing of what is left was freed.
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(nnx.state(model)))
    if chosen == "native" and head is None:
        assert isinstance(model.head, PackedLinear)
        shared = isinstance(model.embedding, PackedTable) and model.embedding.parts is model.head.parts
        assert shared == (quantization is None)


# Through pages.

PROMPTS = [random_tokens(37 - seed, seed) for seed in range(8)]
STEPS = 5
SMALL: dict[str, Any] = dict(max_num_seqs=2, max_num_batched_tokens=32, page_size=32, silent_mode=True)


def served(folder: Path, chosen: Any, quantization: Any, pages_in: Any) -> list[list[int]]:
    """Greedy tokens: each prompt in two chunks, then one token after another, once beside another row's prompt."""
    model = load(folder)
    convert(model, kernels=chosen, quantization=quantization)
    config = EngineConfig(kernels=chosen, quantization=quantization, kv_cache_dtype=pages_in, **SMALL)
    runner = DeviceRunner(model, config, max_model_len=96)
    pages, others = range(1, 4), range(4, 7)
    texts = []
    for prompt in PROMPTS:
        run(runner, [], [row(0, 0, prompt[:21], False, pages)])
        results = [run(runner, [], [row(0, 21, prompt[21:], True, pages)])]
        for step in range(STEPS):
            beside = [row(1, 0, PROMPTS[0][:9], False, others)] if step == 2 else []
            results.append(run(runner, [row(0, len(prompt) + step, None, True, pages)], beside))
        texts.append([int(result.token_ids[0, 0]) for result in results])
    runner.shutdown()
    return texts


@needs_kernels
@pytest.mark.parametrize(
    ("case", "quantization", "pages_in", "margin"),
    [
        ("qwen3, untied, odd vocabulary, a loop", None, "auto", 0.01),
        ("qwen3, untied, odd vocabulary, a loop", None, "int8", 0.03),
        ("gemma2, soft caps", None, "auto", 0.02),
        ("gemma3, windows, norms of heads", None, "auto", 0.02),
        ("qwen2, biases, tied, odd vocabulary", "int8", "auto", 0.04),
    ],
)
def test_pages_and_kernels_sample_the_tokens_of_plain_jax(
    case: str, quantization: str | None, pages_in: str, margin: float, folders: dict[str, Path]
) -> None:
    """Up to the first token of a text that is near another one: there, rounding decides."""
    ours, theirs = (served(folders[case], chosen, quantization, pages_in) for chosen in ("native", "xla"))
    plain, compared = forward(load(folders[case])), 0
    for prompt, mine, its in zip(PROMPTS, ours, theirs, strict=True):
        whole = np.zeros(len(PROMPTS[0]) + STEPS, np.int32)
        whole[: len(prompt) + STEPS] = [*prompt, *its[:-1]]
        scores = np.sort(np.asarray(plain(whole))[len(prompt) - 1 :][: STEPS + 1], axis=1)
        near = scores[:, -1] - scores[:, -2] < margin * scores[:, -1]
        clear = int(near.argmax()) if near.any() else len(near)
        assert mine[:clear] == its[:clear]
        compared += clear
    assert compared >= 2 * len(PROMPTS)


@needs_kernels
def test_an_application_may_compute_in_64_bits(folders: dict[str, Path]) -> None:
    """JAX then makes int64 of a Python integer, which the kernels do not take."""
    case = "qwen3, untied, odd vocabulary, a loop"
    alone = served(folders[case], "native", None, "auto")
    jax.config.update("jax_enable_x64", True)
    try:
        assert served(folders[case], "native", None, "auto") == alone
    finally:
        jax.config.update("jax_enable_x64", False)


@needs_kernels
def test_unread_rows_of_the_last_layer_are_skipped(folders: dict[str, Path]) -> None:
    model = load(folders["llama, tied"])
    convert(model, kernels="native", quantization=None)
    read = np.zeros(-(-len(TOKENS) // LIVE_ROWS), np.int32)
    read[1], read[-1] = 5, 1
    rows = [*range(LIVE_ROWS, LIVE_ROWS + 5), (len(read) - 1) * LIVE_ROWS]
    found = np.asarray(forward(model, read=jnp.asarray(read))(TOKENS))
    np.testing.assert_array_equal(found[rows], np.asarray(forward(model)(TOKENS))[rows])


@needs_kernels
def test_prompt_logprobs_equal_those_of_plain_jax(folders: dict[str, Path]) -> None:
    """The hidden states of all their tokens are read, though none but the last is sampled behind."""
    told = []
    for chosen in ("native", "xla"):
        model = load(folders["llama, tied"])
        convert(model, kernels=chosen, quantization=None)
        runner = DeviceRunner(model, EngineConfig(kernels=chosen, **SMALL), max_model_len=96)
        prompt = PROMPTS[0][:30]
        scored = dataclasses.replace(row(0, 0, prompt, True, range(1, 4)), targets=np.int32([*prompt[1:], -1]))
        told.append(run(runner, [], [scored]).prompt_logprobs[0].chosen)
        runner.shutdown()
    assert told[0].shape == (29,)
    np.testing.assert_allclose(told[0], told[1], atol=0.03)


MIXTURES: dict[str, dict[str, Any]] = {
    "mixtral": dict(
        architectures=["MixtralForCausalLM"], model_type="mixtral", num_local_experts=4, num_experts_per_tok=2
    ),
    "qwen3moe": dict(
        architectures=["Qwen3MoeForCausalLM"],
        model_type="qwen3_moe",
        num_experts=8,
        num_experts_per_tok=3,
        moe_intermediate_size=64,
        norm_topk_prob=True,
    ),
}


@needs_kernels
@pytest.mark.parametrize("quantization", [None, "int8", "int4"])
@pytest.mark.parametrize("mixture", MIXTURES)
def test_experts_run_in_the_kernels(mixture: str, quantization: str | None, tmp_path: Path) -> None:
    folder = write_tiny(tmp_path, **SIZES | MIXTURES[mixture])
    plain, packed = load(folder), load(folder)
    assert convert(plain, kernels="xla", quantization=None) is None
    assert convert(packed, kernels="native", quantization=quantization) is None
    assert isinstance(packed.layers[0].mlp, PackedSparseMLP)
    tokens = jnp.asarray(random_tokens(40, 0))

    def logits(model: Decoder) -> np.ndarray:
        hidden = model(tokens, jnp.arange(40), DenseAttend(model.config))
        return np.asarray(model.logits(hidden), np.float64)[:, : model.config.vocab_size]

    expected, found = logits(plain), logits(packed)
    assert np.linalg.norm(found - expected) < {None: 0.02, "int8": 0.2, "int4": 0.4}[quantization] * np.linalg.norm(
        expected
    )


@needs_kernels
def test_tokens_that_are_not_live_go_to_no_expert(tmp_path: Path) -> None:
    model = load(write_tiny(tmp_path, **SIZES | MIXTURES["mixtral"]))
    convert(model, kernels="native", quantization=None)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(32, model.config.hidden_size)), jnp.bfloat16)
    mlp = model.layers[0].mlp
    whole = np.asarray(mlp(x, None, None, None, 0))
    some = np.asarray(mlp(x, None, None, jnp.asarray([3, 0], jnp.int32), 0))
    assert np.array_equal(some[:3], whole[:3])
    assert not some[3:].any()


@needs_kernels
def test_what_the_kernels_cannot_do_is_declined_by_name(tmp_path: Path) -> None:
    reason = "experts beside others, or layers without them"
    changes = dict(MIXTURES["qwen3moe"], decoder_sparse_step=2)
    folder = write_tiny(tmp_path, **SIZES | changes)
    assert reason in str(convert(load(folder), kernels="auto", quantization=None))
    with pytest.raises(ConfigError, match=reason):
        convert(load(folder), kernels="native", quantization=None)


def test_experts_are_not_quantised_in_silence(tmp_path: Path) -> None:
    folder = write_tiny(tmp_path, **SIZES | MIXTURES["mixtral"])
    with pytest.raises(ConfigError, match="experts"):
        convert(load(folder), kernels="xla", quantization="int8")
