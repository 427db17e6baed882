"""``/v1/completions`` through OpenAI's own client."""

from __future__ import annotations

from typing import Any

import anyio
import openai
import pytest

from asurge import Engine, SamplingParams
from asurge.server import ApiServer
from tests.server.conftest import Running

PROMPT = "Return the square"


async def create(client: openai.AsyncOpenAI, **given: Any) -> Any:
    return await client.completions.create(**{"model": "demo", "prompt": PROMPT, "temperature": 0, **given})


async def streamed(client: openai.AsyncOpenAI, **given: Any) -> list[Any]:
    return [part async for part in await create(client, stream=True, **given)]


async def test_texts_are_the_engines(client: openai.AsyncOpenAI, demo: Engine) -> None:
    wanted = await demo.generate([PROMPT, "The"], SamplingParams(temperature=0, max_tokens=16), use_tqdm=False)
    answer = await create(client, prompt=[PROMPT, "The"])
    assert [choice.text for choice in answer.choices] == [output.get_text() for output in wanted]
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert answer.usage.completion_tokens == sum(output.num_generated_tokens for output in wanted)
    ids = [output.prompt_token_ids for output in wanted]
    again = await create(client, prompt=ids)
    assert [choice.text for choice in again.choices] == [choice.text for choice in answer.choices]
    assert (await create(client, prompt=ids[0])).choices[0].text == answer.choices[0].text


@pytest.mark.parametrize("given", [{}, {"n": 3, "temperature": 1.2, "seed": 3}, {"echo": True}, {"stop": ["oo"], "extra_body": {"include_stop_str_in_output": True}}])  # fmt: skip
async def test_streams_say_the_same(client: openai.AsyncOpenAI, given: dict[str, Any]) -> None:
    given = {"prompt": [PROMPT, "The"], **given}
    answer, parts = await create(client, **given), await streamed(client, **given)
    for choice in answer.choices:
        own = [one for part in parts for one in part.choices if one.index == choice.index]
        assert "".join(one.text for one in own) == choice.text
        assert [one.finish_reason for one in own if one.finish_reason] == [choice.finish_reason]


async def test_logprobs_line_up(client: openai.AsyncOpenAI) -> None:
    choice = (await create(client, logprobs=2, echo=True, max_tokens=4)).choices[0]
    told = choice.logprobs
    assert choice.text.startswith(PROMPT)
    assert "".join(told.tokens) == choice.text
    assert [choice.text[at : at + len(token)] for at, token in zip(told.text_offset, told.tokens, strict=True)] == told.tokens  # fmt: skip
    assert (told.token_logprobs[0], told.top_logprobs[0]) == (None, None)
    for token, logprob, top in list(zip(told.tokens, told.token_logprobs, told.top_logprobs, strict=True))[1:]:
        assert top[token] == logprob  # the sampled one is always among them, beside the two likeliest
        assert len(top) == 2 + (logprob < sorted(top.values())[-2])
    alone = (await create(client, logprobs=0, max_tokens=4)).choices[0].logprobs
    assert alone.top_logprobs == [{token: at} for token, at in zip(alone.tokens, alone.token_logprobs, strict=True)]
    parts = await streamed(client, logprobs=2, echo=True, max_tokens=4)
    tokens = [token for part in parts for one in part.choices if one.logprobs for token in one.logprobs.tokens]
    assert tokens == told.tokens


async def test_a_text_can_be_scored_alone(client: openai.AsyncOpenAI, demo: Engine) -> None:
    choice = (await create(client, echo=True, max_tokens=0, logprobs=0)).choices[0]
    assert choice.text == PROMPT
    assert "".join(choice.logprobs.tokens) == PROMPT
    by_ids = (await create(client, prompt=demo.tokenizer.encode(PROMPT), echo=True, max_tokens=0, logprobs=0)).choices
    assert (by_ids[0].text, by_ids[0].logprobs) == (choice.text, choice.logprobs)


async def test_a_score_has_no_completion(demo: Engine, running: Running) -> None:
    """What is sampled on the way is neither told nor charged."""
    server = ApiServer(demo)
    url, used = await running.start(server.app), server.keys.anonymous.usage
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as client:
        given: dict[str, Any] = {"prompt": [PROMPT, "The"], "echo": True, "max_tokens": 0, "logprobs": 1}
        whole = (await create(client, **given)).usage
        streamed_ = (await streamed(client, stream_options={"include_usage": True, "continuous_usage_stats": True}, **given))  # fmt: skip
    assert (whole.completion_tokens, whole.total_tokens) == (0, whole.prompt_tokens)
    assert [part.usage.completion_tokens for part in streamed_] == [0] * len(streamed_)
    assert streamed_[-1].usage.prompt_tokens == whole.prompt_tokens > 2
    with anyio.fail_after(5):
        while server.state.active:
            await anyio.sleep(0.001)
    assert (used.requests, used.prompt_tokens, used.completion_tokens) == (2, 2 * whole.prompt_tokens, 0)


