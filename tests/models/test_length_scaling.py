"""Scalings that depend on the length, across their threshold, against transformers decoding with a cache."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from asurge.models import DenseAttend, load_model

THRESHOLD, TOKENS = 24, 56
SCALINGS: dict[str, dict[str, Any]] = {
    "dynamic": dict(factor=2.0),
    "longrope": dict(
        factor=4.0,
        original_max_position_embeddings=THRESHOLD,
        short_factor=[1.0 + 0.1 * i for i in range(6)],
        long_factor=[2.0 + i for i in range(6)],
    ),
}


@pytest.mark.parametrize("kind", SCALINGS)
def test_logits_equal_a_cached_decode_across_the_threshold(kind: str, tmp_path: Path) -> None:
    """A whole forward pass of transformers would turn every token by the final length: only decoding compares."""
    torch = pytest.importorskip("torch", reason="live parity needs torch")
    from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    scaling = dict(rope_type=kind, rope_theta=1e4, **SCALINGS[kind])
    config = LlamaConfig(
        vocab_size=96, hidden_size=48, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.2, max_position_embeddings=THRESHOLD, bos_token_id=None,
        eos_token_id=None, pad_token_id=None, rope_parameters=scaling,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval().float()
    model.save_pretrained(tmp_path)
    ids, cache = torch.randint(0, 96, (TOKENS,)), DynamicCache()
    with torch.no_grad():
        # Named `cache` from transformers 5.24 on.
        kept = {"cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values": cache}
        rows = [model(one[None, None], **kept, use_cache=True).logits[0, -1].numpy() for one in ids]
    theirs = np.stack(rows)

    ours = load_model(tmp_path, dtype="float32", progress=False)

    logits = np.asarray(ours.logits(ours(jnp.asarray(ids.numpy()), jnp.arange(TOKENS), DenseAttend(ours.config))))
    assert np.abs(logits - theirs).max() / np.abs(theirs).max() < 1e-4
