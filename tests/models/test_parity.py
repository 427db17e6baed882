"""The same numbers as transformers: golden values always, a live comparison where torch is installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from asurge.models import load_model
from asurge.ops.rotary import rotary
from tests.models.cases import CASES, GOLDEN, NEW_TOKENS, PROMPT_TOKENS, settings
from tests.models.forward import forward, relative

TOLERANCE = 1e-4
every_case = pytest.mark.parametrize("case", list(CASES))


@every_case
def test_logits_and_greedy_text_equal_the_golden_ones(case: str) -> None:
    golden = np.load(GOLDEN / case / "golden.npz")
    run = forward(load_model(GOLDEN / case, dtype="float32", progress=False))
    tokens = np.zeros(PROMPT_TOKENS + NEW_TOKENS, np.int32)
    tokens[:PROMPT_TOKENS] = golden["prompt"]
    # Attention is causal, so what stands behind a position does not matter to it.
    logits = np.asarray(run(tokens))[:PROMPT_TOKENS]
    assert relative(logits[-len(golden["logits"]) :], golden["logits"]) < TOLERANCE
    for at in range(PROMPT_TOKENS, len(tokens)):
        tokens[at] = np.asarray(run(tokens))[at - 1].argmax()
    assert tokens[PROMPT_TOKENS:].tolist() == golden["tokens"].tolist()


@every_case
def test_logits_equal_those_of_transformers_itself(case: str, tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="live parity needs torch")
    from tests.models.make_golden import build, run

    model, prompt = build(case)
    model.save_pretrained(tmp_path)
    theirs, _ = run(model, prompt)
    ours = np.asarray(forward(load_model(tmp_path, dtype="float32", progress=False))(prompt.astype(np.int32)))
    assert relative(ours, theirs) < TOLERANCE


def test_the_language_model_beside_an_image_encoder(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="live parity needs torch")
    from transformers import Llama4Config, Llama4ForConditionalGeneration, Llama4TextConfig, Llama4VisionConfig

    text = Llama4TextConfig(**settings("llama4")[1])
    vision = Llama4VisionConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, vision_output_dim=16,
        image_size=28, patch_size=14, projector_input_dim=16, projector_output_dim=16,
    )  # fmt: skip
    torch.manual_seed(0)
    config = Llama4Config(text_config=text.to_dict(), vision_config=vision.to_dict())
    model = Llama4ForConditionalGeneration(config).eval().float()
    model.save_pretrained(tmp_path)
    prompt = torch.randint(0, text.vocab_size, (PROMPT_TOKENS,))
    with torch.no_grad():
        theirs = (
            model.language_model(input_ids=prompt[None]).logits[0].numpy()
        )  # the whole fails without images in 5.24
    loaded = load_model(tmp_path, dtype="float32", progress=False)
    assert relative(np.asarray(forward(loaded)(prompt.numpy().astype(np.int32))), theirs) < TOLERANCE


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
@pytest.mark.parametrize("position", [3, 63, 64, 200])
def test_scalings_by_length_rotate_a_token_as_the_last_one(kind: str, position: int) -> None:
    """The frequencies depend on the length; transformers' are those of a decode step at this position."""
    torch = pytest.importorskip("torch", reason="compares with transformers' own formulas")
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaling: dict[str, Any] = dict(rope_type=kind, factor=4.0, rope_theta=1e4)
    if kind == "longrope":
        short, long = [1.0 + 0.1 * i for i in range(8)], [2.0 + i for i in range(8)]
        scaling |= dict(short_factor=short, long_factor=long, original_max_position_embeddings=64)
    config = LlamaConfig(hidden_size=64, num_attention_heads=4, head_dim=16, max_position_embeddings=64, rope_parameters=scaling)  # fmt: skip
    length = position + 1
    inverse, amplitude = ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"), seq_len=length)
    cos, sin = rotary(16, 1e4, 64, scaling).tables(jnp.array([position]))
    angle = position * inverse.numpy()
    np.testing.assert_allclose(np.asarray(cos)[0, 0], np.cos(angle) * amplitude, atol=1e-5)
    np.testing.assert_allclose(np.asarray(sin)[0, 0], np.sin(angle) * amplitude, atol=1e-5)