async def test_token_ids(demo: Engine, client: openai.AsyncOpenAI) -> None:
    wish: dict[str, Any] = {"extra_body": {"return_token_ids": True, "return_tokens_as_token_ids": True}}
    answer = await create(client, logprobs=2, max_tokens=8, **wish)
    choice: Any = answer.choices[0]
    assert len(choice.token_ids) == answer.usage.completion_tokens
    assert demo.tokenizer.decode(choice.token_ids, skip_special_tokens=True) == choice.text
    assert choice.prompt_token_ids == demo.tokenizer.encode(PROMPT)
    assert choice.logprobs.tokens == [f"token_id:{one}" for one in choice.token_ids]
    for token, top in zip(choice.logprobs.tokens, choice.logprobs.top_logprobs, strict=True):
        assert token in top
    parts: Any = await streamed(client, max_tokens=8, **wish)
    assert [one for part in parts for one in part.choices[0].token_ids] == choice.token_ids
    assert parts[0].choices[0].prompt_token_ids == choice.prompt_token_ids
    assert not hasattr((await create(client, max_tokens=2)).choices[0], "token_ids")


async def test_seeds_are_64_bits_with_a_sign(client: openai.AsyncOpenAI) -> None:
    for seed in (-(2**63), -1, 2**63 - 1):
        assert (await create(client, seed=seed, max_tokens=1)).choices
    for seed in (-(2**63) - 1, 2**63):
        with pytest.raises(openai.BadRequestError, match=r"seed=.* must be in \[-2\*\*63"):
            await create(client, seed=seed, max_tokens=1)


async def test_the_likeliest_of_several(client: openai.AsyncOpenAI) -> None:
    one = (await create(client, best_of=4, temperature=1.0, seed=1)).choices
    four = (await create(client, n=4, temperature=1.0, seed=1)).choices
    assert len(one) == 1
    assert one[0].text in {choice.text for choice in four}


async def test_usage_at_the_end_of_a_stream(client: openai.AsyncOpenAI) -> None:
    parts = await streamed(client, stream_options={"include_usage": True})
    assert all(part.usage is None for part in parts[:-1])
    assert parts[-1].usage.total_tokens == (await create(client)).usage.total_tokens


async def test_seeds_have_a_sign(client: openai.AsyncOpenAI) -> None:
    """OpenAI's are integers of 64 bits."""
    texts = [(await create(client, temperature=1.5, seed=seed)).choices[0].text for seed in (-1, -1, -(2**63), 5)]
    assert texts[0] == texts[1]
    assert len({*texts}) > 1


@pytest.mark.parametrize("text", ["日本", "Ω≈ç", "plain", "a 日 b"])
async def test_logprobs_of_pieces_of_characters(client: openai.AsyncOpenAI, text: str) -> None:
    form: Any = {"structured_outputs": {"choice": [text]}}
    told = (await create(client, logprobs=5, max_tokens=40, extra_body=form)).choices[0].logprobs
    assert "".join(told.tokens) == text
    assert all(text[at:].startswith(one) for at, one in zip(told.text_offset, told.tokens, strict=True))
    assert all(len(top) in (5, 6) for top in told.top_logprobs)
    parts = await streamed(client, logprobs=5, max_tokens=40, extra_body=form)
    logprobs = [one.logprobs for part in parts for one in part.choices if one.logprobs]
    assert [token for one in logprobs for token in one.tokens] == told.tokens
    assert [at for one in logprobs for at in one.text_offset] == told.text_offset
    ask: Any = [{"role": "user", "content": "Hi"}]
    chat = await client.chat.completions.create(model="demo", messages=ask, logprobs=True, top_logprobs=2, max_tokens=40, extra_body={**form, "thinking_budget": 0})  # fmt: skip
    content = chat.choices[0].logprobs.content  # type: ignore[union-attr]
    assert b"".join(bytes(one.bytes or ()) for one in content or ()) == text.encode()


async def test_offsets_behind_special_tokens(client: openai.AsyncOpenAI, demo: Engine) -> None:
    """They are not part of the text."""
    ids = demo.tokenizer.encode("<|im_start|>user\nHi<|im_end|>", add_special_tokens=False)
    choice = (await create(client, prompt=ids, echo=True, logprobs=0, max_tokens=0)).choices[0]
    told = choice.logprobs
    assert told.tokens[0] == "<|im_start|>"
    shown = [(at, one) for at, one in zip(told.text_offset, told.tokens, strict=True) if not one.startswith("<|")]
    assert all(choice.text[at:].startswith(one) for at, one in shown)
    assert "".join(one for _, one in shown) == choice.text
