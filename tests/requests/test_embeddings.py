"""Prompts as vectors: those of a whole forward pass in float32, in any batch and chunks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from asurge import EmbeddingOutput, Engine, SamplingParams
from asurge.errors import (
    DeadlineExceededError,
    DuplicateRequestError,
    EngineNotRunningError,
    InvalidRequestError,
    PromptTooLongError,
    RequestAbortedError,
)
from asurge.models import load_model, resolve_checkpoint
from asurge.plan import Pooling
from tests.checkpoints import random_tokens
from tests.conftest import PAGE_BYTES, TINY
from tests.idle import assert_idle, settle
from tests.models.forward import hidden_states

PROMPT = random_tokens(45)
FULL = random_tokens(128, seed=6)
"""A prompt as long as the context: four steps."""

every_pooling = pytest.mark.parametrize("pooling", ["mean", "last"])


class Whole:
    """Embeddings from one forward pass over all of a prompt, without the engine."""

    def __init__(self, folder: Path) -> None:
        self._run = hidden_states(load_model(folder, dtype="float32", progress=False))

    def __call__(self, prompt: list[int], pooling: Pooling = "mean") -> np.ndarray:
        # Attention is causal, so what stands behind a prompt does not matter to it.
        padded = np.zeros(128, np.int32)
        padded[: len(prompt)] = prompt
        hidden = np.asarray(self._run(padded), np.float64)[: len(prompt)]
        return hidden.mean(axis=0) if pooling == "mean" else hidden[-1]


@pytest.fixture(scope="module")
def whole(tiny_folder: Path) -> Whole:
    return Whole(tiny_folder)


@pytest.fixture(scope="module")
async def small(tiny_folder: Path) -> AsyncIterator[Engine]:
    """Pages for one long sequence."""
    async with Engine(str(tiny_folder), **TINY, kv_cache_bytes=17 * PAGE_BYTES) as engine:
        yield engine


async def embed(engine: Engine, prompts: Any, **given: Any) -> list[EmbeddingOutput]:
    return await engine.embed(prompts, use_tqdm=False, **given)


def assert_equal(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


def prompts(count: int) -> Iterator[list[int]]:
    for at in range(count):
        yield [4 + at, *FULL[: 3 + at * 97 % 120]]


# ── results ─────────────────────────────────────────────────────────────────────────────────────


@every_pooling
@pytest.mark.parametrize("size", [1, 8, 45, 128])
async def test_an_embedding_is_that_of_the_whole_prompt(
    tiny: Engine, whole: Whole, size: int, pooling: Pooling
) -> None:
    """45 tokens take two steps, and 128 four, the last of which fills the context."""
    prompt = FULL[:size]
    (output,) = await embed(tiny, prompt, pooling=pooling, normalize=False)
    assert_equal(output.embedding, whole(prompt, pooling))
    assert (output.prompt_token_ids, output.prompt, output.num_truncated_tokens) == (prompt, None, 0)
    assert output.processing_time > 0
    await settle(tiny)


@every_pooling
async def test_a_warm_cache_changes_nothing(tiny: Engine, whole: Whole, pooling: Pooling) -> None:
    prompt = PROMPT[::-1]
    await tiny.generate([prompt], SamplingParams(max_tokens=1), use_tqdm=False)
    (output,) = await embed(tiny, prompt, pooling=pooling, normalize=False)
    assert_equal(output.embedding, whole(prompt, pooling))
    assert output.num_cached_tokens == (40 if pooling == "last" else 0)
    # What an embedding has computed, others find.
    (again,) = await embed(tiny, [*prompt, 7], pooling="last", normalize=False)
    assert again.num_cached_tokens == 40
    assert_equal(again.embedding, whole([*prompt, 7], "last"))
    (apart,) = await embed(tiny, prompt, pooling="last", cache_salt=f"for {pooling}")
    assert apart.num_cached_tokens == 0


async def test_embeddings_beside_generations_change_neither(tiny: Engine, whole: Whole) -> None:
    """More prompts than slots, of all lengths and both poolings, while others decode: plain, shaped, and scored."""
    greedy = {"temperature": 0.0, "max_tokens": 30, "ignore_eos": True}
    wishes = [SamplingParams(**greedy), SamplingParams(**greedy, frequency_penalty=1.0, prompt_logprobs=1), SamplingParams(**greedy, logprobs=2)]  # fmt: skip
    alone = [(await tiny.generate([PROMPT], params, use_tqdm=False))[0] for params in wishes]
    batch = list(prompts(12))
    compiled = tiny.get_metrics_summary()["compilations"]
    means, lasts, *texts = await asyncio.gather(
        embed(tiny, batch, normalize=False),
        embed(tiny, batch, pooling="last", normalize=False),
        *(tiny.stream(PROMPT, params).wait_finished() for params in wishes),
    )
    assert tiny.get_metrics_summary()["compilations"] == compiled
    for prompt, mean, last in zip(batch, means, lasts, strict=True):
        assert mean.prompt_token_ids == last.prompt_token_ids == prompt
        assert_equal(mean.embedding, whole(prompt))
        assert_equal(last.embedding, whole(prompt, "last"))
    for text, other in zip(texts, alone, strict=True):
        assert text.outputs[0].token_ids == other.outputs[0].token_ids
        assert len(text.prompt_logprobs or []) == len(other.prompt_logprobs or [])
    await settle(tiny)


@every_pooling
async def test_a_preemption_changes_nothing(small: Engine, whole: Whole, pooling: Pooling) -> None:
    """Texts that came first grow, and take the pages of prompts that are half computed."""
    before = small.statistics().preemptions
    params = SamplingParams(max_tokens=80, temperature=0.0, ignore_eos=True)
    batch = [[9, at, *FULL[:100]] for at in range(4, 8)]
    texts = asyncio.gather(*(small.stream([at, *PROMPT[:5]], params).wait_finished() for at in range(2)))
    await asyncio.sleep(0)
    outputs = await embed(small, batch, pooling=pooling, normalize=False)
    await texts
    assert small.statistics().preemptions > before
    for prompt, output in zip(batch, outputs, strict=True):
        assert_equal(output.embedding, whole(prompt, pooling))
    await settle(small)


@every_pooling
async def test_the_demo_model_in_bfloat16_is_close_to_itself_in_float32(demo: Engine, pooling: Pooling) -> None:
    """Over the platform's own kernels, in batches; a step holds several prompts, padding between them."""
    prompts = [
        "def area(width: float, height: float) -> float:",
        "import os\n",
        "for line in lines:\n    print(line)\n" * 4,
    ]
    outputs = await embed(demo, prompts, pooling=pooling)
    whole = Whole(resolve_checkpoint("demo"))
    for output in outputs:
        expected = whole(output.prompt_token_ids, pooling)
        assert output.embedding @ (expected / np.linalg.norm(expected)) > 0.999


