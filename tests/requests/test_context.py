"""Prompts that do not fit: what is cut, and what outputs tell of it."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from asurge import Engine, SamplingParams
from asurge.errors import PromptTooLongError
from asurge.text import Tokenizer
from asurge.text.context import TruncateMode
from tests.conftest import TINY

PARAMS = SamplingParams(max_tokens=16, temperature=0.0, ignore_eos=True)
LONG = "The quick brown fox jumps over the lazy dog. " * 12


def talk(turns: int) -> list[dict[str, Any]]:
    messages = [{"role": "system", "content": "Be brief."}]
    for at in range(turns):
        messages += [{"role": "user", "content": f"Question {at}?"}, {"role": "assistant", "content": f"Answer {at}."}]
    return [*messages, {"role": "user", "content": "And the last one?"}]


@pytest.fixture(scope="module")
async def strict(tiny_folder: Path) -> AsyncIterator[Engine]:
    async with Engine(str(tiny_folder), **TINY, strict_context=True) as engine:
        yield engine


async def test_a_long_conversation_loses_its_oldest_turns(engine: Engine) -> None:
    whole = await engine.chat(talk(0), PARAMS)
    assert (whole.num_dropped_messages, whole.num_truncated_tokens) == (0, 0)
    output = await engine.chat(talk(30), PARAMS)
    assert output.prompt is not None
    assert output.prompt.startswith("<s>system: Be brief.")
    assert "And the last one?" in output.prompt
    assert "Question 29?" in output.prompt
    assert "Question 0?" not in output.prompt
    assert output.num_dropped_messages % 2 == 0
    assert output.num_dropped_messages > 30
    assert output.num_truncated_tokens > 300
    assert output.finish_reason == "length"


async def test_one_huge_message_is_cut_within_its_template(engine: Engine) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": LONG}]
    output = await engine.chat(messages, PARAMS)
    assert output.prompt is not None
    assert output.prompt.startswith("<s>system: Be brief.\n<s>user:")
    assert output.prompt.endswith("<s>assistant: ")
    assert output.num_dropped_messages == 0
    assert output.num_truncated_tokens > 0


async def test_text_in_parts_is_cut_like_a_string(engine: Engine) -> None:
    parts = [{"type": "text", "text": LONG[:200]}, {"type": "text", "text": LONG[200:]}]
    whole = await engine.chat([{"role": "user", "content": LONG}], PARAMS)
    output = await engine.chat([{"role": "user", "content": parts}], PARAMS)
    assert output.num_truncated_tokens > 0
    assert (output.prompt, output.outputs) == (whole.prompt, whole.outputs)


async def test_strict_engines_refuse_long_conversations(strict: Engine) -> None:
    with pytest.raises(PromptTooLongError):
        await strict.chat(talk(30), PARAMS)


async def test_the_text_of_a_cut_prompt_is_that_of_its_tokens(tiny_folder: Path, engine: Engine) -> None:
    output = await engine.stream(LONG, PARAMS).wait_finished()
    assert output.num_truncated_tokens > 0
    assert output.prompt is not None
    assert LONG.endswith(output.prompt)
    assert len(output.prompt) < len(LONG)
    async with Engine(str(tiny_folder), **TINY, decode_truncated_prompt=False) as other:
        assert (await other.stream(LONG, PARAMS).wait_finished()).prompt == LONG


async def test_a_request_may_keep_the_end_of_its_prompt_only(engine: Engine) -> None:
    ids = list(range(10, 60))
    output = await engine.stream(ids, dataclasses.replace(PARAMS, truncate_prompt_tokens=7)).wait_finished()
    assert output.prompt_token_ids == ids[-7:]
    assert output.num_truncated_tokens == 43
    alone = await engine.stream(ids[-7:], PARAMS).wait_finished()
    assert output.outputs == alone.outputs


async def test_minus_one_keeps_what_the_context_holds(strict: Engine) -> None:
    ids = [10 + at % 300 for at in range(500)]
    params = dataclasses.replace(PARAMS, truncate_prompt_tokens=-1, max_tokens=None)
    output = await strict.stream(ids, params).wait_finished()
    assert output.prompt_token_ids == ids[-127:]
    assert output.num_generated_tokens == 1


async def test_a_capped_max_tokens_is_reported(engine: Engine) -> None:
    ids = [10] * 100
    output = await engine.stream(ids, dataclasses.replace(PARAMS, max_tokens=90)).wait_finished()
    assert (output.capped_max_tokens, output.num_generated_tokens, output.num_truncated_tokens) == (28, 28, 0)
    assert (await engine.stream(ids, PARAMS).wait_finished()).capped_max_tokens is None


# ── texts far beyond the context ────────────────────────────────────────────────────────────────

FAR = "The quick brown fox jumps over the lazy dog. " * 200_000


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Number of characters that each call tokenised."""
    seen, encode = list[int](), Tokenizer.encode

    def counting(tokenizer: Tokenizer, text: str, *, add_special_tokens: bool = True) -> list[int]:
        seen.append(len(text))
        return encode(tokenizer, text, add_special_tokens=add_special_tokens)

    monkeypatch.setattr(Tokenizer, "encode", counting)
    return seen


@pytest.mark.parametrize("mode", ["left", "right", "middle"])
async def test_little_of_a_far_too_long_prompt_is_tokenised(
    tiny_folder: Path, encoded: list[int], mode: TruncateMode
) -> None:
    async with Engine(str(tiny_folder), **TINY, truncate_mode=mode) as engine:
        far = await engine.stream(FAR, PARAMS).wait_finished()
        assert sum(encoded) < 10_000
        assert far.num_truncated_tokens > 1_000_000
        near = await engine.stream(FAR[: 600 * 45], PARAMS).wait_finished()
        assert (near.prompt_token_ids, near.outputs) == (far.prompt_token_ids, far.outputs)


async def test_little_of_a_far_too_long_conversation_is_tokenised(engine: Engine, encoded: list[int]) -> None:
    for messages in (talk(50_000), [{"role": "user", "content": FAR}]):
        encoded.clear()
        output = await engine.chat(messages, PARAMS)
        assert sum(encoded) < 10_000
        assert output.num_truncated_tokens > 1_000_000
        assert len(output.prompt_token_ids) > 80


async def test_little_of_a_far_too_long_embedding_input_is_tokenised(engine: Engine, encoded: list[int]) -> None:
    (output,) = await engine.embed(FAR, use_tqdm=False)
    assert sum(encoded) < 10_000
    assert output.num_truncated_tokens > 1_000_000
    (last,) = await engine.embed(FAR, truncate_prompt_tokens=9, use_tqdm=False)
    assert last.prompt_token_ids == engine.tokenizer.encode(FAR[-400:])[-9:]


async def test_strict_engines_refuse_far_too_long_texts_before_they_are_tokenised(
    strict: Engine, encoded: list[int]
) -> None:
    with pytest.raises(PromptTooLongError, match=r"9000000 characters, more than 128 tokens.*auto_truncate_prompt"):
        await strict.stream(FAR, PARAMS).wait_finished()
    with pytest.raises(PromptTooLongError, match="characters"):
        await strict.chat([{"role": "user", "content": FAR}], PARAMS)
    with pytest.raises(PromptTooLongError, match="characters"):
        await strict.embed(FAR, use_tqdm=False)
    assert encoded == []
    params = dataclasses.replace(PARAMS, truncate_prompt_tokens=-1, max_tokens=None)
    assert (await strict.stream(FAR, params).wait_finished()).num_generated_tokens == 1
