"""Pages behind the window, given up and written by others: the tokens are those of an engine that keeps them all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from asurge import Engine, SamplingParams
from asurge.plan import RunnerLimits
from asurge.runner import sizing
from asurge.runner.page_layout import PageLayout, layout_for
from tests.checkpoints import write_tiny
from tests.kernels import SIZES, needs_kernels

MODELS: dict[str, dict[str, Any]] = {
    "sliding": dict(architectures=["MistralForCausalLM"], model_type="mistral", sliding_window=40),
    "chunked": dict(
        architectures=["Llama4ForCausalLM"], model_type="llama4_text", attention_chunk_size=40, no_rope_layers=[1, 1],
        intermediate_size_mlp=128, num_local_experts=2, interleave_moe_layer_step=2,
    ),
    "some sliding": dict(
        architectures=["Qwen3ForCausalLM"], model_type="qwen3", num_hidden_layers=5, sliding_window=40, use_sliding_window=True,
        layer_types=["sliding_attention", "sliding_attention", "full_attention", "sliding_attention", "full_attention"],
    ),
}  # fmt: skip
WINDOWS = {"sliding": (40,), "chunked": (40,), "some sliding": (40, 40, 40, None, None)}
SETTINGS: dict[str, Any] = dict(
    max_model_len=256, max_num_seqs=4, max_num_batched_tokens=64, page_size=32, silent_mode=True
)
GREEDY = SamplingParams(max_tokens=150, temperature=0.0, ignore_eos=True)
PROMPTS = [[5 + (7 * at + index) % 380 for at in range(60 + index)] for index in range(6)]


@pytest.mark.parametrize(
    ("kernels", "model"),
    [
        pytest.param("native", "sliding", marks=needs_kernels),
        pytest.param("native", "some sliding", marks=needs_kernels),
        ("xla", "chunked"),
        *(pytest.param("xla", model, marks=pytest.mark.slow) for model in ("sliding", "some sliding")),
    ],
)
async def test_tokens_do_not_depend_on_pages_behind_the_window(
    kernels: str, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_tiny(tmp_path, **SIZES, **MODELS[model])
    found = []
    for keeps_all in (False, True):
        layouts = list[PageLayout]()

        def layout(
            seen: Sequence[int | None],
            limits: RunnerLimits,
            keeps_all: bool = keeps_all,
            layouts: list[PageLayout] = layouts,
        ) -> PageLayout:
            layouts.append(layout_for([None] * len(seen) if keeps_all else seen, limits))
            return layouts[0]

        monkeypatch.setattr(sizing, "layout_for", layout)
        async with Engine(str(folder), **SETTINGS, kernels=kernels) as engine:
            first = await engine.generate(PROMPTS, GREEDY, use_tqdm=False)
            again = await engine.generate([*PROMPTS[4:], *PROMPTS[:2]], GREEDY, use_tqdm=False)
            assert engine.statistics().prefix_cache_hits > 0
        assert layouts[0].windows == ((None,) if keeps_all else WINDOWS[model])
        found.append([output.outputs[0].token_ids for output in (*first, *again)])
    assert found[0] == found[1]
    assert found[0][:2] == found[0][8:]