@every_pooling
async def test_length_1_and_fewer_dimensions(tiny: Engine, whole: Whole, pooling: Pooling) -> None:
    expected = whole(PROMPT, pooling)
    (output,) = await embed(tiny, PROMPT, pooling=pooling)
    assert_equal(output.embedding, expected / np.linalg.norm(expected))
    (output,) = await embed(tiny, PROMPT, pooling=pooling, dimensions=5)
    assert_equal(output.embedding, expected[:5] / np.linalg.norm(expected[:5]))
    (output,) = await embed(tiny, PROMPT, pooling=pooling, dimensions=5, normalize=False)
    assert_equal(output.embedding, expected[:5])


async def test_texts_token_ids_and_lists_of_them(tiny: Engine) -> None:
    (text,) = await embed(tiny, "Schöne Grüße")
    (ids,) = await embed(tiny, text.prompt_token_ids)
    both = await embed(tiny, ["Schöne Grüße", text.prompt_token_ids], request_id=["a", "b"])
    assert (text.prompt, ids.prompt) == ("Schöne Grüße", None)
    assert [one.request_id for one in both] == ["a", "b"]
    for one in (ids, *both):
        np.testing.assert_array_equal(one.embedding, text.embedding)
    assert await embed(tiny, []) == []


async def test_long_prompts_are_cut_or_refused(tiny: Engine, whole: Whole, tiny_folder: Path) -> None:
    long = [*PROMPT, *FULL]
    (output,) = await embed(tiny, long, normalize=False)
    assert (output.num_truncated_tokens, output.prompt_token_ids) == (45, FULL)
    assert_equal(output.embedding, whole(FULL))
    (output,) = await embed(tiny, long, truncate_prompt_tokens=20, normalize=False)
    assert (output.num_truncated_tokens, output.prompt_token_ids) == (153, FULL[-20:])
    async with Engine(str(tiny_folder), **TINY, strict_context=True) as strict:
        with pytest.raises(PromptTooLongError, match="173 tokens, more than max_model_len=128"):
            await embed(strict, long)
        (output,) = await embed(strict, long, truncate_prompt_tokens=-1)
        assert output.num_truncated_tokens == 45
        (output,) = await embed(strict, FULL)
        assert output.prompt_token_ids == FULL


# ── ending early ────────────────────────────────────────────────────────────────────────────────


async def test_cancelling_frees_everything(tiny: Engine) -> None:
    for turns in (1, 2, 5, 20):
        task = asyncio.ensure_future(embed(tiny, [FULL] * 9))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (tiny.num_running_requests, tiny.num_pending_requests) == (0, 0)
    await settle(tiny)


async def test_an_aborted_embedding_fails_and_ends_the_batch(tiny: Engine) -> None:
    task = asyncio.ensure_future(embed(tiny, [FULL, PROMPT], request_id=["one", "two"]))
    while not tiny.abort_request("one"):
        await asyncio.sleep(0)
    with pytest.raises(RequestAbortedError, match="'one' was aborted"):
        await task
    await settle(tiny)


async def test_a_deadline_and_a_taken_id(tiny: Engine) -> None:
    with pytest.raises(DeadlineExceededError):
        await embed(tiny, FULL, deadline_s=0.0)
    with pytest.raises(DuplicateRequestError):
        await embed(tiny, [FULL, FULL], request_id=["same", "same"])
    await settle(tiny)


async def test_the_engines_stop_ends_embeddings(tiny_folder: Path) -> None:
    engine = Engine(str(tiny_folder), **TINY)
    with pytest.raises(EngineNotRunningError):
        await embed(engine, PROMPT)
    async with engine:
        task = asyncio.ensure_future(embed(engine, [FULL] * 20))
        while not engine.num_running_requests:
            await asyncio.sleep(0)
    with pytest.raises(RequestAbortedError):
        await task
    with pytest.raises(EngineNotRunningError):
        await embed(engine, PROMPT)


# ── refusals ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        ({"pooling": "max"}, "pooling"), ({"pooling": None}, "pooling"), ({"normalize": 1}, "normalize"), ({"dimensions": 0}, "dimensions"),
        ({"dimensions": 33}, "dimensions"), ({"dimensions": "5"}, "dimensions"), ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
        ({"priority": "high"}, "priority"), ({"request_id": ["a", "b"]}, "request_id"), ({"prompts": ""}, "prompt"),
        ({"prompts": [[]]}, "prompt"), ({"prompts": [400]}, "prompt"), ({"prompts": [["a"]]}, "prompt"),
    ],
)  # fmt: skip
async def test_invalid_parameters_are_refused_by_name(tiny: Engine, wrong: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequestError) as raised:
        await embed(tiny, **{"prompts": "fine", **wrong})
    assert raised.value.param == param
    assert_idle(tiny.statistics())
